"""For Optuna's tools the metrics of a trial are user attributes: what its objective has set as such is among them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_VIEW = "trial_user_attributes"
_BEGIN = "SELECT * FROM ("
# Behind the place of any attribute of Optuna's own, which an id has room for a million of.
_METRICS = {
    "sqlite": """) AS of_optuna UNION ALL
    SELECT t.id * 1000000 + 500000 + a.id AS trial_user_attribute_id, t.id AS trial_id, a.key AS key,
        CASE a.type
            WHEN 'object' THEN a.value
            WHEN 'array' THEN a.value
            WHEN 'true' THEN 'true'
            WHEN 'false' THEN 'false'
            WHEN 'null' THEN 'null'
            WHEN 'real' THEN printf('%!.17g', a.value)
            ELSE json_quote(a.value)
        END AS value_json
    FROM trials AS shown JOIN hpo_trials AS t ON t.id = shown.trial_id JOIN json_each(t.metrics) AS a""",
    "postgresql": """) AS of_optuna UNION ALL
    SELECT t.id * 1000000 + 500000 + a.place AS trial_user_attribute_id, t.id AS trial_id, a.key::varchar AS key,
        a.value::text AS value_json
    FROM trials AS shown JOIN hpo_trials AS t ON t.id = shown.trial_id
        CROSS JOIN json_each(t.metrics) WITH ORDINALITY AS a(key, value, place)""",
}


def upgrade() -> None:
    _replace(f"{_BEGIN}{_query()}{_METRICS[op.get_bind().dialect.name]}")


def downgrade() -> None:
    query = _query()
    if op.get_bind().dialect.name == "sqlite":
        _replace(query.removeprefix(_BEGIN).removesuffix(_METRICS["sqlite"]))
        return
    before, _, _ = query.partition(") of_optuna")  # as PostgreSQL spells it
    _replace(before[before.index("FROM (") + len("FROM (") :])


def _query() -> str:
    """What the view shows, as the database has it."""
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        definition = connection.execute(sa.text("SELECT pg_get_viewdef(CAST(:view AS regclass))"), {"view": _VIEW})
        return str(definition.scalar_one()).rstrip("; \n")
    text = sa.text("SELECT sql FROM sqlite_master WHERE type = 'view' AND name = :view")
    return str(connection.execute(text, {"view": _VIEW}).scalar_one()).removeprefix(f"CREATE VIEW {_VIEW} AS ")


def _replace(query: str) -> None:
    """The view with another query, and its triggers and rights as they are."""
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":  # the driver's own bind marks are doubled
        connection.exec_driver_sql(f"CREATE OR REPLACE VIEW {_VIEW} AS {query}".replace("%", "%%"))
        return
    text = sa.text("SELECT sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :view")
    triggers = list(connection.execute(text, {"view": _VIEW}).scalars())
    connection.exec_driver_sql(f"DROP VIEW {_VIEW}")
    connection.exec_driver_sql(f"CREATE VIEW {_VIEW} AS {query}")
    for trigger in triggers:
        connection.exec_driver_sql(trigger)
