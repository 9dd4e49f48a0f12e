"""Callers that wait: so many long polls of a study, or streams of its events, until they are told to end.

A poll that was given a trial asks no more; the others ask again. A line on stdin ends all; then one line of JSON says
how many were given a trial, and how many events came.
"""

from __future__ import annotations

import asyncio
import json
import sys

WAIT_SECONDS = 30


class Callers:
    def __init__(self, port: int, kind: str, study: str, count: int) -> None:
        self._port, self._kind, self._study, self._count = port, kind, study, count
        self.given = self.events = 0

    async def run(self) -> None:
        calls = [
            asyncio.create_task(self._poll(n) if self._kind == "polls" else self._follow()) for n in range(self._count)
        ]
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        print(json.dumps({"given": self.given, "events": self.events}), flush=True)

    async def _poll(self, number: int) -> None:
        path = f"/v1/studies/{self._study}/trials:ask"
        for attempt in range(1_000):
            ask = {
                "worker_id": f"p{number}",
                "request_id": f"{self._study}-{number}-{attempt}",
                "wait_seconds": WAIT_SECONDS,
            }
            body = json.dumps(ask)
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                answer = (await reader.read()).partition(b"\r\n\r\n")[2]
            finally:
                writer.close()
            if answer and json.loads(answer).get("trials"):
                self.given += 1
                return

    async def _follow(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(f"GET /v1/studies/{self._study}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            while line := await reader.readline():
                self.events += line.startswith(b"id:")
        finally:
            writer.close()


if __name__ == "__main__":
    asyncio.run(Callers(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])).run())
