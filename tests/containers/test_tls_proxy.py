"""Caddy with deploy/Caddyfile before a real server, with certificates of its own: TLS, and nothing held back."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CADDYFILE = Path(__file__).resolve().parents[2] / "deploy/Caddyfile"
PATIENCE_SECONDS = 60.0

pytestmark = pytest.mark.skipif(shutil.which("caddy") is None, reason="caddy is not installed")


class Proxy:
    def __init__(self, folder: Path) -> None:
        self.http, self.https = _free_port(), _free_port()
        serve = [sys.executable, "-m", "hpo_service", "serve", "--no-auth", "--port", "0", "--json"]
        self.server = subprocess.Popen([*serve, "--database", f"sqlite:///{folder}/hpo.db"], stdout=subprocess.PIPE)
        assert self.server.stdout is not None
        upstream = json.loads(self.server.stdout.readline())["url"].removeprefix("http://")
        ports = {"HPO_HTTP": str(self.http), "HPO_HTTPS": str(self.https), "HPO_UPSTREAM": upstream}
        homes = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(folder))
        with (folder / "caddy.log").open("w") as log:
            self.caddy = subprocess.Popen(
                ["caddy", "run", "--config", CADDYFILE, "--adapter", "caddyfile"],
                env={**os.environ, **ports, **homes},
                stderr=log,
            )
        root = folder / "caddy/pki/authorities/local/root.crt"
        _wait_for(root.exists)
        self.trust = ssl.create_default_context(cafile=str(root))
        _wait_for(self._has_its_certificate)

    def _has_its_certificate(self) -> bool:
        try:
            return self.call("GET", "/version")[0] == 200
        except OSError:
            return False

    def connection(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("localhost", self.https, timeout=PATIENCE_SECONDS, context=self.trust)

    def call(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = self.connection()
        sent = None if body is None else json.dumps(body)
        connection.request(method, path, sent, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def end(self) -> None:
        for process in (self.caddy, self.server):
            process.terminate()
            process.communicate(timeout=PATIENCE_SECONDS)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _wait_for(happened: Any) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    started = Proxy(tmp_path_factory.mktemp("proxy"))
    yield started
    started.end()


@pytest.mark.slow
def test_browsers_are_told_to_come_by_tls_and_plain_http_is_sent_there(proxy: Proxy) -> None:
    status, headers, _ = proxy.call("GET", "/version")
    assert status == 200
    assert headers["Strict-Transport-Security"] == "max-age=31536000"
    assert headers["Alt-Svc"] is None, "HTTP/3 would take a port that is not published"
    plain = http.client.HTTPConnection("localhost", proxy.http, timeout=PATIENCE_SECONDS)
    plain.request("GET", "/version")
    answer = plain.getresponse()
    assert answer.status == 308
    assert answer.headers["Location"] == "https://localhost/version"


def test_an_event_goes_through_when_it_comes(proxy: Proxy) -> None:
    """The stream stays open: what a proxy holds back until there is more of it would never arrive here."""
    proxy.call("POST", "/v1/studies", {"name": "s", "search_space": {"x": {"type": "float", "low": 0, "high": 1}}})
    connection = proxy.connection()
    connection.request("GET", "/v1/studies/s/events", headers={"Accept": "text/event-stream"})
    events = connection.getresponse()
    seen: list[bytes] = []
    reader = threading.Thread(target=lambda: seen.extend(iter(events.readline, b"")), daemon=True)
    reader.start()
    for number in range(3):
        ask = {"worker_id": "w", "request_id": f"r{number}"}
        (trial,) = json.loads(proxy.call("POST", "/v1/studies/s/trials:ask", ask)[2])["trials"]
        before = len(seen)
        result = {"attempt": trial["attempt"], "state": "COMPLETE", "values": [0.5]}
        assert proxy.call("POST", f"/v1/studies/s/trials/{trial['number']}:tell", result)[0] == 200
        _wait_for(lambda before=before: len(seen) > before)


@pytest.mark.slow
def test_a_long_poll_waits_through_it(proxy: Proxy) -> None:
    space = {"x": {"type": "float", "low": 0, "high": 1}}
    proxy.call("POST", "/v1/studies", {"name": "paused", "search_space": space})
    proxy.call("POST", "/v1/studies/paused:pause")
    began = time.monotonic()
    ask = {"worker_id": "w", "request_id": "r", "wait_seconds": 3}
    status, _, body = proxy.call("POST", "/v1/studies/paused/trials:ask", ask)
    assert (status, json.loads(body)["trials"]) == (200, [])
    assert time.monotonic() - began >= 2.9


def test_a_head_that_is_too_large_is_refused_at_the_gate(proxy: Proxy) -> None:
    assert proxy.call("GET", "/version", X="a" * 60_000)[0] == 431


@pytest.mark.slow
def test_the_file_is_valid_with_a_public_name_and_in_its_canonical_form() -> None:
    public = {**os.environ, "HPO_DOMAIN": "hpo.example.org", "HPO_TLS": "someone@example.org"}
    subprocess.run(
        ["caddy", "validate", "--config", CADDYFILE, "--adapter", "caddyfile"],
        env=public,
        check=True,
        capture_output=True,
    )
    formatted = subprocess.run(["caddy", "fmt", CADDYFILE], check=True, capture_output=True, text=True)
    assert formatted.stdout == CADDYFILE.read_text()
