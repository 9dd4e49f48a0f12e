"""Large artifacts at a real server: flat memory, answers that are read, and no room for a file.

Killed servers, full disks and buckets that are away are drills: tests/faults/drills/kept_artifacts.py.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from hpo_service.client import Client
from hpo_service.operations.artifacts import UPLOADS_AT_ONCE
from tests.patience import PATIENCE_SECONDS

MIB = 2**20
pytestmark = pytest.mark.slow


class Server:
    def __init__(self, folder: Path, prepare: Callable[[], None] | None = None) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "hpo_service", "serve", "--no-auth", "--port", "0", "--json"]
        self.process = subprocess.Popen(
            [*command, "--database", f"sqlite:///{folder}/hpo.db"], stdout=subprocess.PIPE, preexec_fn=prepare
        )
        assert self.process.stdout is not None
        self.url = json.loads(self.process.stdout.readline())["url"]

    def put(self, path: str, pieces: Iterator[bytes], **headers: str) -> tuple[int, dict[str, Any]]:
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=PATIENCE_SECONDS)
        connection.request("PUT", f"/v1/studies/s/trials/0/artifacts/{path}", pieces, headers)
        answer = connection.getresponse()
        found = answer.status, json.loads(answer.read())
        connection.close()
        return found

    def memory(self) -> int:
        """The most that it has held, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024

    def files(self) -> list[Path]:
        return [path for path in (self.folder / "hpo.db.artifacts").rglob("*") if path.is_file()]

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(PATIENCE_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()


def begin(server: Server) -> None:
    with Client(server.url) as client:
        space = {"x": {"type": "float", "low": 0, "high": 1}}
        client.create({"name": "s", "search_space": space, "sampler": {"name": "random"}, "lease_seconds": 3600})
        client.ask("w", "s")


def zeros(mebibytes: int) -> Iterator[bytes]:
    return (bytes(MIB) for _ in range(mebibytes))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_hundred_mebibytes_pass_through_flat_memory_and_refusals_are_read(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        begin(server)
        before = server.memory()
        status, item = server.put("large?attempt=1", zeros(200), **{"Content-Length": str(200 * MIB)})
        assert (status, item["size"]) == (200, 200 * MIB)
        assert item["sha256"] == hashlib.sha256(bytes(200 * MIB)).hexdigest()
        assert server.put("large?attempt=2", zeros(200), **{"Content-Length": str(200 * MIB)})[0] == 409
        assert server.put("other?attempt=1", zeros(300))[1]["code"] == "too_large"
        assert server.memory() - before < 48 * MIB
        until(lambda: len(server.files()) == 1)
    finally:
        server.end()


def test_what_finds_no_room_is_503_and_leaves_nothing(tmp_path: Path) -> None:
    most = 20 * MIB  # of a file of that process
    server = Server(tmp_path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))
    try:
        begin(server)
        status, refused = server.put("a?attempt=1", zeros(30), **{"Content-Length": str(30 * MIB)})
        assert (status, refused["retryable"]) == (503, True)
        until(lambda: server.files() == [])
        assert server.put("a?attempt=1", zeros(10), **{"Content-Length": str(10 * MIB)})[0] == 200
    finally:
        server.end()


def test_uploads_that_hardly_come_make_room_for_whoever_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_BODY_SECONDS", "86400")  # so that nothing else ends them
    server = Server(tmp_path)
    address = urlsplit(server.url)
    hardly: list[socket.socket] = []
    try:
        begin(server)  # first: who connects and says nothing is sent away before long
        hardly += [socket.create_connection((address.hostname, address.port)) for _ in range(UPLOADS_AT_ONCE)]
        for number, connection in enumerate(hardly):
            path = f"/v1/studies/s/trials/0/artifacts/{number}?attempt=1"
            connection.sendall(f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MIB}\r\n\r\nx".encode())
        until(lambda: len(server.files()) == UPLOADS_AT_ONCE)
        assert server.put("small?attempt=1", iter([b"small"]), **{"Content-Length": "5"})[0] == 200
        answered = select.select(hardly, [], [], PATIENCE_SECONDS)[0]
        assert {each.recv(4096).split()[1] for each in answered} == {b"503"}
        assert len(answered) < UPLOADS_AT_ONCE, "one place was wanted"
    finally:
        for connection in hardly:
            connection.close()
        server.end()
