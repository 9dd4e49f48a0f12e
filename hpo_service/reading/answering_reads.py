"""What the reading and the drawing process run: receive readings from the server by a socket, and answer them.

A frame is (number of the reading, kind, length) and then so many bytes. Several readings run at once, and a long
answer is sent in parts, so that a short one need not wait for its end. The process ends when the socket closes, and
that is when the server is gone, however it died: no other process holds the other end.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from io import BufferedReader
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpo_service.store.inode_lock import Identity
    from hpo_service.store.reader import Reader

AT_ONCE = 8
PART_BYTES = 2**16
_PR_SET_PDEATHSIG = 1
HEAD = struct.Struct("!QBI")


class FrameKind(IntEnum):
    """The kind of a frame: below 10 those that the server sends, above 10 those that it receives."""

    READ = 1  # a pickled function of a Record: answered with what it returns
    OPEN = 2  # a pickled function of a Readable that returns an iterator: answered with the first item
    NEXT = 3  # answered with the next item
    DROP = 4  # nobody waits for this reading any more: not answered

    READY = 11
    PART = 12  # more of the same answer follows
    BYTES = 13
    VALUE = 14  # pickled
    ERROR = 15  # (its class, its arguments, its fields), pickled
    END = 16  # no item is left


def main() -> None:
    """Arguments: the socket's descriptor, niceness, limit of data memory in bytes (0: none), modules to import.

    The database's URL comes by the socket: it may hold a password.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a signal to the process group is for the server, which then ends us
    _die_with_the_server()
    descriptor, niceness, most_bytes, *imports = sys.argv[1:]
    os.nice(int(niceness))
    if int(most_bytes):
        resource.setrlimit(resource.RLIMIT_DATA, (int(most_bytes), int(most_bytes)))
    line = socket.socket(fileno=int(descriptor))
    with line.makefile("rb") as incoming:
        frame = received(incoming)
        if frame is not None:
            database_url, file = pickle.loads(frame[2])  # noqa: S301  # from our own server
            _answer_readings(database_url, file, imports, line, incoming)
    os._exit(0)  # at once: nobody waits for the readings in progress


def _die_with_the_server() -> None:
    """On Linux the kernel also kills us: while a reading holds the GIL, no thread notices that the socket is closed.

    It does so at the end of the thread that has started us, which is that of the server's event loop.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _answer_readings(
    database_url: str, file: Identity | None, imports: Sequence[str], line: socket.socket, incoming: BufferedReader
) -> None:
    """Answer until the server is gone. file: identity of SQLite's file; another file at its path is not read."""
    # imported at this process's low priority; modules stay, so the garbage collector need not examine them
    gc.disable()
    for module in imports:
        importlib.import_module(module)
    gc.freeze()
    gc.enable()
    from hpo_service.store import database_file
    from hpo_service.store.engine import database_url as parsed
    from hpo_service.store.engine import sqlite_file
    from hpo_service.store.reader import Reader

    url = parsed(database_url)
    path = sqlite_file(url)
    if path is not None and file is not None:
        database_file.expect(path, file)
    readings = Readings(line, Reader(url))
    readings.send(0, FrameKind.READY)
    while frame := received(incoming):
        readings.take(*frame)


def received(incoming: BufferedReader) -> tuple[int, FrameKind, bytes] | None:
    """The next frame: number, kind, payload. None: the other side is gone."""
    try:
        head = incoming.read(HEAD.size)
        if len(head) < HEAD.size:
            return None
        number, kind, length = HEAD.unpack(head)
        return number, FrameKind(kind), incoming.read(length)
    except OSError:
        return None


class Readings:
    """The readings in progress. One thread calls `take`; a pool of threads runs them and sends the answers."""

    def __init__(self, line: socket.socket, database: Reader) -> None:
        self._line, self._database = line, database
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="reading")
        self._sending = threading.Lock()
        self._changing = threading.Lock()
        self._busy: set[int] = set()
        self._dropped: set[int] = set()  # of the busy ones
        self._iterators: dict[int, Iterator[Any]] = {}  # of those that wait for NEXT

    def take(self, number: int, kind: FrameKind, payload: bytes) -> None:
        with self._changing:
            if kind is FrameKind.DROP:
                self._drop(number)
                return
            self._busy.add(number)
        self._threads.submit(self._answer, number, kind, payload)

    def _drop(self, number: int) -> None:
        if number in self._busy:
            self._dropped.add(number)
            return
        iterator = self._iterators.pop(number, None)
        if iterator is not None:
            self._threads.submit(_close, iterator)

    def _answer(self, number: int, kind: FrameKind, payload: bytes) -> None:
        iterator: Iterator[Any] | None = None
        answer: tuple[FrameKind, bytes] | None = None
        try:
            if number in self._dropped:
                return
            if kind is FrameKind.READ:
                answer = _encoded(self._database.read(pickle.loads(payload)))  # noqa: S301  # from our own server
            else:
                iterator = (
                    self._iterators.pop(number)
                    if kind is FrameKind.NEXT
                    else iter(pickle.loads(payload)(self._database))  # noqa: S301
                )
                answer = _encoded(next(iterator))
        except StopIteration:
            iterator, answer = None, (FrameKind.END, b"")
        except BaseException as error:
            iterator, answer = None, (FrameKind.ERROR, _encoded_error(error))
        finally:
            self._done(number, iterator, answer)

    def _done(self, number: int, iterator: Iterator[Any] | None, answer: tuple[FrameKind, bytes] | None) -> None:
        with self._changing:
            self._busy.discard(number)
            dropped = number in self._dropped
            self._dropped.discard(number)
            if iterator is not None and not dropped:
                self._iterators[number] = iterator
        if dropped:
            _close(iterator)
        elif answer is not None:
            self.send(number, *answer)

    def send(self, number: int, kind: FrameKind, payload: bytes = b"") -> None:
        """Send an answer in parts; those of other readings may come in between."""
        view = memoryview(payload)
        while len(view) > PART_BYTES:
            self._send_frame(number, FrameKind.PART, view[:PART_BYTES])
            view = view[PART_BYTES:]
        self._send_frame(number, kind, view)

    def _send_frame(self, number: int, kind: FrameKind, part: memoryview) -> None:
        with self._sending:
            try:
                self._line.sendall(HEAD.pack(number, kind, len(part)) + part)
            except OSError:
                os._exit(0)  # the server has gone


def _close(iterator: Any) -> None:
    getattr(iterator, "close", lambda: None)()


def _encoded(value: Any) -> tuple[FrameKind, bytes]:
    return (FrameKind.BYTES, value) if type(value) is bytes else (FrameKind.VALUE, pickle.dumps(value))


def _encoded_error(error: BaseException) -> bytes:
    """The error with its traceback as a note; a RuntimeError with its repr if it cannot be pickled."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        return pickle.dumps((type(error), error.args, vars(error)))
    except Exception:
        return pickle.dumps((RuntimeError, (repr(error),), {"__notes__": error.__notes__}))


def decoded_error(encoded: bytes) -> BaseException:
    """Rebuild the error without its __init__, whose parameters may differ from `args`, as with Invalid."""
    kind, arguments, fields = pickle.loads(encoded)  # noqa: S301  # from our own process
    error: BaseException = kind.__new__(kind, *arguments)
    error.__dict__.update(fields)
    return error


if __name__ == "__main__":
    main()
