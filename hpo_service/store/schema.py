"""The schema's migrations: run once, under a lock, by whoever comes first."""

from __future__ import annotations

from contextlib import closing, nullcontext
from importlib.resources import files

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import URL

from hpo_service.domain.errors import Unavailable
from hpo_service.store import postgres_server
from hpo_service.store.database_file import DatabaseFile
from hpo_service.store.engine import (
    database_errors_translated,
    database_url,
    reading_engine,
    sqlite_file,
    writing_engine,
)

VERSION_TABLE = "hpo_alembic_version"
_ADVISORY_LOCK = 0x68706F  # "hpo"; any number that all servers share


class SchemaTooNew(Unavailable):
    """The database was made by a later version of this service."""


def upgrade(url: str) -> None:
    """Bring the database to this version's schema; nothing to do is fine. Raise DatabaseInUse, SchemaTooNew."""
    parsed = database_url(url)
    path = sqlite_file(parsed)
    with nullcontext() if path is None else closing(DatabaseFile(path)):
        upgrade_engine(parsed)


def upgrade_if_needed(url: str) -> None:
    """The same, but free of any lock where the schema is this version's: a server may be running."""
    parsed = database_url(url)
    path = sqlite_file(parsed)
    if path is None or path.exists():
        engine = reading_engine(parsed)
        try:
            with database_errors_translated(), engine.connect() as connection:
                postgres_server.check(connection)
                if current_revision(connection) == _scripts().get_current_head():
                    return
        finally:
            engine.dispose()
    upgrade(url)


def upgrade_engine(url: URL) -> None:
    """Upgrade; on SQLite the caller holds the file."""
    engine = writing_engine(url)
    try:
        with database_errors_translated(), engine.connect() as connection:
            postgres_server.check(connection)
            if engine.dialect.name == "postgresql":
                # All in one transaction, the lock too: a pooler may give the next one another session.
                for timeout in ("statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout"):
                    connection.execute(sa.text(f"SET LOCAL {timeout} = 0"))
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
            _migrate(connection)
            connection.commit()  # all migrations, or none
    finally:
        engine.dispose()


def _migrate(connection: sa.Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    scripts = _scripts()
    current = current_revision(connection)
    if current == scripts.get_current_head():
        return
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise SchemaTooNew(
            f"the database has schema revision {current}, which this version does not know; "
            "install the version that made it, or restore an older backup"
        )
    command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("hpo_service.store") / "migrations").replace("%", "%%"))
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def current_revision(connection: sa.Connection) -> str | None:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


def newest_revision() -> str:
    """The schema of this version: what every database that it has opened has."""
    return str(_scripts().get_current_head())
