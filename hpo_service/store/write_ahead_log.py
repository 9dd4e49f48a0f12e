"""SQLite's write-ahead log: how large it is, why it grows, and how it is made small again.

A commit writes to the log; what is there goes into the database after every 1,000 pages (a checkpoint), and then the
log is written from its beginning again. It grows while a reader still looks at an older state of the database, and its
file keeps the largest size it ever had, until it is cut.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import sqlalchemy as sa

LARGE = 64 * 2**20  # bytes, from which on it is cut; what a busy server needs is a tenth of it
LARGE_FOR_SMALL = 256 * 2**20
TOO_LARGE = 2**30
TIMES_THE_DATABASE = 4

# Bytes of the -shm file that SQLite's readers lock, on unix (sqlite3.c, WAL_READ_LOCK).
_READ_LOCKS = range(123, 128)


def log_of(database: Path) -> Path:
    """Beside the file itself, not beside a symlink to it."""
    return Path(os.path.realpath(database) + "-wal")


def index_of(database: Path) -> Path:
    return Path(os.path.realpath(database) + "-shm")


def size(file: Path | str) -> int:
    """In bytes; 0 for one that is not there."""
    try:
        return os.stat(file).st_size
    except OSError:
        return 0


def faults(engine: sa.Engine, database: Path) -> list[str]:
    """What is wrong with a log that has grown too large, and cannot be cut now."""
    if not is_too_large(database) or not cut(engine, database):
        return []
    return [
        f"the write-ahead log {log_of(database)} has grown to {size(log_of(database)) // 2**20} MiB, beside a database "
        f"of {size(database) // 2**20} MiB: somebody has been reading for a long time and keeps it from being written "
        "back; hpo doctor says which process, and once that has ended the server makes the log small again"
    ]


def is_too_large(database: Path) -> bool:
    """Whether the log is larger than 1 GiB, or than 256 MiB and four times its database."""
    log_bytes = size(log_of(database))
    return log_bytes > TOO_LARGE or log_bytes > max(LARGE_FOR_SMALL, TIMES_THE_DATABASE * size(database))


def cut(engine: sa.Engine, database: Path) -> bool:
    """Write a large log into the database and cut its file; return whether a reader keeps it from being cut.

    The copying, which takes long, does not block writers. engine: one that waits for no lock.
    """
    if size(log_of(database)) < LARGE:
        return False
    with engine.connect() as connection:
        driver = connection.connection.dbapi_connection
        assert driver is not None
        _, in_log, copied = driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if copied < in_log:
            return True
        driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return False


def readers(database: Path) -> list[int]:
    """Process ids of those who read now, on Linux.

    Not for a process that has the database open itself: by closing the file it would give up its own locks on it.
    """
    found = set()
    try:
        with index_of(database).open("r+b") as shared:
            for byte in _READ_LOCKS:
                wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
                kind, _, _, _, pid = struct.unpack("hhqqi4x", fcntl.fcntl(shared, fcntl.F_GETLK, wanted))
                if kind != fcntl.F_UNLCK:
                    found.add(pid)
    except (OSError, struct.error):
        return []
    return sorted(found)
