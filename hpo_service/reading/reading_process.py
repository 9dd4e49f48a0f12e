"""A process that reads the record for the server, so that a long read does not delay asks and tells.

Encoding the JSON of thousands of trials holds the GIL throughout, and all other threads wait. The server sends a
module's function with plain arguments; bytes or a small value come back. While the process is starting or down, the
server reads in its own threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any, TypeVar

import structlog

from hpo_service.instruments import Counter, reading_process_restarts
from hpo_service.reading.answering_reads import HEAD, FrameKind, decoded_error
from hpo_service.store.inode_lock import Identity
from hpo_service.store.reader import Readable
from hpo_service.store.record import Record

T = TypeVar("T")

AGAIN_SECONDS = 5.0  # at least, from one start to the next
_MODULE = "hpo_service.reading.answering_reads"
_END = object()
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}  # its matrices are small: more threads would wait for each other

log = structlog.get_logger()


class ReadingProcessEnded(Exception):
    """The process is not running, or died during the reading; a new one may be running soon."""


class ReadingProcess:
    """Starts the process and sends readings to it; its methods are coroutines of one event loop.

    niceness: 19; with 10, workers on a machine without a free core still waited twice as long because of readings.
    imports: modules that it imports when it starts. most_bytes: limit of its data memory; None: no limit.
    """

    name = "the reading process"
    niceness = 19
    imports: Sequence[str] = (
        "hpo_service.reading.exported_rows",
        "hpo_service.reading.readings",
        "hpo_service.reading.summaries_of_studies",
    )
    most_bytes: int | None = None
    restarts: Counter | None = reading_process_restarts

    def __init__(self, database_url: str) -> None:
        self.is_up = False
        self.pid: int | None = None
        self.file: Identity | None = None  # identity of SQLite's file; another file at its path is not read
        self._database_url = database_url
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._parts: dict[int, list[bytes]] = {}
        self._line: asyncio.StreamWriter | None = None
        self._has_died = False

    @property
    def under_way(self) -> int:
        """How many readings have no answer yet."""
        return len(self._waiting)

    # -- readings -----------------------------------------------------------------------------------------

    async def read(self, work: Callable[[Record], T]) -> T:
        """Run `work` on a snapshot there; raise what it raises, or ReadingProcessEnded."""
        number = next(self._numbers)
        answer = self._ask(number, FrameKind.READ, work)
        try:
            return await answer  # type: ignore[no-any-return]
        finally:
            self._forget(number, ended=answer.done() and not answer.cancelled())

    async def items(self, work: Callable[[Readable], Iterator[T]]) -> AsyncGenerator[T, None]:
        """Yield what `work` yields in the process, which prepares one item ahead."""
        number = next(self._numbers)
        answer = self._ask(number, FrameKind.OPEN, work)
        item: Any = None
        try:
            while (item := await answer) is not _END:
                answer = self._ask(number, FrameKind.NEXT)
                yield item
        finally:
            self._forget(number, ended=item is _END)

    def _ask(self, number: int, kind: FrameKind, work: Any = None) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._line is None:
            answer.set_exception(ReadingProcessEnded())
            return answer
        self._waiting[number] = answer
        self._send(number, kind, b"" if work is None else pickle.dumps(work))
        return answer

    def _forget(self, number: int, *, ended: bool) -> None:
        self._parts.pop(number, None)
        answer = self._waiting.pop(number, None)
        if answer is not None and answer.done() and not answer.cancelled():
            answer.exception()  # retrieved, so that asyncio does not log it
        if not ended:
            self._send(number, FrameKind.DROP)

    def _send(self, number: int, kind: FrameKind, payload: bytes = b"") -> None:
        if self._line is not None:
            self._line.write(HEAD.pack(number, kind, len(payload)) + payload)

    # -- the process --------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Run until cancelled: start the process, and again when it has died."""
        while True:
            pause = asyncio.create_task(asyncio.sleep(AGAIN_SECONDS))
            try:
                code = await self._live()
                self._has_died = True
                log.warning(f"{self.name} has ended; the server does its work until it is back", exit_code=code)
                await pause
            except OSError as error:
                log.warning(f"{self.name} cannot be started; the server does its work", error=str(error))
                await pause
            finally:
                pause.cancel()

    async def _live(self) -> int:
        ours, its = socket.socketpair()
        numbers = [str(number) for number in (its.fileno(), self.niceness, self.most_bytes or 0)]
        with its:
            try:
                process = subprocess.Popen(  # noqa: S603  # this interpreter, on a module of ours
                    [sys.executable, "-P", "-m", _MODULE, *numbers, *self.imports],
                    pass_fds=(its.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # to standard error: it should print nothing; what it prints all the same is logged
                    env={**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
            except OSError:
                ours.close()
                raise
        self.pid = process.pid
        if self._has_died and self.restarts is not None:
            self.restarts.inc()
        try:
            incoming, self._line = await asyncio.open_unix_connection(sock=ours)
            self._send(0, FrameKind.OPEN, pickle.dumps((self._database_url, self.file)))
            with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                await self._take_answers(incoming)
        finally:
            self._end()
            process.kill()  # it only reads
            code = await asyncio.to_thread(process.wait)
        return code

    async def _take_answers(self, incoming: asyncio.StreamReader) -> None:
        while True:
            number, kind, length = HEAD.unpack(await incoming.readexactly(HEAD.size))
            payload = await incoming.readexactly(length)
            if kind == FrameKind.READY:
                self.is_up = True
                if self._has_died:
                    log.info(f"{self.name} is back", pid=self.pid)
            elif number in self._waiting:
                self._take(number, FrameKind(kind), payload)

    def _take(self, number: int, kind: FrameKind, payload: bytes) -> None:
        if kind is FrameKind.PART:
            self._parts.setdefault(number, []).append(payload)
            return
        parts = self._parts.pop(number, None)
        whole = payload if parts is None else b"".join([*parts, payload])
        answer = self._waiting.pop(number)
        if answer.done():
            return
        if kind is FrameKind.ERROR:
            answer.set_exception(decoded_error(whole))
        elif kind is FrameKind.END:
            answer.set_result(_END)
        else:
            answer.set_result(whole if kind is FrameKind.BYTES else pickle.loads(whole))  # noqa: S301  # from our own process

    def _end(self) -> None:
        self.is_up, self.pid = False, None
        if self._line is not None:
            self._line.close()
            self._line = None
        self._parts.clear()
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(ReadingProcessEnded())
