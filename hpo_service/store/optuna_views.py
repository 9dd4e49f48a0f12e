"""Views in the shape of Optuna 5's own tables (schema version 12) over ours, so that its tools open the live database.

`optuna-dashboard DATABASE_URL` and `optuna.load_study(storage=DATABASE_URL)` read them. Nobody writes through them:
SQLite refuses by itself, on PostgreSQL triggers do. A role that may only SELECT from the views can read everything
in them, since a view reads its tables with its owner's rights.

A param's distribution is the range of its search space, widened to what later rounds have expanded to: one
distribution for one name, whatever the rounds. A trial that came through Optuna's own API (tuning/storage.py) brings
its own: hpo_trials.distributions is then {name: [Optuna's JSON, the number Optuna knows the value by]}.

An attribute that JSON cannot say, such as NaN, is kept as {"$json": Python's JSON}.

Optuna's reader tells rows apart by their ids, so every view makes up one that does not depend on the order of rows.
"""

from __future__ import annotations

# The names of PostgreSQL's enum types and their words, as Optuna creates them.
ENUMS = {
    "studydirection": ("NOT_SET", "MINIMIZE", "MAXIMIZE"),
    "trialstate": ("RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING"),
    "trialvaluetype": ("FINITE", "INF_POS", "INF_NEG"),
    "trialintermediatevaluetype": ("FINITE", "INF_POS", "INF_NEG", "NAN"),
}

# Where a list or an object is taken apart, an id is the owner's id times a million, plus the place in it.
# A time is in microseconds: Optuna's readers parse six digits.
_SQLITE = {
    "studies": "SELECT id AS study_id, name AS study_name FROM hpo_studies",
    "study_directions": """
        SELECT s.id * 1000000 + d.key AS study_direction_id, upper(d.value) AS direction, s.id AS study_id,
            d.key AS objective
        FROM hpo_studies AS s, json_each(s.spec, '$.directions') AS d""",
    "trials": """
        SELECT trial_id, number, study_id, state,
            strftime('%Y-%m-%d %H:%M:%S', started / 1000000, 'unixepoch') || printf('.%06d', started % 1000000)
                AS datetime_start,
            strftime('%Y-%m-%d %H:%M:%S', finished / 1000000, 'unixepoch') || printf('.%06d', finished % 1000000)
                AS datetime_complete
        FROM (
            SELECT id AS trial_id, number, study_id, state,
                CAST(round(1e6 * CASE WHEN state = 'WAITING' THEN started_at
                    ELSE coalesce(started_at, finished_at) END) AS INTEGER) AS started,
                CASE WHEN state IN ('COMPLETE', 'PRUNED', 'FAIL') THEN CAST(round(1e6 * finished_at) AS INTEGER)
                    END AS finished
            FROM hpo_trials
        )""",
    "trial_params": """
        SELECT t.id * 1000000 + p.id AS param_id, t.id AS trial_id, p.key AS param_name,
            CASE
                WHEN d.value IS NOT NULL THEN json_extract(d.value, '$[1]')
                WHEN json_extract(s.value, '$.type') = 'categorical' THEN (
                    SELECT c.key FROM json_each(s.value, '$.choices') AS c
                    WHERE c.value IS p.value
                        AND replace(c.type, 'real', 'integer') = replace(p.type, 'real', 'integer')
                )
                ELSE CAST(p.value AS REAL)
            END AS param_value,
            coalesce(json_extract(d.value, '$[0]'), CASE json_extract(s.value, '$.type')
                WHEN 'categorical' THEN
                    '{"name": "CategoricalDistribution", "attributes": {"choices": ' || (s.value -> 'choices') || '}}'
                WHEN 'int' THEN
                    '{"name": "IntDistribution", "attributes": {"log": ' || (s.value -> 'log')
                    || ', "step": ' || coalesce(json_extract(s.value, '$.step'), 1)
                    || ', "low": ' || min(json_extract(s.value, '$.low'), coalesce(r.low, 9e999))
                    || ', "high": ' || max(json_extract(s.value, '$.high'), coalesce(r.high, -9e999)) || '}}'
                ELSE
                    '{"name": "FloatDistribution", "attributes": {"step": ' || coalesce(s.value -> 'step', 'null')
                    || ', "low": ' || CASE WHEN r.low < json_extract(s.value, '$.low')
                        THEN printf('%!.17g', r.low) ELSE s.value -> 'low' END
                    || ', "high": ' || CASE WHEN r.high > json_extract(s.value, '$.high')
                        THEN printf('%!.17g', r.high) ELSE s.value -> 'high' END
                    || ', "log": ' || (s.value -> 'log') || '}}'
            END) AS distribution_json
        FROM hpo_trials AS t
        JOIN json_each(t.params) AS p
        JOIN hpo_studies AS o ON o.id = t.study_id
        LEFT JOIN json_each(o.spec, '$.search_space') AS s ON s.key = p.key
        LEFT JOIN (
            SELECT r.study_id AS study_id, q.key AS name,
                min(json_extract(q.value, '$.low')) AS low, max(json_extract(q.value, '$.high')) AS high
            FROM hpo_rounds AS r, json_each(r.search_space) AS q
            GROUP BY r.study_id, q.key
        ) AS r ON r.study_id = t.study_id AND r.name = p.key
        LEFT JOIN json_each(t.distributions) AS d ON d.key = p.key
        WHERE s.key IS NOT NULL OR d.key IS NOT NULL""",
    "trial_values": """
        SELECT t.id * 1000000 + v.key AS trial_value_id, t.id AS trial_id, v.key AS objective,
            CASE WHEN v.type <> 'text' THEN CAST(v.value AS REAL) END AS value,
            CASE v.value WHEN 'Infinity' THEN 'INF_POS' WHEN '-Infinity' THEN 'INF_NEG' ELSE 'FINITE' END AS value_type
        FROM hpo_trials AS t, json_each(t."values") AS v""",
    "trial_intermediate_values": """
        SELECT trial_id * 4294967296 + step + 2147483648 AS trial_intermediate_value_id, trial_id, step,
            CASE WHEN abs(value) < 9e999 THEN value END AS intermediate_value,
            CASE WHEN value IS NULL THEN 'NAN' WHEN value = 9e999 THEN 'INF_POS' WHEN value = -9e999 THEN 'INF_NEG'
                ELSE 'FINITE' END AS intermediate_value_type
        FROM hpo_reports""",
    # Leases take the place of Optuna's heartbeats.
    "trial_heartbeats": """
        SELECT id AS trial_heartbeat_id, id AS trial_id, NULL AS heartbeat FROM hpo_trials WHERE id IS NULL""",
    "version_info": "SELECT 1 AS version_info_id, 12 AS schema_version, '5.0.0' AS library_version",
    "alembic_version": "SELECT 'v3.2.0.a' AS version_num",
}

