"""The SQLite file that a server has open: whether it is still what a restart would find.

A server whose file is moved, removed or replaced would go on writing to the open file, which a restart does not find.
So the names are compared with what is open: after every commit, before its calls are answered, and every second. While
they differ nothing is acknowledged, and nothing is read. When the right file is back, the server goes on.

The log (hpo.db-wal) holds what was committed last, and belongs to the database by its name alone: beside another
database it would be replayed into that one. So when a file is found gone, the log's content is first written into the
database it belongs to, wherever that is now, and the log is emptied.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from urllib.parse import quote

import structlog

from hpo_service.domain.errors import Unavailable
from hpo_service.store import write_ahead_log
from hpo_service.store.inode_lock import Identity, InodeLock

LOOK_EVERY_SECONDS = 1.0

log = structlog.get_logger()


class DatabaseGone(Unavailable):
    """The database, or its log, is not where this server opened it."""


_checks: dict[str, Callable[[], None]] = {}  # by path: of the files that this process has open


def check(path: Path) -> None:
    """Raise DatabaseGone where this process has opened a file that is not there now."""
    known = _checks.get(os.path.abspath(path))
    if known is not None:
        known()


def expect(path: Path, identity: Identity) -> None:
    """From here on this process takes no other file at this path for the database."""
    name = os.path.abspath(path)
    _checks[name] = lambda: _check_identity(name, identity)


def connect(path: Path) -> sqlite3.Connection:
    """Open the existing file; never create one, and never accept another one in its place."""
    check(path)
    uri = f"file:{quote(os.path.abspath(path))}?mode=rw"
    connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
    try:
        check(path)  # what was opened is what was there both before and after
    except DatabaseGone:
        connection.close()
        raise
    return connection


class NameOfOpen:
    """Whether an open file still has the name by which it was opened, read from /proc instead of by `stat`.

    After a `stat`, which reads the file's times, Linux gives the next write a new one, and the next fsync waits for it:
    a quarter of what a commit takes. Where there is no /proc, `stat` is called after all.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._identity = Identity.at(path)
        self._descriptor: int | None = None
        if hasattr(os, "O_PATH") and os.path.exists("/proc/self/fd"):
            # O_PATH: to close another kind of descriptor would drop SQLite's locks on the file
            self._descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            self._link = f"/proc/self/fd/{self._descriptor}"
            self._said = os.readlink(self._link)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def is_as_it_was(self) -> bool:
        if self._descriptor is None:
            return Identity.at(self._path) == self._identity
        return os.readlink(self._link) == self._said


