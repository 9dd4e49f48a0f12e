"""However old a database is, and whichever of the three versions 5 made it, an upgrade leads to one schema."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory

import hpo_service.store.migrations
from hpo_service.store import schema, upgrade
from hpo_service.store.engine import database_url as url_of
from hpo_service.store.engine import writing_engine

MIGRATIONS = Path(hpo_service.store.migrations.__file__).parent

# A migration that is out has made databases. Whoever edits it makes databases of one number and two schemas.
# Never change a hash here: put the file back as it was, write a migration of the next number, and add its line.
FROZEN = {
    "optuna_views_of_0002.py": "f167afbb9f50c96312e06bcfdeda1d1c220c88c64fc59239833441183053e3fa",
    "versions/0001_the_record.py": "025f2d0f88d172fc6ed58014f589653f601b970ba5d8a8078e3753461bb5b3be",
    "versions/0002_the_optuna_views.py": "7c0177ef4686aa32a7ccccd32c41298144cd5ee4486807d5163b7ad77ea80136",
    "versions/0003_the_keys.py": "00814e392c088ec5d46e1e183b682d05d797e2e2b1dd3b52fd23a69553156c45",
    "versions/0004_the_dataset.py": "62c65f5f9be33d9cad1d9500ae04a79694b85375d4a093bb1df6cbb708c83cdd",
    "versions/0005_fewer_rows_a_call.py": "65f7af043a9d405e7ce253ee461dcfac5c8ca4a143faffc25bc8df0960af6242",
    "versions/0006_one_schema.py": "40b1f5cc025165c00c32dfc3e0b5cb8abb6d2988dcf90341e88eeab999e244ae",
    "versions/0007_outages.py": "34cadf9509e7805441c8ebe9c0669b1160e6ed31cda4b7a750686ea172959bfc",
    "versions/0008_deletion_in_pieces.py": "25cce81fce81da7e2a4ccd36da17755387fcc8ca30057de17769f36934b30fc4",
    "versions/0009_whom_to_ask.py": "b3922fb3a5825971bf72538b9f9057ff565701b6410129eee151b13cd9199529",
    "versions/0010_failures.py": "541b4a9b4593c73fa63359788039fbea16aad904d3e9fde2fc8a98c63e639664",
    "versions/0011_for_optunas_tools.py": "6b5759d1347627f1848e7b42e1baabc1dd301780c4afe1e9144edc87e9954dca",
    "versions/0012_confirmation.py": "4181eb1adf04e32e7bacec34dc57a812b5a33542e7ca19f76fa196694f73a12f",
    "versions/0013_metrics_as_attributes.py": "dd881ec50b28a9534d14250011ba4f5a2c8c36cfe1e45775488412796f54e149",
    "versions/0014_labels.py": "69ebb7e68b0d407065ae63eff485cbe7c444263bb33bb71bed0eed871754fbaa",
    "versions/0015_artifacts.py": "fdc9b22eb183bdffefcd9bdd7fa222fe59f33b12be89ee1aaa3fd750b018a4d1",
    "versions/0016_one_index_less.py": "389d2f966d5aa28bd8e40d54cd73b6254e25ead5123b94f8c93951b4492f6ccf",
}
MAY_CHANGE = {"__init__.py", "env.py", "versions/__init__.py"}


def test_a_migration_that_is_out_is_never_edited() -> None:
    files = {str(path.relative_to(MIGRATIONS)) for path in MIGRATIONS.rglob("*.py")} - MAY_CHANGE
    hashes = {name: hashlib.sha256((MIGRATIONS / name).read_bytes()).hexdigest() for name in sorted(files)}
    changed = [name for name, frozen in FROZEN.items() if hashes.get(name) != frozen]
    assert not changed, f"put {changed} back as they were, and write a new migration instead"
    assert set(hashes) == set(FROZEN), f"a new migration is frozen here: {hashes}"


def test_a_migration_takes_nothing_from_code_that_may_change() -> None:
    for name in FROZEN:
        imports = [line for line in (MIGRATIONS / name).read_text().splitlines() if "hpo_service" in line]
        assert all(line.startswith("from hpo_service.store.migrations import optuna_views_of_") for line in imports)


COUNTS = [
    "ALTER TABLE hpo_studies ADD COLUMN round_trials INTEGER DEFAULT '0' NOT NULL",
    "ALTER TABLE hpo_studies ADD COLUMN round_finished INTEGER DEFAULT '0' NOT NULL",
    "ALTER TABLE hpo_studies ADD COLUMN round_revision BIGINT DEFAULT '0' NOT NULL",
    "DROP INDEX ix_hpo_answers_study_id",
]
# What version 5 did while it was new, by the days on which it did so: on SQLite, and what of it on PostgreSQL too.
VERSIONS_5 = {
    "remembered answers without rowids": (
        COUNTS,
        [
            "ALTER TABLE hpo_answers RENAME TO hpo_answers_before",
            "CREATE TABLE hpo_answers (call TEXT NOT NULL, request_id TEXT NOT NULL, study_id INTEGER NOT NULL, "
            "answer JSON NOT NULL, CONSTRAINT pk_hpo_answers PRIMARY KEY (call, request_id), "
            "CONSTRAINT fk_hpo_answers_study_id FOREIGN KEY(study_id) REFERENCES hpo_studies (id) ON DELETE CASCADE) "
            "WITHOUT ROWID",
            "INSERT INTO hpo_answers SELECT call, request_id, study_id, answer FROM hpo_answers_before",
            "DROP TABLE hpo_answers_before",
        ],
    ),
    "the index of leases": (COUNTS, []),
    "as it is": (
        [
            *COUNTS,
            "DROP INDEX ix_hpo_trials_leases",
            "CREATE INDEX ix_hpo_trials_running ON hpo_trials (study_id) WHERE state = 'RUNNING'",
        ],
        [],
    ),
}


@contextmanager
def connected(url: str) -> Iterator[sa.Connection]:
    engine = writing_engine(url_of(url))
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def move(connection: sa.Connection, revision: str) -> None:
    config = schema._config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def move_back(connection: sa.Connection, revision: str) -> None:
    config = schema._config()
    config.attributes["connection"] = connection
    command.downgrade(config, revision)


VERSIONS = schema.revisions()


def test_the_versions_follow_each_other_as_their_numbers_do() -> None:
    scripts = {script.revision: script for script in ScriptDirectory.from_config(schema._config()).walk_revisions()}
    assert sorted(scripts) == VERSIONS
    assert [scripts[number].down_revision for number in VERSIONS] == [None, *VERSIONS[:-1]]
    assert all(Path(scripts[number].path).name.startswith(f"{number}_") for number in VERSIONS)


@pytest.fixture
def empty(database_url: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without any schema, of the same kind as the one with it."""
    if database_url.startswith("postgresql"):
        url: str = request.getfixturevalue("postgres_url")
        return url
    (tmp_path / "empty.db").touch()
    return f"sqlite:///{tmp_path}/empty.db"


