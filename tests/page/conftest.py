"""A browser, and a server with keys and studies for it to look at: one of each for all tests of a file."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from hpo_service.domain.key import Scope
from hpo_service.operations import keys
from hpo_service.store import KeyTable
from tests.chromium import HOW_TO_GET_IT, chromium
from tests.forked import Fork
from tests.patience import PATIENCE_SECONDS

AXE = Path(__file__).parent / "axe" / "axe.min.js"
# axe.min.js of the npm package axe-core 4.14.1
AXE_SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SPACE: dict[str, Any] = {
    "learning_rate": {"type": "float", "low": 1e-6, "high": 1e-1, "log": True},
    "layers": {"type": "int", "low": 1, "high": 8},
    "optimizer": {"type": "categorical", "choices": ["sgd", "momentum"]},
    "momentum": {"type": "float", "low": 0.5, "high": 0.99, "when": {"optimizer": ["momentum"]}},
}
_numbers = itertools.count()
expect.set_options(timeout=PATIENCE_SECONDS * 1000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip(HOW_TO_GET_IT)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        started.on("disconnected", lambda _: None)
        yield started
        started.close()


class Served:
    """`hpo serve` with keys, and calls with the one for everything."""

    def __init__(self, fork: Fork, folder: Path, template: Path) -> None:
        self._fork = fork
        self.database = f"sqlite:///{folder}/hpo.db"
        shutil.copy(template, folder / "hpo.db")
        table = KeyTable(self.database)
        self.admin = keys.create(table, Scope.ADMIN).token
        self.read = keys.create(table, Scope.READ).token
        self.bound = keys.create(table, Scope.ADMIN, ["of-the-bound-key"]).token
        table.close()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self.process = self._fork("serve", "--port", str(self.port), "--database", self.database)
        assert self.process.stdout.readline(), "the server did not start"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.admin}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()}") from error

    # -- studies ------------------------------------------------------------------------------------------

    def create(self, prefix: str = "study", **fields: Any) -> str:
        name = fields.pop("name", f"{prefix}-{next(_numbers)}")
        body = {"name": name, "search_space": SPACE, "sampler": {"name": "random", "seed": 1}, "lease_seconds": 3600}
        self.call("POST", "/v1/studies", {**body, **fields})
        return str(name)

    def study(self, name: str) -> Any:
        return self.call("GET", f"/v1/studies/{name}")

    def ask(self, name: str, worker_id: str = "gpu-1") -> Any:
        body = {"worker_id": worker_id, "request_id": f"r{next(_numbers)}"}
        (trial,) = self.call("POST", f"/v1/studies/{name}/trials:ask", body)["trials"]
        return trial

    def report(self, name: str, number: int, *reports: tuple[int, Any]) -> None:
        body = {"attempt": 1, "reports": [{"step": step, "value": value} for step, value in reports]}
        self.call("POST", f"/v1/studies/{name}/trials/{number}:report", body)

    def tell(self, name: str, number: int, *values: float, state: str = "COMPLETE", **more: Any) -> None:
        told = {"values": list(values)} if values else {}
        self.call("POST", f"/v1/studies/{name}/trials/{number}:tell", {"attempt": 1, "state": state, **told, **more})

    def finish(self, name: str, *values: float) -> None:
        """Ask, report thrice and tell, for each value."""
        for value in values:
            number = self.ask(name)["number"]
            self.report(name, number, *((step, value * (step + 1) / 3) for step in range(3)))
            self.tell(name, number, value, metrics={"loss": 1 - value})


@pytest.fixture(scope="module")
def served(fork: Fork, tmp_path_factory: pytest.TempPathFactory, _sqlite_template: Path) -> Iterator[Served]:
    running = Served(fork, tmp_path_factory.mktemp("page"), _sqlite_template)
    yield running
    running.kill()


class Screen:
    """A tab: what it says on its console must not be an error, but for refusals that a test provokes."""

    def __init__(self, page: Page, served: Served) -> None:
        self.page, self.served = page, served
        self.errors: list[str] = []
        self.expected: tuple[int, ...] = ()
        page.on("console", lambda message: self._said(message) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.set_default_timeout(PATIENCE_SECONDS * 1000)

    def _said(self, message: Any) -> None:
        text = str(message.text)
        if not any(f"status of {status} " in text for status in self.expected):
            self.errors.append(f"{text} {message.location.get('url')}")

    def open(self, path: str = "/") -> Page:
        self.page.goto(f"{self.served.url}{path}")
        self.page.locator("h1").wait_for()
        return self.page

    def open_study(self, name: str) -> Page:
        page = self.open(f"/studies/{name}")
        page.get_by_text("live", exact=True).wait_for()
        return page

    def button(self, name: str) -> Any:
        return self.page.locator("main").get_by_role("button", name=name, exact=True)

    def in_dialog(self, name: str) -> Any:
        return self.page.get_by_role("dialog").get_by_role("button", name=name, exact=True)

    def has_key(self) -> None:
        """As if the key had been typed in before."""
        self.page.evaluate("key => sessionStorage.setItem('hpo-key', key)", self.served.admin)

    def violations(self) -> list[str]:
        """What axe finds: rule, and the elements that break it."""
        source = AXE.read_bytes()
        assert hashlib.sha256(source).hexdigest() == AXE_SHA256
        self.page.evaluate(source.decode())
        found = self.page.evaluate("() => axe.run(document).then((result) => result.violations)")
        return [f"{each['id']}: {[node['html'][:200] for node in each['nodes'][:3]]}" for each in found]

    def is_as_wide_as_the_window(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


MakeScreen = Callable[..., Screen]


@pytest.fixture
def make_screen(browser: Browser, served: Served) -> Iterator[MakeScreen]:
    """Tabs, each with cookies and passwords of its own; key: what the browser answers when it is asked, or None."""
    opened: list[tuple[BrowserContext, Screen]] = []

    def make(key: str | None = served.read, **how: Any) -> Screen:
        credentials = {} if key is None else {"http_credentials": {"username": "me", "password": key}}
        context = browser.new_context(**{"viewport": {"width": 1366, "height": 768}, **credentials, **how})
        screen = Screen(context.new_page(), served)
        opened.append((context, screen))
        return screen

    yield make
    errors = [error for _, screen in opened for error in screen.errors]
    for context, _ in opened:
        context.close()
    assert not errors


@pytest.fixture
def screen(make_screen: MakeScreen) -> Screen:
    return make_screen()
