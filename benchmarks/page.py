"""What the page takes: to show a large study for the first time, and of the workers while three tabs look on.

Beside the workers the browser has the lowest priority, since it would run on another machine. All times are of one run.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.sync_api import Browser, Page, sync_playwright
from processes import serving

from tests.chromium import HOW_TO_GET_IT, chromium

SPACE = {
    "learning_rate": {"type": "float", "low": 1e-6, "high": 1e-1, "log": True},
    "weight_decay": {"type": "float", "low": 1e-8, "high": 1e-3, "log": True},
    "units": {"type": "int", "low": 32, "high": 256},
    "optimizer": {"type": "categorical", "choices": ["sgd", "momentum", "adam"]},
}
AT_ONCE = 1_000_000  # bytes of a body, about
TABS = 3


class Calls:
    """One connection to the server."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        content = None if body is None else json.dumps(body)
        self._connection.request(method, path, content, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        read = answer.read()
        assert answer.status < 300, (method, path, answer.status, read[:300])
        return json.loads(read)


def create(call: Calls, name: str) -> None:
    call("POST", "/v1/studies", {"name": name, "search_space": SPACE, "sampler": {"name": "random", "seed": 1}})


def trial(rng: random.Random, reports: int) -> dict[str, Any]:
    rate = 10 ** rng.uniform(-6, -1)
    params = {"learning_rate": rate, "weight_decay": 10 ** rng.uniform(-8, -3), "units": rng.randint(32, 256)}
    params["optimizer"] = rng.choice(["sgd", "momentum", "adam"])
    value = round(0.95 - 0.05 * (math.log10(rate) + 2.5) ** 2 + rng.gauss(0, 0.02), 4)
    curve = [{"step": step, "value": round(value * (1 - math.exp(-step / 9)), 4)} for step in range(reports)]
    return {"params": params, "state": "COMPLETE", "values": [value], "reports": curve}


def fill(call: Calls, name: str, trials: int, reports: int) -> None:
    create(call, name)
    rng = random.Random(7)
    size = max(1, min(1000, AT_ONCE // (300 + 36 * reports)))
    for start in range(0, trials, size):
        some = [trial(rng, reports) for _ in range(min(size, trials - start))]
        call("POST", f"/v1/studies/{name}/trials:import", {"trials": some})


@contextmanager
def browsing() -> Iterator[Browser]:
    program = chromium()
    assert program is not None, HOW_TO_GET_IT
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def stand_back() -> None:
    """Give what this process has started, the browser but not the server, the lowest priority."""
    children = {int(pid): _parent(pid) for pid in os.listdir("/proc") if pid.isdigit()}
    below = {pid for pid in children if os.getpid() in _ancestors(pid, children)}
    for pid in below:
        with contextlib.suppress(OSError):
            if b"chrom" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
                os.setpriority(os.PRIO_PROCESS, pid, 19)


def _parent(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid := parents.get(pid, 0):
        yield pid


def first_paint(page: Page, url: str, name: str) -> tuple[float, float]:
    """Seconds from the call for the page until its trials stand there; and the memory of the tab in MB."""
    began = time.perf_counter()
    page.goto(f"{url}/studies/{name}")
    page.locator("table.trials tbody tr").nth(50).wait_for(timeout=120_000)
    took = time.perf_counter() - began
    page.wait_for_timeout(3000)
    return took, page.evaluate("performance.memory.usedJSHeapSize") / 1e6


class Workers:
    """Ask, report five times and tell, again and again; how long each ask took is kept while `measuring`."""

    def __init__(self, url: str, name: str, count: int) -> None:
        self.asks: list[float] = []
        self.measuring = False
        self._ended = False
        self._threads = [threading.Thread(target=self._work, args=(url, name, number)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _work(self, url: str, name: str, worker: int) -> None:
        call = Calls(url)
        n = 0
        while not self._ended:
            n += 1
            began = time.perf_counter()
            body = {"worker_id": f"w{worker}", "request_id": f"{worker}-{n}"}
            (given,) = call("POST", f"/v1/studies/{name}/trials:ask", body)["trials"]
            if self.measuring:
                self.asks.append(time.perf_counter() - began)
            path = f"/v1/studies/{name}/trials/{given['number']}"
            for step in range(5):
                call("POST", f"{path}:report", {"attempt": 1, "reports": [{"step": step, "value": step / 5}]})
                time.sleep(0.02)
            call("POST", f"{path}:tell", {"attempt": 1, "state": "COMPLETE", "values": [1.0]})

    def measured(self, seconds: float) -> list[float]:
        self.asks = []
        self.measuring = True
        time.sleep(seconds)
        self.measuring = False
        return self.asks

    def end(self) -> None:
        self._ended = True
        for thread in self._threads:
            thread.join()


def beside_tabs(browser: Browser, url: str, workers: int, seconds: float, rounds: int) -> None:
    """Asks without a tab and with three, in turn."""
    create(Calls(url), "worked-at")
    team = Workers(url, "worked-at", workers)
    found: dict[bool, list[list[float]]] = {False: [], True: []}
    try:
        for _ in range(rounds):
            found[False].append(team.measured(seconds))
            context = browser.new_context()
            for _ in range(TABS):
                context.new_page().goto(f"{url}/studies/worked-at")
            stand_back()
            time.sleep(2)
            found[True].append(team.measured(seconds))
            context.close()
            time.sleep(1)
    finally:
        team.end()
    p50, p99 = (
        [statistics.median(_quantile(asks, q) for asks in found[tabs]) for tabs in (False, True)] for q in (50, 99)
    )
    print(f"ask without a tab: p50 {p50[0] * 1e3:.1f} ms, p99 {p99[0] * 1e3:.1f} ms")
    print(f"ask with {TABS} tabs: p50 {p50[1] * 1e3:.1f} ms, p99 {p99[1] * 1e3:.1f} ms")
    print(f"with / without: p50 {p50[1] / p50[0]:.2f}, p99 {p99[1] / p99[0]:.2f}")


def _quantile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--trials", type=int, nargs="*", default=[10_000, 100_000], help="of studies to be shown")
    options.add_argument("--reports", type=int, default=50, help="of each trial, up to 10,000 trials; then 2")
    options.add_argument("--workers", type=int, default=4)
    options.add_argument("--seconds", type=float, default=8.0, help="of a round of asks")
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(f"sqlite:///{folder}/hpo.db") as (url, _),
        browsing() as browser,
    ):
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        page.goto(url)  # what the server loads at its first call is not the page's
        for trials in given.trials:
            reports = given.reports if trials <= 10_000 else 2
            name = f"of-{trials}"
            fill(Calls(url), name, trials, reports)
            took = [first_paint(page, url, name) for _ in range(3)]
            seconds, megabytes = statistics.median(paint for paint, _ in took), took[-1][1]
            print(f"{trials:,} trials with {reports} reports each: painted after {seconds:.2f} s; {megabytes:.0f} MB")
        beside_tabs(browser, url, given.workers, given.seconds, given.rounds)


if __name__ == "__main__":
    main()
