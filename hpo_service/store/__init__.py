"""The one door to SQL: tables, transactions, migrations, and the views in the shape of Optuna's own tables.

Nothing outside imports sqlalchemy or alembic.
"""

from hpo_service.store.database import Database
from hpo_service.store.schema import upgrade

__all__ = ["Database", "upgrade"]
