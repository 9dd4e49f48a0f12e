"""All that uses SQL: tables, transactions, migrations, and the views in the shape of Optuna's own tables.

Nothing outside imports sqlalchemy or alembic.
"""

from hpo_service.store.backing_up import back_up
from hpo_service.store.copying import copy
from hpo_service.store.database import Database
from hpo_service.store.key_table import KeyTable
from hpo_service.store.schema import upgrade, upgrade_if_needed

__all__ = ["Database", "KeyTable", "back_up", "copy", "upgrade", "upgrade_if_needed"]
