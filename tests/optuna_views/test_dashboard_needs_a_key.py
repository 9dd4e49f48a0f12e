"""The dashboard and the API's page in a real browser, behind the server's door: the key is the password."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpo_service.client import Client
from hpo_service.domain.key import Scope
from hpo_service.operations import keys
from hpo_service.store import KeyTable, upgrade
from tests.chromium import HOW_TO_GET_IT, chromium
from tests.forked import Fork
from tests.patience import PATIENCE_SECONDS

CHROMIUM = chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=HOW_TO_GET_IT)


@pytest.fixture(scope="module")
def host_and_key(fork: Fork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A server with a finished study, and a key that may only read."""
    database = f"sqlite:///{tmp_path_factory.mktemp('server')}/hpo.db"
    upgrade(database)
    table = KeyTable(database)
    admin, reader = (keys.create(table, scope).token for scope in (Scope.ADMIN, Scope.READ))
    table.close()
    server = fork("serve", "--port", "0", "--json", HPO_DATABASE_URL=database)
    url = json.loads(server.stdout.readline())["url"]
    with Client(url, admin) as client:
        space = {"width": {"type": "float", "low": 0.0, "high": 1.0}}
        study = client.create_study("behind-the-door", search_space=space)
        study.optimize(lambda trial: float(str(trial.params["width"])), n_trials=6)
    yield url.removeprefix("http://"), reader
    server.terminate()
    server.communicate()


# Chromium reads the descriptor 3 and writes to 4
AS_3_AND_4 = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """Chromium, spoken to by its DevTools protocol over two pipes: somebody types this password whenever it asks."""

    def __init__(self, password: str, folder: Path) -> None:
        assert CHROMIUM is not None
        self.asked: list[str] = []
        self._password, self._number = password, 0
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        options = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
            *("--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"),
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-c", AS_3_AND_4, str(to_read), str(to_write), CHROMIUM, *options],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        self.call("Fetch.enable", handleAuthRequests=True)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def text(self, url: str, awaited: str) -> str:
        """What the page shows as soon as it holds the word, or after 30 seconds."""
        self.call("Page.navigate", url=url)
        shown = ""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while awaited not in shown and time.monotonic() < deadline:
            result = self.call("Runtime.evaluate", expression="document.documentElement.innerText")["result"]
            shown = str(result.get("value", ""))
            time.sleep(0.2)
        return shown

    def call(self, method: str, **params: Any) -> Any:
        number = self._send(method, params)
        while True:
            message = self._next()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._react(message.get("method"), message.get("params", {}))

    def _react(self, event: str | None, params: Any) -> None:
        if event == "Fetch.authRequired":
            self.asked.append(params["request"]["url"])
            answer = {"response": "ProvideCredentials", "username": "anybody", "password": self._password}
            self._send("Fetch.continueWithAuth", {"requestId": params["requestId"], "authChallengeResponse": answer})
        elif event == "Fetch.requestPaused":
            self._send("Fetch.continueRequest", {"requestId": params["requestId"]})

    def _send(self, method: str, params: Any) -> int:
        self._number += 1
        session = {"sessionId": self._session} if hasattr(self, "_session") else {}
        message = {"id": self._number, "method": method, "params": params, **session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        return self._number

    def _next(self) -> Any:
        while b"\0" not in self._buffer:
            assert select.select([self._from], [], [], 30)[0], "the browser says nothing"
            got = os.read(self._from, 2**20)
            assert got, "the browser has ended"
            self._buffer += got
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@pytest.fixture
def browser(host_and_key: tuple[str, str], tmp_path: Path) -> Iterator[Browser]:
    opened = Browser(host_and_key[1], tmp_path)
    yield opened
    opened.close()


@pytest.mark.slow
def test_with_the_key_as_password_the_page_shows_the_study(browser: Browser, host_and_key: tuple[str, str]) -> None:
    host, key = host_and_key
    shown = browser.text(f"http://{host}/dashboard/studies/1", "behind-the-door")
    assert "behind-the-door" in shown
    assert "width" in browser.text(f"http://{host}/dashboard/studies/1/trials", "width")
    assert browser.asked
    assert not any(key in url for url in browser.asked)


@pytest.mark.slow
def test_with_the_key_as_password_the_apis_page_shows_its_routes(
    browser: Browser, host_and_key: tuple[str, str]
) -> None:
    shown = browser.text(f"http://{host_and_key[0]}/docs", "/v1/studies")
    assert "/v1/studies" in shown


@pytest.mark.slow
def test_without_it_there_is_nothing_to_see(host_and_key: tuple[str, str]) -> None:
    host, _ = host_and_key
    for path in ("/dashboard", "/dashboard/studies/1", "/api/studies", "/static/bundle.js", "/favicon.ico", "/docs"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://{host}{path}", timeout=PATIENCE_SECONDS)
        assert refused.value.code == 401
        assert "Basic" in refused.value.headers["WWW-Authenticate"] + str(refused.value.headers)
        assert b"behind-the-door" not in refused.value.read()