@pytest.mark.slow
@pytest.mark.parametrize("version_5", VERSIONS_5)
def test_every_version_5_becomes_the_schema_of_a_new_database_and_keeps_its_rows(
    version_5: str, empty: str, database_url: str
) -> None:
    everywhere, on_sqlite = VERSIONS_5[version_5]
    with connected(empty) as connection:
        move(connection, "0004")
        for statement in everywhere + (on_sqlite if empty.startswith("sqlite") else []):
            connection.execute(sa.text(statement))
        connection.execute(sa.text("UPDATE hpo_alembic_version SET version_num = '0005'"))
        add_rows(connection, "fine")
        before = rows(connection)
    upgrade(empty)
    with connected(empty) as connection, connected(database_url) as new:
        assert description(connection) == description(new)
        assert rows(connection) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", VERSIONS[:-1])
def test_a_database_of_any_earlier_version_becomes_the_schema_of_a_new_one(
    number: str, empty: str, database_url: str
) -> None:
    with connected(empty) as connection:
        move(connection, number)
    upgrade(empty)
    upgrade(empty)
    with connected(empty) as connection, connected(database_url) as new:
        assert description(connection) == description(new)


@pytest.mark.slow
def test_each_version_is_gone_back_to_as_it_was(empty: str) -> None:
    """Version 5 has made databases of three schemas; who goes back further than 6 finds one that 5 could have made."""
    later = VERSIONS[VERSIONS.index("0006") :]
    with connected(empty) as connection:
        on_the_way_up = {}
        for number in later:
            move(connection, number)
            on_the_way_up[number] = objects(connection)
        add_rows(connection, "fine")
        before = rows(connection)
        for number in reversed(later[:-1]):
            move_back(connection, number)
            assert objects(connection) == on_the_way_up[number], number
            assert rows(connection) == before
        move(connection, "head")
        assert objects(connection) == on_the_way_up[later[-1]]
        assert rows(connection) == before


@pytest.mark.slow
def test_nul_that_was_taken_before_becomes_what_can_be_read(empty: str) -> None:
    with connected(empty) as connection:
        move(connection, "0005")
        add_rows(connection, "a\0\0b, and the text \\u0000, and \\\0")
        if empty.startswith("postgresql"):  # what one of them did to everybody
            with pytest.raises(sa.exc.DBAPIError), connection.begin_nested():
                connection.execute(sa.text("SELECT * FROM study_directions")).all()
    upgrade(empty)
    with connected(empty) as connection:
        shown = "a\ufffd\ufffdb, and the text \\u0000, and \\\ufffd"
        for document in rows(connection):
            assert shown in json.dumps(document, ensure_ascii=False).replace("\\\\", "\\"), document
        for view in ("study_directions", "trial_params", "trial_user_attributes", "study_user_attributes"):
            assert connection.execute(sa.text(f"SELECT * FROM {view}")).all()