class DatabaseFile:
    """The file, locked against other servers until it is closed: one server a file."""

    def __init__(self, path: Path, patience_seconds: float = 0.0) -> None:
        """Raise DatabaseInUse, Unavailable."""
        self.path = path
        self.is_gone = False  # as of the last check
        self._name = os.path.abspath(path)
        self._log, self._index = str(write_ahead_log.log_of(path)), str(write_ahead_log.index_of(path))
        self._log_files: dict[str, Identity | None] = {}  # the log and its index, once they are there
        self._is_saved = False  # whether the log's content was, since the database is gone
        self._noticing = threading.Lock()
        self._ended = threading.Event()
        _check_database_of_log(path)
        with ExitStack() as opening:
            self._lock = InodeLock(path, patience_seconds)
            opening.callback(self._lock.close)
            self._check_log_of_database()
            self._lock.note("")
            _checks[self._name] = self.check_all
            opening.callback(_checks.pop, self._name, None)
            self._open = opening.pop_all()

    @property
    def identity(self) -> Identity:
        return self._lock.identity

    def close(self) -> None:
        """Called after every connection of this process to the file is closed."""
        self._open.close()

    def watch(self) -> None:
        """Called once the schema is there: keep SQLite from replacing the log, and check every second."""
        # As long as one connection has the log open, SQLite neither deletes it nor makes another.
        self._keeper = self._open.enter_context(closing(connect(self.path)))
        self._keeper.execute("PRAGMA busy_timeout=500")
        self._keeper.execute("SELECT count(*) FROM sqlite_master").fetchone()
        self._log_files = {name: Identity.at(name) for name in (self._log, self._index)}
        self._lock.note(" ".join(map(str, (*self.identity, *(self._log_files[self._log] or ())))))
        self._log_name = self._open.enter_context(closing(NameOfOpen(self._log)))
        checking = threading.Thread(target=self._keep_checking, name="database file", daemon=True)
        checking.start()
        self._open.callback(self._end, checking)

    def check(self) -> None:
        """Raise DatabaseGone where a restart would not find what has just been committed. Called after each commit."""
        try:
            found = os.stat(self._name)
            is_there = (found.st_dev, found.st_ino) == self.identity and self._log_name.is_as_it_was()
        except OSError:
            is_there = False
        if not is_there:
            self.check_all()

    def check_all(self) -> None:
        """The same for all files, also the log's index; if one is gone, first save the log's content."""
        try:
            _check_identity(self._name, self.identity)
            for name, identity in self._log_files.items():
                self._check_log_file(name, identity)
        except DatabaseGone as gone:
            self._notice(gone)
            raise
        self.is_gone = False

    def _notice(self, gone: DatabaseGone) -> None:
        """The first thread that finds a file gone saves the log's content, before any caller gets DatabaseGone."""
        with self._noticing:
            if self.is_gone:
                return
            log.error("the database is not where it was opened", error=gone.detail)
            self._is_saved = self._save_log()
            self.is_gone = True

    def before_closing(self) -> None:
        """If a file is gone, keep SQLite's last connection from deleting the log: it may be another database's now."""
        with suppress(DatabaseGone):
            self.check_all()
            return
        self._lock.stay_in_use()

    def _check_log_file(self, name: str, identity: Identity | None) -> None:
        if Identity.at(name) != identity:
            raise DatabaseGone(
                f"{name} was removed, moved or replaced under the running server, which takes nothing more; what was "
                f"acknowledged is written into {self._name} itself. Start the server again, and leave to it what "
                "stands beside its database"
            )

    def _keep_checking(self) -> None:
        while not self._ended.wait(LOOK_EVERY_SECONDS):
            with suppress(DatabaseGone):
                self.check_all()
                continue
            with self._noticing:
                self._is_saved = self._is_saved or self._save_log()

    def _save_log(self) -> bool:
        """Write the log's content into the database it belongs to, wherever that is now, and empty the log."""
        if not self._log_files:
            return True
        try:
            busy, _, _ = self._keeper.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            log.error("what the log holds cannot be written into its database", error=str(error))
            return False
        return not busy

    def _end(self, looking: threading.Thread) -> None:
        self._ended.set()
        looking.join()

    def _check_log_of_database(self) -> None:
        """Raise Unavailable where the log that a killed server left stands beside another database than its own."""
        numbers = " ".join(self._lock.noted()[1:2]).split()
        if len(numbers) != 4 or not write_ahead_log.size(self._log):
            return
        database, its_log = Identity(*map(int, numbers[:2])), Identity(*map(int, numbers[2:]))
        if Identity.at(self._log) == its_log and database != self.identity:
            raise Unavailable(
                f"{self._log} is the log of another file than this {self._name}, and would be played into it. To use "
                "this one, as after restoring a backup, remove the files ending in -wal and -shm; what only the log "
                "holds is lost then. Else put the other one back"
            )


def _check_identity(name: str, expected: Identity) -> None:
    found = Identity.at(name)
    if found is None:
        raise DatabaseGone(
            f"the database {name} is not there any more: it was moved or removed under the running server, which "
            "writes and reads nothing until it is back. Put it back, or start the server again on the file to use"
        )
    if found != expected:
        raise DatabaseGone(
            f"{name} is not the file that this server opened: it was replaced under the running server, which writes "
            "and reads nothing until the old one is back. To use the new one start the server again"
        )


def _check_database_of_log(path: Path) -> None:
    """Raise Unavailable where a log is there without its database: a new, empty database would delete it."""
    wanted = write_ahead_log.log_of(path)
    if write_ahead_log.size(wanted) and not write_ahead_log.size(path):
        raise Unavailable(
            f"{wanted} is there, but not the database that it is the log of: that was moved or removed without it. Put "
            "it back, and nothing is lost; to begin anew, remove the files ending in -wal and -shm"
        )
