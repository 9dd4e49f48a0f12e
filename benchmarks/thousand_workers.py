"""A thousand simulated workers on two servers of one PostgreSQL, one of which is killed and started again.

`python benchmarks/thousand_workers.py --postgres postgresql://postgres@127.0.0.1:5432/empty --workers 1000`: each
worker asks, holds its trial for some seconds, and tells it with the ask for the next. What has to come out: exactly the
trials wanted, and no answer but 2xx and 503. One process speaks for all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
WAIT_SECONDS = 20


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    def __init__(self, database: str) -> None:
        self.port, self._database = free_port(), database
        self.start()

    def start(self) -> None:
        options = ("--no-auth", "--json", "--port", str(self.port), "--database", self._database)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hpo_service", "serve", *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def end(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.wait()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", content, headers, method=method)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


@dataclass
class Seen:
    """seconds: of each ask that was answered, or of a tell with the ask for the next."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    broken: int = 0


class Worker:
    """Speaks to one server, and to the other one when that is gone."""

    def __init__(self, name: str, ports: list[int], seen: Seen, hold_seconds: float, rng: random.Random) -> None:
        self._name, self._ports, self._seen, self._hold, self._rng = name, ports, seen, hold_seconds, rng
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._calls = 0

    async def run(self) -> None:
        answer = await self._ask()
        while True:
            if not answer["trials"]:
                if answer["study_state"] == "COMPLETED":
                    return
                await asyncio.sleep(self._rng.uniform(0.5, 1.5))
                answer = await self._ask()
                continue
            (trial,) = answer["trials"]
            await asyncio.sleep(self._rng.uniform(0.5, 1.5) * self._hold)
            told = await self._call(
                f"trials/{trial['number']}:tell",
                {
                    "attempt": trial["attempt"],
                    "state": "COMPLETE",
                    "values": [trial["params"]["x"]],
                    "next": self._new(),
                },
            )
            answer = told["next"] if "next" in told else await self._ask()

    def _new(self) -> dict[str, str]:
        self._calls += 1
        return {"worker_id": self._name, "request_id": f"{self._name}-{self._calls}"}

    async def _ask(self) -> Any:
        """Waits, as workers do: whoever asked every second for nothing would be a load that no fleet makes."""
        return await self._call("trials:ask", {**self._new(), "wait_seconds": WAIT_SECONDS})

    async def _call(self, what: str, body: dict[str, Any]) -> Any:
        """The same call until it is answered: each may be made twice."""
        while True:
            began = time.perf_counter()
            try:
                status, answer = await self._send(f"/v1/studies/many/{what}", json.dumps(body).encode())
            except (OSError, EOFError):
                self._seen.broken += 1
                self._drop()
                await asyncio.sleep(self._rng.uniform(0.1, 1.0))
                continue
            self._seen.statuses[status] += 1
            if status == 200:
                if answer.get("trials") or answer.get("next"):  # one that has waited for nothing was not slow
                    self._seen.seconds.append(time.perf_counter() - began)
                return answer
            if status != 503:
                return {"trials": [], "study_state": "ACTIVE"}  # counted as what must not be
            await asyncio.sleep(self._rng.uniform(0.5, 1.5))

    async def _send(self, path: str, content: bytes) -> tuple[int, Any]:
        if self._connection is None:
            self._connection = await asyncio.open_connection("127.0.0.1", self._ports[0])
        reader, writer = self._connection
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
        return int(lines[0].split()[1]), json.loads(await reader.readexactly(length))

    def _drop(self) -> None:
        self._ports = self._ports[::-1]
        if self._connection is not None:
            self._connection[1].close()
            self._connection = None


async def drive(given: argparse.Namespace, servers: list[Server], seen: Seen) -> None:
    rng = random.Random(1)
    ports = [server.port for server in servers]
    workers = [
        Worker(f"w{number}", ports if number % 2 else ports[::-1], seen, given.hold_seconds, random.Random(number))
        for number in range(given.workers)
    ]

    async def begin(worker: Worker) -> None:
        await asyncio.sleep(rng.uniform(0, given.hold_seconds))  # a fleet does not come in one moment
        await worker.run()

    running = [asyncio.create_task(begin(worker)) for worker in workers]
    await asyncio.sleep(2 * given.hold_seconds)
    servers[1].end(signal.SIGKILL)
    await asyncio.sleep(3)
    await asyncio.to_thread(servers[1].start)
    await asyncio.gather(*running)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--postgres", required=True, help="an empty database")
    options.add_argument("--workers", type=int, default=1000)
    options.add_argument("--trials", type=int, default=5000)
    options.add_argument("--hold-seconds", type=float, default=8.0)
    given = options.parse_args()
    servers = [Server(given.postgres) for _ in range(2)]
    seen = Seen()
    try:
        study = {"name": "many", "search_space": SPACE, "sampler": {"name": "random", "seed": 1}, "lease_seconds": 60}
        servers[0].call("POST", "/v1/studies", study | {"limits": {"trials": given.trials}})
        began = time.perf_counter()
        asyncio.run(drive(given, servers, seen))
        seconds = time.perf_counter() - began
        counts = servers[0].call("GET", "/v1/studies/many")["counts"]
    finally:
        for server in servers:
            with contextlib.suppress(ProcessLookupError):
                server.end(signal.SIGTERM)
    times = sorted(seen.seconds)
    print(f"{given.workers} workers, {given.trials} trials, {seconds:.0f} s; counts {counts}")
    print(f"answers by status {dict(seen.statuses)}; connections that broke {seen.broken}")
    print(f"asks: p50 {1000 * times[len(times) // 2]:.0f} ms, p99 {1000 * times[int(0.99 * len(times))]:.0f} ms")
    assert counts == {"WAITING": 0, "RUNNING": 0, "COMPLETE": given.trials, "PRUNED": 0, "FAIL": 0}
    assert set(seen.statuses) <= {200, 503}


if __name__ == "__main__":
    main()
