"""What one call costs the caller in CPU, by HTTP client: the same POST to one loopback server, in one run.

    python benchmarks/http_client.py [--calls 2000] [--rounds 5]

The server is a process of its own, so only the client's CPU is counted. Rounds alternate, and the median is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import socket
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import httpx2
import urllib3

from hpo_service.client import Client

PATH = "/v1/studies/mnist/trials/7:report"
BODY = {"attempt": 1, "reports": [{"step": 12, "value": 0.8125, "metrics": {"train_loss": 0.31}}]}
ANSWER = {"should_stop": False, "reason": None, "lease_expires_at": "2026-01-01T00:00:00Z", "study_state": "ACTIVE"}


class _Answers(asyncio.Protocol):
    """Reads a request with a body, writes the same answer, keeps the connection."""

    def __init__(self) -> None:
        content = json.dumps(ANSWER).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        self.answer, self.received = head.encode() + content, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, blank_line, content = self.received.partition(b"\r\n\r\n")
        if not blank_line:
            return
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(content) >= length:
            self.received = b""
            self.transport.write(self.answer)


def serve(started: Connection) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(_Answers, "127.0.0.1", 0)
        started.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def by_urllib3(server: str) -> Callable[[], object]:
    pool = urllib3.PoolManager(retries=False)
    return lambda: json.loads(
        pool.request(
            "POST",
            server + PATH,
            body=json.dumps(BODY).encode(),
            headers={"Content-Type": "application/json"},
            timeout=urllib3.Timeout(connect=5, read=5),
        ).data
    )


def by_httpx2(server: str) -> Callable[[], object]:
    client = httpx2.Client(base_url=server)
    return lambda: client.post(PATH, json=BODY).json()


def by_http_client(server: str) -> Callable[[], object]:
    connection = http.client.HTTPConnection(server.removeprefix("http://"))
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call() -> object:
        connection.request("POST", PATH, json.dumps(BODY).encode(), {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())

    return call


def by_our_client(server: str) -> Callable[[], object]:
    client = Client(server)
    return lambda: client.report("mnist", 7, 1, BODY["reports"])  # type: ignore[arg-type]


CLIENTS = {
    "http.client": by_http_client,
    "urllib3": by_urllib3,
    "httpx2": by_httpx2,
    "hpo_service.client": by_our_client,
}


def measure(call: Callable[[], object], calls: int) -> tuple[float, float]:
    """CPU and elapsed microseconds per call."""
    cpu, elapsed = time.process_time(), time.perf_counter()
    for _ in range(calls):
        assert call() == ANSWER
    return (time.process_time() - cpu) / calls * 1e6, (time.perf_counter() - elapsed) / calls * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    receive, send = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(send,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{receive.recv()}"
    calls = {name: connect(url) for name, connect in CLIENTS.items()}
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in CLIENTS}
    for call in calls.values():
        measure(call, 200)
    for _ in range(options.rounds):
        for name, call in calls.items():
            figures[name].append(measure(call, options.calls))
    for name, rounds in figures.items():
        cpu, elapsed = (statistics.median(each) for each in zip(*rounds, strict=True))
        print(f"{name:20}{cpu:8.0f} µs CPU a call {elapsed:8.0f} µs elapsed")
    server.terminate()


if __name__ == "__main__":
    main()
