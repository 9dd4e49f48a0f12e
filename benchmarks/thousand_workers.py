"""A thousand simulated workers on two servers of one PostgreSQL, one of which is killed and started again.

`python benchmarks/thousand_workers.py --postgres postgresql://postgres@127.0.0.1:5432/empty --workers 1000`: each
worker asks, holds its trial for some seconds, and tells it with the ask for the next. What has to come out: exactly the
trials wanted, and no answer but 2xx and 503.

What is timed is one call: an ask that does not wait, or a tell with the ask for the next. An ask that waits for
somebody else's trial is not slow, and is not timed. A call that had to be made again, since its server was gone, is
timed from the first time on, and counted apart: most of that is the pause that its worker makes, as the SDK does. One
process speaks for all workers, so it also says how late its own event loop woke, and what the servers say themselves
(`/metrics`).
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
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
WAIT_SECONDS = 20
AWAY_SECONDS = 3
TICK_SECONDS = 0.05
# What a server times itself, and the end of the route that is meant; asks are left out, since some of them wait.
SERVERS_TIMES = {
    "a tell with the ask for the next": ("hpo_request_seconds", ":tell"),
    "a call waits for its transaction": ("hpo_call_wait_seconds", ""),
    "a commit": ("hpo_commit_seconds", ""),
    "its event loop is late": ("hpo_event_loop_lag_seconds", ""),
}


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

    def buckets(self) -> dict[str, Counter[float]]:
        """How often each of SERVERS_TIMES took at most so many seconds."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
        found: dict[str, Counter[float]] = {}
        for what, (name, route) in SERVERS_TIMES.items():
            buckets = found[what] = Counter()
            for sample in families[name].samples:
                if sample.name == f"{name}_bucket" and sample.labels.get("route", "").endswith(route):
                    buckets[float(sample.labels["le"])] += sample.value
        return found


def share_within(buckets: Counter[float], share: float) -> float:
    """The least bound within which this share is."""
    return min(bound for bound, count in buckets.items() if count >= share * buckets[float("inf")])


@dataclass
class Seen:
    """seconds: of each call that was answered at the first time and did not wait; repeated: of those made again.

    late: how much too late this process's own event loop woke.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    repeated: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    broken: int = 0

    async def watch_oneself(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK_SECONDS)
            self.late.append(time.perf_counter() - began - TICK_SECONDS)


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
        """Look, then wait, as workers do: to ask every second for nothing would be a load that no fleet makes."""
        answer = await self._call("trials:ask", self._new())
        if answer["trials"] or answer["study_state"] == "COMPLETED":
            return answer
        return await self._call("trials:ask", {**self._new(), "wait_seconds": WAIT_SECONDS})

    async def _call(self, what: str, body: dict[str, Any]) -> Any:
        """The same call until it is answered: each may be made twice."""
        began, tries = time.perf_counter(), 0
        while True:
            tries += 1
            try:
                status, answer = await self._send(f"/v1/studies/many/{what}", json.dumps(body).encode())
            except (OSError, EOFError):
                self._seen.broken += 1
                self._drop()
                await asyncio.sleep(self._rng.uniform(0.1, 1.0))
                continue
            self._seen.statuses[status] += 1
            if status == 200:
                if "wait_seconds" not in body:
                    times = self._seen.seconds if tries == 1 else self._seen.repeated
                    times.append(time.perf_counter() - began)
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


async def drive(given: argparse.Namespace, servers: list[Server], seen: Seen) -> list[dict[str, Counter[float]]]:
    """Return what the servers say, the one that is killed just before, and all that are there in the end."""
    rng = random.Random(1)
    ports = [server.port for server in servers]
    workers = [
        Worker(f"w{number}", ports if number % 2 else ports[::-1], seen, given.hold_seconds, random.Random(number))
        for number in range(given.workers)
    ]

    async def begin(worker: Worker) -> None:
        await asyncio.sleep(rng.uniform(0, given.hold_seconds))  # a fleet does not come in one moment
        await worker.run()

    watching = asyncio.create_task(seen.watch_oneself())
    running = [asyncio.create_task(begin(worker)) for worker in workers]
    await asyncio.sleep(2 * given.hold_seconds)
    said = [await asyncio.to_thread(servers[1].buckets)]
    await asyncio.to_thread(servers[1].end, signal.SIGKILL)
    await asyncio.sleep(AWAY_SECONDS)
    await asyncio.to_thread(servers[1].start)
    await asyncio.gather(*running)
    watching.cancel()
    return said + [await asyncio.to_thread(server.buckets) for server in servers]


def in_words(seconds: Sequence[float]) -> str:
    times = sorted(seconds)
    p50, p99, most = (times[int(share * (len(times) - 1))] for share in (0.5, 0.99, 1.0))
    return f"p50 {1000 * p50:.0f} ms, p99 {1000 * p99:.0f} ms, at most {1000 * most:.0f} ms, of {len(times)}"


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
        said = asyncio.run(drive(given, servers, seen))
        seconds = time.perf_counter() - began
        counts = servers[0].call("GET", "/v1/studies/many")["counts"]
    finally:
        for server in servers:
            with contextlib.suppress(ProcessLookupError):
                server.end(signal.SIGTERM)
    print(f"{given.workers} workers, {given.trials} trials, {seconds:.0f} s; counts {counts}")
    print(f"answers by status {dict(seen.statuses)}; connections that broke {seen.broken}")
    print(f"calls answered at the first time: {in_words(seen.seconds)}")
    if seen.repeated:
        print(f"calls made again, pauses included: {in_words(seen.repeated)}")
    print(f"this process itself woke late by: {in_words(seen.late)}")
    for what in SERVERS_TIMES:
        buckets = sum((each[what] for each in said), Counter())
        p50, p99 = (f"{1000 * share_within(buckets, share):g} ms" for share in (0.5, 0.99))
        print(f"as the servers say, {what}: p50 within {p50}, p99 within {p99}")
    assert counts == {"WAITING": 0, "RUNNING": 0, "COMPLETE": given.trials, "PRUNED": 0, "FAIL": 0}
    assert set(seen.statuses) <= {200, 503}


if __name__ == "__main__":
    main()
