"""Writes a whole database into one file, while servers run on it: it has its name only when it is whole and on disk."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

from sqlalchemy.engine import URL

from hpo_service.domain.errors import Unavailable
from hpo_service.store import database_file
from hpo_service.store.engine import database_url, sqlite_file
from hpo_service.store.inode_lock import NEW_FILES

PART = ".part"


class NotBackedUp(Unavailable):
    """There is no backup, and no file in its place."""


def back_up(url: str, file: Path) -> None:
    """On SQLite a database, on PostgreSQL what pg_restore takes. Raise NotBackedUp, ValueError (the URL)."""
    parsed = database_url(url)
    path = sqlite_file(parsed)
    if file.exists():
        raise NotBackedUp(f"{file} is there already: name a new file")
    part = file.with_name(file.name + PART)
    try:
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, NEW_FILES & 0o600))
        if path is None:
            _dump(parsed, part)
        else:
            _copy_file(path, part)
        _keep(part, file)
    except (OSError, sqlite3.Error) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise NotBackedUp(f"{file} cannot be written: {said}") from error
    finally:
        part.unlink(missing_ok=True)


def _copy_file(path: Path, part: Path) -> None:
    if not path.exists():
        raise NotBackedUp(f"there is no database {path}")
    with closing(database_file.connect(path)) as source, closing(sqlite3.connect(part)) as target:
        source.backup(target)  # in one step: one state of it, for which no writer waits
        found = target.execute("PRAGMA quick_check").fetchone()[0]
        if found != "ok":
            raise NotBackedUp(f"the copy of {path} is broken: {found}")
    for ending in ("-wal", "-shm"):
        Path(f"{part}{ending}").unlink(missing_ok=True)


def _dump(url: URL, part: Path) -> None:
    """The password goes by the environment: `ps` shows arguments to everybody."""
    program = shutil.which("pg_dump")
    if program is None:
        raise NotBackedUp("pg_dump is not there, which comes with PostgreSQL: apt install postgresql-client")
    target = url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)
    password = {} if url.password is None else {"PGPASSWORD": str(url.password)}
    done = subprocess.run(  # noqa: S603 - no shell
        [program, "--format=custom", "--no-password", f"--file={part}", f"--dbname={target}"],
        env={**os.environ, **password},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise NotBackedUp(f"no backup was made: {' '.join(done.stderr.split())[:500]}")


def _keep(part: Path, file: Path) -> None:
    with part.open("rb") as written:
        os.fsync(written.fileno())
    os.link(part, file)  # never over another one
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