_SQLITE_ATTRIBUTES = """
    SELECT o.id * 1000000 + a.id AS {owner}_{whose}_attribute_id, o.id AS {owner}_id, a.key AS key,
        CASE a.type
            WHEN 'object' THEN coalesce(json_extract(a.value, '$."$json"'), a.value)
            WHEN 'array' THEN a.value
            WHEN 'true' THEN 'true'
            WHEN 'false' THEN 'false'
            WHEN 'null' THEN 'null'
            WHEN 'real' THEN printf('%!.17g', a.value)
            ELSE json_quote(a.value)
        END AS value_json
    FROM {table} AS o, json_each(o.{whose}_attrs) AS a"""

_POSTGRESQL = {
    "studies": "SELECT id AS study_id, name::varchar AS study_name FROM hpo_studies",
    "study_directions": """
        SELECT s.id * 1000000 + d.place - 1 AS study_direction_id, upper(d.value)::studydirection AS direction,
            s.id AS study_id, (d.place - 1)::integer AS objective
        FROM hpo_studies AS s,
            json_array_elements_text(s.spec -> 'directions') WITH ORDINALITY AS d(value, place)""",
    "trials": """
        SELECT id AS trial_id, number, study_id, state::trialstate AS state,
            to_timestamp(CASE WHEN state = 'WAITING' THEN started_at ELSE coalesce(started_at, finished_at) END)
                AT TIME ZONE 'UTC' AS datetime_start,
            CASE WHEN state IN ('COMPLETE', 'PRUNED', 'FAIL') THEN to_timestamp(finished_at) AT TIME ZONE 'UTC' END
                AS datetime_complete
        FROM hpo_trials""",
    # Choices are compared as JSON text, which one serializer has written; numbers by value, since 1 is 1.0.
    # Not as jsonb, which refuses some strings.
    "trial_params": """
        SELECT t.id * 1000000 + p.place AS param_id, t.id AS trial_id, p.key::varchar AS param_name,
            CASE
                WHEN d.value IS NOT NULL THEN (d.value ->> 1)::double precision
                WHEN s.value ->> 'type' = 'categorical' THEN (
                    SELECT c.place - 1
                    FROM json_array_elements(s.value -> 'choices') WITH ORDINALITY AS c(value, place)
                    WHERE json_typeof(c.value) = json_typeof(p.value) AND CASE json_typeof(p.value)
                        WHEN 'number' THEN c.value::text::double precision = p.value::text::double precision
                        ELSE c.value::text = p.value::text END
                    LIMIT 1
                )::double precision
                WHEN json_typeof(p.value) = 'number' THEN p.value::text::double precision
            END AS param_value,
            coalesce(d.value ->> 0, CASE s.value ->> 'type'
                WHEN 'categorical' THEN
                    '{"name": "CategoricalDistribution", "attributes": {"choices": ' || (s.value -> 'choices') || '}}'
                WHEN 'int' THEN
                    '{"name": "IntDistribution", "attributes": {"log": ' || (s.value -> 'log')
                    || ', "step": ' || coalesce(s.value ->> 'step', '1')
                    || ', "low": ' || least((s.value ->> 'low')::bigint, r.low::bigint)
                    || ', "high": ' || greatest((s.value ->> 'high')::bigint, r.high::bigint) || '}}'
                ELSE
                    '{"name": "FloatDistribution", "attributes": {"step": ' || coalesce(s.value ->> 'step', 'null')
                    || ', "low": ' || CASE WHEN r.low < (s.value ->> 'low')::double precision
                        THEN r.low::text ELSE s.value ->> 'low' END
                    || ', "high": ' || CASE WHEN r.high > (s.value ->> 'high')::double precision
                        THEN r.high::text ELSE s.value ->> 'high' END
                    || ', "log": ' || (s.value -> 'log') || '}}'
            END) AS distribution_json
        FROM hpo_trials AS t
        CROSS JOIN json_each(t.params) WITH ORDINALITY AS p(key, value, place)
        JOIN hpo_studies AS o ON o.id = t.study_id
        LEFT JOIN LATERAL (
            SELECT n.value FROM json_each(o.spec -> 'search_space') AS n WHERE n.key = p.key
        ) AS s ON true
        LEFT JOIN (
            SELECT r.study_id AS study_id, q.key AS name,
                min((q.value ->> 'low')::double precision) AS low,
                max((q.value ->> 'high')::double precision) AS high
            FROM hpo_rounds AS r, json_each(r.search_space) AS q
            GROUP BY r.study_id, q.key
        ) AS r ON r.study_id = t.study_id AND r.name = p.key
        LEFT JOIN LATERAL (SELECT n.value FROM json_each(t.distributions) AS n WHERE n.key = p.key) AS d ON true
        WHERE s.value IS NOT NULL OR d.value IS NOT NULL""",
    "trial_values": """
        SELECT t.id * 1000000 + v.place - 1 AS trial_value_id, t.id AS trial_id, (v.place - 1)::integer AS objective,
            CASE WHEN v.value NOT IN ('Infinity', '-Infinity') THEN v.value::double precision END AS value,
            (CASE v.value WHEN 'Infinity' THEN 'INF_POS' WHEN '-Infinity' THEN 'INF_NEG' ELSE 'FINITE'
                END)::trialvaluetype AS value_type
        FROM hpo_trials AS t, json_array_elements_text(t."values") WITH ORDINALITY AS v(value, place)""",
    "trial_intermediate_values": """
        SELECT trial_id * 4294967296 + step + 2147483648 AS trial_intermediate_value_id, trial_id, step,
            CASE WHEN value NOT IN ('Infinity', '-Infinity', 'NaN') THEN value END AS intermediate_value,
            (CASE WHEN value IS NULL OR value = 'NaN' THEN 'NAN' WHEN value = 'Infinity' THEN 'INF_POS'
                WHEN value = '-Infinity' THEN 'INF_NEG' ELSE 'FINITE'
                END)::trialintermediatevaluetype AS intermediate_value_type
        FROM hpo_reports""",
    "trial_heartbeats": """
        SELECT id AS trial_heartbeat_id, id AS trial_id, NULL::timestamp AS heartbeat
        FROM hpo_trials WHERE id IS NULL""",
    "version_info": "SELECT 1 AS version_info_id, 12 AS schema_version, '5.0.0'::varchar AS library_version",
    "alembic_version": "SELECT 'v3.2.0.a'::varchar AS version_num",
}

