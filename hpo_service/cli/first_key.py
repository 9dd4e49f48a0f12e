"""The first key of a database: made at the server's first start, shown on a terminal or put in a file, never logged."""

from __future__ import annotations

import errno
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hpo_service.cli.console import note
from hpo_service.cli.exits import CommandFailed
from hpo_service.cli.key_file import write_new

if TYPE_CHECKING:
    from hpo_service.store import KeyTable

MOST_FILES = 100  # tried: NAME, NAME-2, …

_ON_A_TERMINAL = """
This database had no keys yet. Here is one that may do everything; it is shown this once, so keep it:

    {token}

Commands and workers read it from HPO_TOKEN, a browser asks for it as a password (any user name).
Others: hpo token create --scope read|worker|admin. To end this one: hpo token revoke {id}
"""
_IN_A_FILE = """This database had no keys yet, so one was made:
the key for everything is in {file} (mode 0600)
Commands and workers read that file if HPO_TOKEN_FILE names it; a browser asks for what is in it as a password.
Others: hpo token create --scope read|worker|admin. To end this one: hpo token revoke {id}
"""
_NOWHERE = "hpo: this database has no keys yet, and {reason}\n"


def make_first_key(table: KeyTable, database: str) -> Path | None:
    """Make an admin key if there never was a key. Show it on a terminal, else write it to a file and return that."""
    from hpo_service.operations.keys import create_first

    if sys.stderr is not None and sys.stderr.isatty():
        drawn = create_first(table)
        if drawn is not None:
            _say(_ON_A_TERMINAL, token=drawn.token, id=drawn.key.id)
        return None
    file = FirstKeyFile(database)
    try:
        drawn = create_first(table, keep=file.write)
    except KeyNotKept as error:
        _say(_NOWHERE, reason=error.detail)
        return None
    except BaseException:
        file.forget()
        raise
    if drawn is not None:
        _say(_IN_A_FILE, file=file.path, id=drawn.key.id)
    return file.path


def _say(words: str, **values: object) -> None:
    """Print on stderr, since stdout may be a pipe or carry JSON."""
    if sys.stderr is not None:
        note(*words.format(**values).splitlines())


class KeyNotKept(CommandFailed):
    """The file for the key cannot be written, so no key was made."""


class FirstKeyFile:
    """The file that gets the first key of a database when stderr is no terminal.

    It lies beside SQLite's file; for PostgreSQL in the state folder of systemd, or of the user. A file that exists is
    left alone: a key of an earlier database is neither overwritten nor taken for the new one.
    """

    def __init__(self, database: str) -> None:
        self.path: Path | None = None  # once it is written
        self._database = database

    def write(self, token: str) -> None:
        """Raise KeyNotKept."""
        wanted = self._wanted()
        try:
            wanted.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path = _write_beside_others(wanted, token)
        except OSError as error:
            raise KeyNotKept(
                f"no key was made, since {wanted} cannot be written ({error.strerror}) and stderr may be a log: "
                "hpo token create --scope admin --file FILE makes one for this database"
            ) from None

    def forget(self) -> None:
        """Remove the file: the key did not get into the database."""
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink()
            self.path = None

    def _wanted(self) -> Path:
        from hpo_service.store.engine import database_url, sqlite_file

        url = database_url(self._database)
        file = sqlite_file(url)
        if file is not None:
            return file.absolute().with_name(f"{file.name}.key")
        name = "-".join(str(part) for part in (url.host, url.port, url.database) if part)
        return _state_folder() / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('.-') or 'postgresql'}.key"


def _state_folder() -> Path:
    """As systemd names it (StateDirectory=), or the XDG base directories."""
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given).absolute()
    kept = os.environ.get("XDG_STATE_HOME", "")
    with suppress(RuntimeError):  # a user without a home
        return (Path(kept) if kept else Path.home() / ".local" / "state").absolute() / "hpo"
    return Path("hpo-state").absolute()


def _write_beside_others(wanted: Path, token: str) -> Path:
    """Under the first name that is free: wanted, wanted-2, …"""
    for number in range(1, MOST_FILES + 1):
        file = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        with suppress(FileExistsError):
            write_new(file, token)
            return file
    raise FileExistsError(errno.EEXIST, f"it is there, and {MOST_FILES - 1} more such files beside it")