def add_rows(connection: sa.Connection, text: str) -> None:
    """A study, its round, a trial with a report, and an answer, with this text wherever a caller can write one."""
    space = {"x": {"type": "categorical", "choices": [text, "other"], "when": None}}
    values = {
        "spec": {"name": "s", "directions": ["maximize"], "search_space": space, "metadata": {text: text}},
        "space": space,
        "params": {"x": text},
        "attributes": {"note": text},
        "metrics": {"note": text},
        "changes": [text],
        "answer": {"trials": [{"params": {"x": text}}]},
    }
    bound = {name: json.dumps(value, separators=(",", ":")) for name, value in values.items()}
    for statement in (
        "INSERT INTO hpo_studies (id, name, spec, created_with, state, created_at, lease_seconds, user_attrs) "
        "VALUES (1, 's', :spec, '', 'ACTIVE', 0, 60, :attributes)",
        "INSERT INTO hpo_rounds (study_id, round, search_space, trials, finished, from_trials, changes, revision) "
        "VALUES (1, 0, :space, 1, 1, '[]', :changes, 1)",
        "INSERT INTO hpo_trials (id, study_id, number, state, params, metrics, seed, attempt, lapsed, revision, "
        "user_attrs, system_attrs) VALUES (1, 1, 0, 'FAIL', :params, :metrics, 0, 0, 0, 1, :attributes, '{}')",
        "INSERT INTO hpo_reports (trial_id, step, value, metrics) VALUES (1, 0, 1.0, :metrics)",
        "INSERT INTO hpo_answers (call, request_id, study_id, answer) VALUES ('ask 1', 'r', 1, :answer)",
    ):
        wanted = {name: value for name, value in bound.items() if f":{name}" in statement}
        connection.execute(sa.text(statement), wanted)


def rows(connection: sa.Connection) -> list[Any]:
    """Each document of those rows."""
    queries = (
        "SELECT spec FROM hpo_studies",
        "SELECT user_attrs FROM hpo_studies",
        "SELECT search_space FROM hpo_rounds",
        "SELECT changes FROM hpo_rounds",
        "SELECT params FROM hpo_trials",
        "SELECT metrics FROM hpo_trials",
        "SELECT user_attrs FROM hpo_trials",
        "SELECT metrics FROM hpo_reports",
        "SELECT answer FROM hpo_answers",
    )
    found = [connection.execute(sa.text(query)).scalar_one() for query in queries]
    return [json.loads(document) if isinstance(document, str) else document for document in found]


_POSTGRESQL = (
    "SELECT table_name, column_name, data_type, is_nullable, column_default, udt_name FROM information_schema.columns "
    "WHERE table_schema = 'public'",
    "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
    "WHERE connamespace = 'public'::regnamespace",
    "SELECT viewname, definition, '' FROM pg_views WHERE schemaname = 'public'",
    "SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
    "SELECT typname, array_agg(enumlabel::text ORDER BY enumsortorder)::text, '' FROM pg_enum "
    "JOIN pg_type ON pg_type.oid = enumtypid GROUP BY typname",
    "SELECT version_num, '', '' FROM hpo_alembic_version",
)


def description(connection: sa.Connection) -> list[tuple[Any, ...]]:
    """All that makes up the schema, in words of the database itself."""
    if connection.dialect.name == "sqlite":
        queries: tuple[str, ...] = (
            "SELECT type, name, coalesce(sql, '') FROM sqlite_master",
            "SELECT version_num, '', '' FROM hpo_alembic_version",
        )
    else:
        queries = _POSTGRESQL
    found = [tuple(row) for query in queries for row in connection.execute(sa.text(query))]
    return sorted(tuple(" ".join(str(cell).split()) for cell in row) for row in found)


def objects(connection: sa.Connection) -> Any:
    """The same, free of the order in which constraints and columns came to be there, and of the words for it."""
    if connection.dialect.name == "postgresql":
        return description(connection)
    look = sa.inspect(connection)
    tables = [name for name in look.get_table_names() if name.startswith("hpo_")]
    others = [row for row in description(connection) if row[0] != "table"]
    return others, {
        name: (
            sorted(
                (column["name"], str(column["type"]), column["nullable"], column["default"])
                for column in look.get_columns(name)
            ),
            look.get_pk_constraint(name),
            sorted(map(str, look.get_foreign_keys(name))),
            sorted(map(str, look.get_unique_constraints(name))),
            sorted(map(str, look.get_check_constraints(name))),
        )
        for name in tables
    }