_POSTGRESQL_ATTRIBUTES = """
    SELECT o.id * 1000000 + a.place AS {owner}_{whose}_attribute_id, o.id AS {owner}_id, a.key::varchar AS key,
        coalesce(CASE WHEN json_typeof(a.value) = 'object' THEN a.value ->> '$json' END, a.value::text) AS value_json
    FROM {table} AS o, json_each(o.{whose}_attrs) WITH ORDINALITY AS a(key, value, place)"""


def _views(dialect: str) -> dict[str, str]:
    views, attributes = {
        "sqlite": (_SQLITE, _SQLITE_ATTRIBUTES),
        "postgresql": (_POSTGRESQL, _POSTGRESQL_ATTRIBUTES),
    }[dialect]
    return views | {
        f"{owner}_{whose}_attributes": attributes.format(owner=owner, whose=whose, table=table)
        for owner, table in (("study", "hpo_studies"), ("trial", "hpo_trials"))
        for whose in ("user", "system")
    }


NAMES = tuple(_views("sqlite"))


def create_statements(dialect: str) -> list[str]:
    """What creates the views; dialect: sqlite or postgresql."""
    views = [f"CREATE VIEW {name} AS {query}" for name, query in _views(dialect).items()]
    if dialect == "sqlite":
        return views
    types = [f"CREATE TYPE {name} AS ENUM ({', '.join(map(repr, words))})" for name, words in ENUMS.items()]
    refuse = """
        CREATE FUNCTION hpo_refuse_write() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% is a view for reading: only the server writes studies and trials', TG_TABLE_NAME
                USING ERRCODE = 'read_only_sql_transaction';
        END $$"""
    triggers = [
        f"CREATE TRIGGER hpo_read_only INSTEAD OF INSERT OR UPDATE OR DELETE ON {name}"
        " FOR EACH ROW EXECUTE FUNCTION hpo_refuse_write()"
        for name in NAMES
    ]
    return [*types, *views, refuse, *triggers]


