"""One server a SQLite file: a lock on the file itself, whatever name it is reached by.

A record lock of the open file description (F_OFD_SETLK, Linux) on a byte far behind all that SQLite ever reads, writes
or locks. It is of the inode, so that a symlink, a hard link or another mount is no way around it; it takes a descriptor
that may write, so that a user who may only read the file cannot take it; and the kernel releases it when the process
dies, however it dies.

A user who may only read the file can put a shared lock on that byte. It keeps no server out: where only such locks are
in the way, the lock file beside the database has to do, which its owner alone may open. Every server holds that one
too, since older versions knew no other lock.

A process must not close a descriptor of a database that its SQLite has open: POSIX drops all of the process's locks on
the file then, those that SQLite relies on too. Hence nothing here opens a file that this process holds, and the
descriptor is closed last.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import structlog

from hpo_service.domain.errors import Unavailable

NEW_FILES = 0o640  # minus the umask; the file holds the hashes of keys
_LOCK_FILES = 0o600  # who may open a file may lock it
_BYTE = 2**60  # the largest database has 2**48 bytes
_SQLITES_SHARED = (2**30 + 2, 510)  # what every connection of SQLite holds a shared lock on (sqlite3's os.h)
_FLOCK = "hhqqi4x"  # struct flock: kind, whence, start, length, process
_AGAIN_SECONDS = 0.05

log = structlog.get_logger()


class DatabaseInUse(Unavailable):
    """Another server process holds this SQLite file."""


class Identity(NamedTuple):
    """Identifies a file, whatever it is called."""

    device: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        return cls(status.st_dev, status.st_ino)

    @classmethod
    def at(cls, path: str) -> Identity | None:
        """None: nothing is there, or nothing that can be reached."""
        try:
            return cls.of(os.stat(path))
        except OSError:
            return None


class _Taken(Exception):
    """Somebody else holds it."""


_held: set[Identity] = set()  # by this process
_taking = threading.Lock()


class InodeLock:
    """Held from here on, until it is closed. The file is made where there is none."""

    def __init__(self, path: Path, patience_seconds: float) -> None:
        """Raise DatabaseInUse, Unavailable."""
        self.path = os.path.abspath(path)
        self._open = ExitStack()
        self._database = self._lock_file = -1  # their descriptors
        self._said = path
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                with _taking, ExitStack() as opening:
                    self.identity = self._take(opening)
                    self._open = opening.pop_all()
                return
            except _Taken:
                if time.monotonic() >= deadline:
                    raise self._in_use() from None
                time.sleep(_AGAIN_SECONDS)
            except OSError as error:
                raise Unavailable(f"cannot open {path} to read and write it: {error.strerror}") from error

    def close(self) -> None:
        """Once SQLite has closed the file."""
        with _taking:
            self._open.close()

    def stay_in_use(self) -> None:
        """Look to SQLite like one more connection, until the process ends."""
        fcntl.fcntl(self._database, fcntl.F_OFD_SETLK, _record(fcntl.F_RDLCK, *_SQLITES_SHARED))
        self._open.pop_all()

    @property
    def lock_file(self) -> Path:
        real = Path(os.path.realpath(self.path))
        return real.with_name(real.name + ".lock")

    def _take(self, opening: ExitStack) -> Identity:
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        if Identity.at(self.path) in _held:
            raise _Taken
        self._database = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, NEW_FILES)
        opening.callback(os.close, self._database)
        identity = Identity.of(os.fstat(self._database))
        locked = _locked(self._database)
        if Identity.at(self.path) != identity:
            raise _Taken  # it was replaced meanwhile: look again
        self._lock_file = self._with_lock_file(sure=locked)
        opening.callback(os.close, self._lock_file)
        _held.add(identity)
        opening.callback(_held.discard, identity)
        return identity

    def _with_lock_file(self, *, sure: bool) -> int:
        """Lock the file beside it. sure: the database itself is locked, so that others may hold this one."""
        path = self.lock_file
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _LOCK_FILES)
        except OSError as error:
            raise Unavailable(f"cannot open the lock file {path}: {error.strerror}") from error
        with suppress(PermissionError):  # somebody else's, of the same group maybe
            os.fchmod(descriptor, _LOCK_FILES)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not sure or _is_a_servers(descriptor):
                os.close(descriptor)
                raise _Taken from None
            log.warning("somebody who is no server holds the lock file; the database itself is locked", file=str(path))
        return descriptor

    def note(self, text: str) -> None:
        """Write into the lock file, for whoever finds it held or left behind: the process first."""
        os.ftruncate(self._lock_file, 0)
        os.pwrite(self._lock_file, f"{os.getpid()}\n{text}\n".encode(), 0)

    def noted(self) -> list[str]:
        """The lines of the last note, this process's or an earlier one's."""
        try:
            return self.lock_file.read_text(encoding="ascii").splitlines()
        except (OSError, UnicodeDecodeError):
            return []

    def _in_use(self) -> DatabaseInUse:
        process = next(iter(self.noted()), "").strip()
        who = f" (process {process})" if process.isdigit() and Path(f"/proc/{process}").exists() else ""
        return DatabaseInUse(
            f"another server{who} is running on {self._said}; SQLite takes one server at a time: stop it, use another "
            "file, or use PostgreSQL for several servers"
        )


def _locked(descriptor: int) -> bool:
    """Lock the database. False if that is not possible although no server has locked it. Raise _Taken."""
    if not hasattr(fcntl, "F_OFD_SETLK"):
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _record(fcntl.F_WRLCK))
        return True
    except (BlockingIOError, PermissionError):
        # A read lock would only be refused where another process has the write lock.
        found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _record(fcntl.F_RDLCK))
        if struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK:
            raise _Taken from None
        log.warning("somebody who may only read the database has locked it; the lock file has to do")
    except OSError as error:
        log.warning("this file system has no such locks; the lock file has to do", error=error.strerror)
    return False


def _record(kind: int, start: int = _BYTE, length: int = 1) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0)


def _is_a_servers(descriptor: int) -> bool:
    """Whether a server of an older version holds the lock file: then its process id stands in it.

    A process that may only read the file cannot write it there. A holder that is not seen from here counts as a server.
    """
    holders = _flock_holders(os.fstat(descriptor).st_ino)
    written = os.pread(descriptor, 100, 0).decode("ascii", "replace").split("\n")[0].strip()
    return not holders or written in holders


def _flock_holders(inode: int) -> list[str]:
    """The processes that hold an flock on a file with this inode, as far as they are seen from here."""
    try:
        lines = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
    except OSError:
        return []
    return [line[4] for line in lines if line[1] == "FLOCK" and line[5].rsplit(":", 1)[-1] == str(inode)]
