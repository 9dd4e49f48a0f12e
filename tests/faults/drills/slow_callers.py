"""Many slow connections to one port, of four kinds, each opened again when it is closed, until its standard input ends.

A process of its own with nothing but the standard library. When the server has closed them all, or has not done so with
all patience, it writes one line of JSON: how many connections were opened, what was answered, how long the longest of
them stayed open, and how many still are.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import random
import resource
import sys
import time

_HEAD = b"POST /v1/studies HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n"
DRIBBLE_SECONDS = 0.4
PAUSE_SECONDS = 1.0


class Callers:
    def __init__(self, port: int) -> None:
        self.port = port
        self.open: dict[object, float] = {}
        self.over = False
        self.opened = 0
        self.longest = 0.0
        self.ends: collections.Counter[str] = collections.Counter()

    async def call_again_and_again(self, kind: str) -> None:
        await asyncio.sleep(random.random())
        while not self.over:
            await self._call(kind)
            await asyncio.sleep(PAUSE_SECONDS * (0.5 + random.random()))

    async def _call(self, kind: str) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError as error:
            self.ends[f"not opened ({type(error).__name__})"] += 1
            return
        self.opened += 1
        began = self.open[writer] = time.monotonic()
        try:
            answer = asyncio.ensure_future(reader.read(12))
            await self._dribble(kind, writer, answer)
            self.ends[_words(answer.result())] += 1
        except OSError:
            self.ends["reset"] += 1
        finally:
            del self.open[writer]
            self.longest = max(self.longest, time.monotonic() - began)
            writer.transport.abort()

    async def _dribble(self, kind: str, writer: asyncio.StreamWriter, answer: asyncio.Future[bytes]) -> None:
        """Until there is an answer, or the connection is closed."""
        if kind == "body":
            writer.write(_HEAD + b"\r\n{")
        elif kind in ("head", "half-closed"):
            writer.write(_HEAD + b"X: ")
        if kind == "half-closed":
            writer.write_eof()
        while not answer.done():
            await asyncio.wait([answer], timeout=DRIBBLE_SECONDS)
            if kind == "head":
                writer.write(b"x")
            elif kind == "body":
                writer.write(b" ")

    def summary(self) -> dict[str, object]:
        still = max((time.monotonic() - began for began in self.open.values()), default=0.0)
        longest = max(self.longest, still)
        return {"opened": self.opened, "longest": longest, "open": len(self.open), "ends": dict(self.ends)}


def _words(answer: bytes) -> str:
    return f"answered {answer[9:12].decode()}" if answer else "closed"


async def _main(port: int, many: int, patience: float) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    callers = Callers(port)
    # Those that are half closed leave at once, and would make too much room.
    kinds = ("silent", "head", "body") * 3 + ("half-closed",)
    tasks = [asyncio.create_task(callers.call_again_and_again(kinds[number % 10])) for number in range(many)]
    print("begun", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    callers.over = True
    await asyncio.wait(tasks, timeout=patience)
    print(json.dumps(callers.summary()), flush=True)
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
    os._exit(0)