# A study that is being deleted is marked, and its rows are still there for a while. Whoever reads these views comes to
# the other ones through its study or its trials.
_OF_A_STUDY = ("studies", "study_directions", "trials")
_NOT_DELETED = "SELECT v.* FROM ({query}) AS v WHERE v.study_id NOT IN (SELECT id FROM hpo_studies WHERE deleted)"


def without_deleted(dialect: str) -> list[str]:
    """What makes the views leave out studies that are being deleted."""
    return _replace(dialect, {name: _NOT_DELETED.format(query=_views(dialect)[name]) for name in _OF_A_STUDY})


def with_deleted(dialect: str) -> list[str]:
    return _replace(dialect, {name: _views(dialect)[name] for name in _OF_A_STUDY})


def _replace(dialect: str, queries: dict[str, str]) -> list[str]:
    if dialect != "sqlite":
        return [
            f"CREATE OR REPLACE VIEW {name} AS {query}" for name, query in queries.items()
        ]  # with rights and triggers
    return [
        statement
        for name, query in queries.items()
        for statement in (f"DROP VIEW {name}", f"CREATE VIEW {name} AS {query}")
    ]


def drop_statements(dialect: str) -> list[str]:
    views = [f"DROP VIEW {name}" for name in reversed(NAMES)]
    if dialect == "sqlite":
        return views
    return [*views, "DROP FUNCTION hpo_refuse_write()", *(f"DROP TYPE {name}" for name in ENUMS)]


def grant_statements(role: str) -> list[str]:
    """What lets a PostgreSQL role read the views and nothing else. role: an SQL identifier."""
    return [f"GRANT SELECT ON {', '.join(NAMES)} TO {role}"]
