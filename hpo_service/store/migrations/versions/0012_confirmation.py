"""Confirming the winner: what was asked for and its counters with the study, and of which trial one is a replicate.

Optuna's tools see no replicates: of what they show, anything could be taken for the best.
"""

from __future__ import annotations

import re

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_VIEWS = (
    *("trials", "trial_params", "trial_values", "trial_intermediate_values"),
    *("trial_user_attributes", "trial_system_attributes"),
)
_BEGIN = "SELECT * FROM ("
_END = ") AS shown WHERE trial_id NOT IN (SELECT id FROM hpo_trials WHERE replicate_of IS NOT NULL)"
# As PostgreSQL spells a view that begins and ends so.
_INSIDE = re.compile(r"\bFROM \((.*)\) shown\s+WHERE\b", re.DOTALL)


def upgrade() -> None:
    op.add_column("hpo_trials", sa.Column("replicate_of", sa.Integer(), nullable=True))
    op.add_column("hpo_studies", sa.Column("confirmation", sa.Text(), nullable=True))
    for counter in ("replicates_waiting", "replicates_running"):
        op.add_column("hpo_studies", sa.Column(counter, sa.Integer(), server_default="0", nullable=False))
    where = sa.text("replicate_of IS NOT NULL")
    op.create_index(
        *("ix_hpo_trials_replicates", "hpo_trials", ["study_id", "number"]),
        sqlite_where=where,
        postgresql_where=where,
    )
    for name in _VIEWS:
        _replace(name, f"{_BEGIN}{_query(name)}{_END}")


def downgrade() -> None:
    for name in _VIEWS:
        query = _query(name)
        if op.get_bind().dialect.name == "sqlite":
            _replace(name, query.removeprefix(_BEGIN).removesuffix(_END))
        else:
            inside = _INSIDE.search(query)
            assert inside is not None
            _replace(name, inside[1])
    op.drop_index("ix_hpo_trials_replicates", "hpo_trials")
    for counter in ("replicates_running", "replicates_waiting"):
        op.drop_column("hpo_studies", counter)
    op.drop_column("hpo_studies", "confirmation")
    op.drop_column("hpo_trials", "replicate_of")


def _query(view: str) -> str:
    """What the view shows, as the database has it."""
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        definition = connection.execute(sa.text("SELECT pg_get_viewdef(CAST(:view AS regclass))"), {"view": view})
        return str(definition.scalar_one()).rstrip("; \n")
    text = sa.text("SELECT sql FROM sqlite_master WHERE type = 'view' AND name = :view")
    created = str(connection.execute(text, {"view": view}).scalar_one())
    return created.removeprefix(f"CREATE VIEW {view} AS ")


def _replace(view: str, query: str) -> None:
    """The view with another query, and its triggers and rights as they are."""
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":  # the driver's own bind marks are doubled
        connection.exec_driver_sql(f"CREATE OR REPLACE VIEW {view} AS {query}".replace("%", "%%"))
        return
    text = sa.text("SELECT sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :view")
    triggers = list(connection.execute(text, {"view": view}).scalars())
    connection.exec_driver_sql(f"DROP VIEW {view}")
    connection.exec_driver_sql(f"CREATE VIEW {view} AS {query}")
    for trigger in triggers:
        connection.exec_driver_sql(trigger)
