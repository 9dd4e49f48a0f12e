"""The schema's migrations: run once, under a lock, by whoever comes first."""

from __future__ import annotations

from contextlib import closing, nullcontext
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING

import sqlalchemy as sa
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

if TYPE_CHECKING:
    from alembic.config import Config

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
                if current_revision(connection) == newest_revision():
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
    current = current_revision(connection)
    if current == newest_revision():
        return
    if current is not None and current not in revisions():
        raise SchemaTooNew(
            f"the database has schema revision {current}, which this version does not know; "
            "install the version that made it, or restore an older backup"
        )
    from alembic import command  # a tenth of a start, and most have nothing to migrate

    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _config() -> Config:
    from alembic.config import Config  # as above

    config = Config()
    config.set_main_option("script_location", str(_migrations()).replace("%", "%%"))
    return config


def _migrations() -> Traversable:
    return files("hpo_service.store") / "migrations"


def revisions() -> list[str]:
    """All that there are, by their order: the file of each begins with its number."""
    names = (file.name for file in (_migrations() / "versions").iterdir())
    return sorted(name.partition("_")[0] for name in names if name[0].isdigit())


def current_revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608  # ours
    return revision


def newest_revision() -> str:
    """The schema of this version: what every database that it has opened has."""
    return revisions()[-1]
