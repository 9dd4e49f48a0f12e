"""For Optuna's tools: choices that are lists, choices found by value, and words for whoever writes through them.

They see a list as its JSON, as text: what they cannot hash breaks their dashboard. The JSON of a study and that of its
trials have been written by two serializers, which escape letters and spell numbers differently. And whoever writes
through a view is told that it is for reading only: Optuna shows the database's words below its own, which speak of
"exceeding max length".
"""

from __future__ import annotations

from alembic import op

from hpo_service.store.migrations import optuna_views_of_0002 as optuna_views

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_VIEW = "trial_params"
_CHOICES = "|| (s.value -> 'choices') ||"
# Other choices stay as they are written; a query of its own only where there is a list.
_WITH_LISTS_AS_TEXT = {
    "sqlite": """CASE WHEN EXISTS (SELECT 1 FROM json_each(s.value, '$.choices') AS l WHERE l.type = 'array')
                    THEN (
                        SELECT '[' || group_concat(l.text, ', ') || ']' FROM (
                            SELECT CASE l.type WHEN 'array' THEN json_quote(l.value || '')
                                ELSE s.value -> ('$.choices[' || l.key || ']') END AS text
                            FROM json_each(s.value, '$.choices') AS l ORDER BY l.key
                        ) AS l
                    ) ELSE (s.value -> 'choices') END""",
    "postgresql": """CASE WHEN EXISTS (
                        SELECT 1 FROM json_array_elements(s.value -> 'choices') AS l(value)
                        WHERE json_typeof(l.value) = 'array'
                    ) THEN (
                        SELECT '[' || string_agg(
                            CASE json_typeof(l.value) WHEN 'array' THEN to_json(l.value::text)::text
                                ELSE l.value::text END, ', ' ORDER BY l.place) || ']'
                        FROM json_array_elements(s.value -> 'choices') WITH ORDINALITY AS l(value, place)
                    ) ELSE (s.value -> 'choices')::text END""",
}


_ATOMS = """(SELECT json_group_array(json_array(a.fullkey, replace(a.type, 'real', 'integer'),
                            CASE WHEN a.type IN ('integer', 'real') THEN CAST(a.atom AS REAL) ELSE a.atom END))
                            FROM json_tree({}.value) AS a)"""
_FOUND = {
    "sqlite": "WHERE c.value IS p.value\n",
    "postgresql": "ELSE c.value::text = p.value::text END\n",
}
_FOUND_BY_VALUE = {
    "sqlite": f"""WHERE CASE WHEN p.type = 'array' AND c.type = 'array'
                        THEN {_ATOMS.format("c")} = {_ATOMS.format("p")} ELSE c.value IS p.value END\n""",
    # jsonb refuses NUL, which an early version took
    "postgresql": r"""ELSE CASE WHEN c.value::text = p.value::text THEN true
                            WHEN position('\u0000' IN c.value::text || p.value::text) > 0 THEN false
                            ELSE c.value::jsonb = p.value::jsonb END END
""",
}


_READ_ONLY = (
    "this database is read-only for Optuna: each of its tables is a view, and only the server writes studies and "
    "trials; create studies and tell trials through its API"
)
# SQLite's own error for a trigger is one that Optuna takes for a name given twice; this one carries a text, too.
_REFUSE = f"SELECT json_extract('{{}}', '{_READ_ONLY}')"
_REFUSE_FUNCTION = """
    CREATE OR REPLACE FUNCTION hpo_refuse_write() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION '{}' USING ERRCODE = 'read_only_sql_transaction';
    END $$"""


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    query = optuna_views._views(dialect)[_VIEW]
    for before, after in (
        (_CHOICES, f"|| ({_WITH_LISTS_AS_TEXT[dialect]}) ||"),
        (_FOUND[dialect], _FOUND_BY_VALUE[dialect]),
    ):
        assert query.count(before) == 1
        query = query.replace(before, after)
    _replace(dialect, query)
    _refuse_in_words(dialect)


def downgrade() -> None:
    dialect = op.get_bind().dialect.name
    _replace(dialect, optuna_views._views(dialect)[_VIEW])
    if dialect == "sqlite":
        for name in optuna_views.NAMES:
            for verb in () if name == _VIEW else ("INSERT", "UPDATE", "DELETE"):
                op.execute(f"DROP TRIGGER hpo_read_only_{verb.lower()}_{name}")
    else:
        before = "% is a view for reading: only the server writes studies and trials"
        connection = op.get_bind()
        function = _REFUSE_FUNCTION.format(before).replace(f"'{before}'", f"'{before}', TG_TABLE_NAME")
        connection.exec_driver_sql(function.replace("%", "%%"))


def _refuse_in_words(dialect: str) -> None:
    connection = op.get_bind()
    if dialect != "sqlite":
        connection.exec_driver_sql(_REFUSE_FUNCTION.format(_READ_ONLY))
        return
    for name in optuna_views.NAMES:
        for verb in ("INSERT", "UPDATE", "DELETE"):
            trigger = f"CREATE TRIGGER hpo_read_only_{verb.lower()}_{name} INSTEAD OF {verb} ON {name}"
            connection.exec_driver_sql(f"{trigger} BEGIN {_REFUSE}; END")


def _replace(dialect: str, query: str) -> None:
    connection = op.get_bind()
    if dialect == "sqlite":
        connection.exec_driver_sql(f"DROP VIEW {_VIEW}")
        connection.exec_driver_sql(f"CREATE VIEW {_VIEW} AS {query}")
    else:  # with its rights and triggers; the driver's own bind marks are doubled
        connection.exec_driver_sql(f"CREATE OR REPLACE VIEW {_VIEW} AS {query}".replace("%", "%%"))
