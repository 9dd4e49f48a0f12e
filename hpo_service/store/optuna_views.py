"""The views in the shape of Optuna's own tables, as the newest migration leaves them.

A migration is never edited, and neither is what it takes its statements from. To change the views, copy the module that
is imported here under the number of a new migration, change the copy, have that migration drop the old views and create
the new ones, and import the copy here.
"""

from hpo_service.store.migrations.optuna_views_of_0002 import (
    NAMES,
    create_statements,
    drop_statements,
    grant_statements,
)

__all__ = ["NAMES", "create_statements", "drop_statements", "grant_statements"]
