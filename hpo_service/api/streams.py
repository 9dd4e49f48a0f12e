"""Answers that are streamed in pieces, and broken off by a connection reset if the rest fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import structlog
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from hpo_service.domain.errors import HpoError
from hpo_service.log_format import limited
from hpo_service.reading.reading_process import ReadingProcessEnded

MOST_UNREAD = 2**26  # bytes
SLICE = 2**16
BREAK_OFF = "break_off"  # in a request's state: the function that resets its connection

log = structlog.get_logger()


class Unread:
    """Limits the unread bytes of all streamed answers together: above the limit, the slowest reader's is broken off.

    A piece may be far larger than a connection's buffer, and there may be many readers.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[Stream, int] = {}  # bytes of the piece; the one that waits longest is the first
        self._bytes = 0

    @contextlib.contextmanager
    def held(self, stream: Stream, size: int) -> Iterator[None]:
        self._waiting[stream] = size
        self._bytes += size
        try:
            while self._bytes > self._most and len(self._waiting) > 1:
                slowest = next(iter(self._waiting))
                self._let_go(slowest)
                slowest.break_off("its reader was the slowest, and too much waited to be read")
            yield
        finally:
            self._let_go(stream)

    def _let_go(self, stream: Stream) -> None:
        self._bytes -= self._waiting.pop(stream, 0)


unread = Unread(MOST_UNREAD)


class Stream(StreamingResponse):
    """A streamed answer; if it fails half-way, its connection is reset, so that no client takes it for complete.

    Closing is not enough: an answer to HTTP/1.0, which some proxies speak to servers, ends with its connection.
    """

    _is_broken_off = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._break_off = scope.get("state", {}).get(BREAK_OFF)
        await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for piece in self.body_iterator:
                await self._send_piece(send, piece.encode() if isinstance(piece, str) else piece)
                del piece  # free its memory: the next one may take long
                if self._is_broken_off:
                    await asyncio.sleep(0)  # connection_lost runs first
                    return
        except (HpoError, ReadingProcessEnded) as error:
            if self._break_off is None:
                raise
            self.break_off(str(error) or type(error).__name__)
            await asyncio.sleep(0)  # connection_lost runs first
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_piece(self, send: Send, piece: bytes | memoryview) -> None:
        """Send in slices: the transport keeps a copy of what the client has not read."""
        with unread.held(self, len(piece)):
            for start in range(0, len(piece), SLICE):
                if self._is_broken_off:
                    return
                await send({"type": "http.response.body", "body": piece[start : start + SLICE], "more_body": True})

    def break_off(self, why: str) -> None:
        if self._break_off is not None:
            self._is_broken_off = True
            if limited.allows("an answer was broken off"):
                log.warning("an answer was broken off", error=why)
            self._break_off()
