"""The views in the shape of Optuna's own tables, for its dashboard and load_study."""

from __future__ import annotations

from collections.abc import Callable

from alembic import op

from hpo_service.store.migrations import optuna_views_of_0002 as optuna_views

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _run(optuna_views.create_statements)


def downgrade() -> None:
    _run(optuna_views.drop_statements)


def _run(statements_for: Callable[[str], list[str]]) -> None:
    connection = op.get_bind()
    dialect = connection.dialect.name
    for statement in statements_for(dialect):
        # the driver's own bind marks are doubled; SQLite's are not in these statements
        connection.exec_driver_sql(statement if dialect == "sqlite" else statement.replace("%", "%%"))
