"""Connections that send all they can to one port, of one kind, and ask nobody's leave: no key, no pause.

A process of its own with nothing but the standard library. It ends after so many seconds, or once each connection has
sent its megabytes, and writes one line of JSON: how many bytes were sent, how many answers came, and how each
connection ended.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import sys
import time
from collections.abc import Iterator

_PIECE = 2**18
_REQUEST = b"GET /v1/studies HTTP/1.1\r\nHost: localhost\r\n\r\n"
_CHUNKED = (
    b"POST /v1/studies HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_LAST_CHUNK = _CHUNKED + b"2\r\n{}\r\n0\r\n"

# What each kind sends first, and then again and again.
KINDS = {
    "pipelined": (b"", _REQUEST * (_PIECE // len(_REQUEST))),
    "unread": (b"", _REQUEST * (_PIECE // len(_REQUEST))),
    "trailers": (_LAST_CHUNK, b"x: 1\r\n" * (_PIECE // 6)),
    "long-trailer": (_LAST_CHUNK + b"x: ", b"x" * _PIECE),
    "extensions": (_CHUNKED, b"1;" + b"x" * _PIECE),
    "bodies": (_REQUEST.replace(b"GET", b"POST")[:-2] + b"Content-Length: 1000000000\r\n\r\n", b"x" * _PIECE),
    "readyz": (b"", b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"),
}


class Greedy(asyncio.Protocol):
    """Sends while there is room, and drops what it reads; `readyz` calls again when it has been answered."""

    def __init__(self, kind: str, most: int, over: asyncio.Future[None]) -> None:
        self.first, self.again = KINDS[kind]
        self.kind, self.most, self.over = kind, most, over
        self.sent = self.answers = 0
        self.end = "open"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self.kind == "unread":
            transport.pause_reading()
        self.sending = self.pieces()
        self.resume_writing()

    def pieces(self) -> Iterator[bytes]:
        yield self.first + self.again
        while self.sent < self.most:
            yield self.again

    def resume_writing(self) -> None:
        self.may_write = True
        if self.kind == "readyz":
            self.send(next(self.sending))
            return
        for piece in self.sending:
            self.send(piece)
            if not self.may_write:
                break

    def pause_writing(self) -> None:
        self.may_write = False

    def send(self, piece: bytes) -> None:
        self.sent += len(piece)
        self.transport.write(piece)

    def data_received(self, data: bytes) -> None:
        came = data.count(b"HTTP/1.1 ")
        self.answers += came
        if self.kind == "readyz" and came:
            self.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.end = "closed" if exc is None else "reset"
        if not self.over.done():
            self.over.set_result(None)


async def _main(kind: str, port: int, many: int, seconds: float, most: int) -> None:
    loop = asyncio.get_running_loop()
    greedy, overs = [], []
    print("begun", flush=True)
    began = time.monotonic()
    for _ in range(many):
        over = loop.create_future()
        with contextlib.suppress(OSError):
            _, protocol = await loop.create_connection(lambda o=over: Greedy(kind, most, o), "127.0.0.1", port)  # type: ignore[misc]
            greedy.append(protocol)
            overs.append(over)
    await asyncio.wait(overs, timeout=max(0.1, seconds - (time.monotonic() - began)))
    said = {
        "sent": sum(one.sent for one in greedy),
        "answers": sum(one.answers for one in greedy),
        "ends": dict(collections.Counter(one.end for one in greedy)),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(said), flush=True)
    for one in greedy:
        one.transport.abort()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])))
