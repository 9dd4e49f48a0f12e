"""The first key of a database: made by the server's first start, and shown to whoever may see it, and to no log."""

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

MOST_FILES = 100  # by one name and its numbers

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
    """Make one for everything if there never was a key. Return its file: standard error may be kept in a log."""
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
    """On stderr, so that it is in no pipe and in no line of JSON."""
    if sys.stderr is not None:
        note(*words.format(**values).splitlines())


class KeyNotKept(CommandFailed):
    """There is no place for a key, so that it was not made."""


class FirstKeyFile:
    """Where the first key of a database goes when nobody looks at what the server says.

    Beside the file of SQLite; for PostgreSQL in the folder for state of systemd, or of the user. What is there stays:
    a key of an earlier database is nothing to write over, and none to open a new one with.
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
        """Take it away again: the key was not recorded."""
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
