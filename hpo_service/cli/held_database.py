"""The SQLite file of a database URL, and which server has it locked, found out fast and without opening the database.

A server that starts finds that out, too, but only after some seconds in which it prints nothing.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from urllib.parse import unquote

PATIENCE_SECONDS = 1.0  # as a starting server waits: the other one may be about to end
_AGAIN_SECONDS = 0.1


def sqlite_path(database: str) -> Path | None:
    """The file that the server opens for this URL (%20 is a space); None for another database."""
    scheme, separator, rest = database.partition(":///")
    if not separator or scheme.partition("+")[0] != "sqlite":
        return None
    return Path(unquote(rest.partition("?")[0]))


def holder(path: Path) -> int | None:
    """The pid of the server that holds this file for PATIENCE_SECONDS; None as soon as none does."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (process := _holder_now(path)) is not None and time.monotonic() < deadline:
        time.sleep(_AGAIN_SECONDS)
    return process


def _holder_now(path: Path) -> int | None:
    """The pid that is written in the lock file, if that process has it locked (store/inode_lock.py)."""
    real = Path(os.path.realpath(path))
    try:
        lock = real.with_name(real.name + ".lock")
        written = lock.read_text(encoding="ascii").split("\n")[0].strip()
        inode = str(lock.stat().st_ino)
        locks = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError):
        return None
    holds = any(
        line[1] == "FLOCK" and line[4] == written and line[5].rsplit(":", 1)[-1] == inode
        for line in locks
        if len(line) > 5
    )
    return int(written) if holds else None
