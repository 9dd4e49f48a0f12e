"""What reading a large study costs the workers that run in it: pages, the study, the dashboard, an export."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import urllib3
from contestants import Service
from loads import RANDOM
from measured_rounds import Pace, Row, Stand, stand
from processes import NAN, calm, ended, received, tried

from hpo_service.client import Client

PART = "reads beside"
PAGE = 200
PATIENCE = urllib3.Timeout(connect=10.0, read=300.0)
ALONE = "alone"

Reading = Callable[[], object]


class Reader:
    """Reads one study, each kind of reading going on where the last of its kind has stopped."""

    def __init__(self, url: str, study: str) -> None:
        self._url, self._study = url, study
        self._client, self._http = Client(url, timeout=300.0), urllib3.PoolManager(retries=False)
        self._trials: Iterator[dict[str, Any]] = iter(())

    def page(self) -> None:
        """The next page of trials."""
        if not list(itertools.islice(self._trials, PAGE)):
            self._trials = self._client.trials(self._study, page_size=PAGE)
            assert list(itertools.islice(self._trials, PAGE))

    def study(self) -> None:
        assert self._client.study(self._study)["name"] == self._study

    def dashboard(self) -> None:
        """The page, and what it asks for when a study is opened."""
        self._get("/dashboard")
        studies = self._get("/api/studies").json()["study_summaries"]
        (number,) = (each["study_id"] for each in studies if each["study_name"] == self._study)
        assert self._get(f"/api/studies/{number}").json()["trials"]

    def export(self) -> None:
        assert sum(map(len, self._client.export(self._study, "csv")))

    def _get(self, path: str) -> urllib3.BaseHTTPResponse:
        answer = self._http.request("GET", self._url + path, timeout=PATIENCE)
        assert answer.status == 200, (path, answer.status)
        return answer


# what one process reads, in turn, for as long as a round takes
BESIDE: Mapping[str, Sequence[str]] = {
    "pages and the study": ("page", "study"),
    "the dashboard": ("dashboard",),
    "exports": ("export",),
    "all in turn": ("page", "study", "dashboard", "export"),
}


def read(url: str, study: str, kinds: Sequence[str], pause: float, pipe: Connection) -> None:
    """Read until told to stop; answer with the seconds of each reading that was done, by its kind."""
    took: dict[str, list[float]] = {kind: [] for kind in kinds}
    failures: list[Exception] = []

    def keep_reading() -> None:
        reader = Reader(url, study)
        for kind in itertools.cycle(kinds):
            began = time.perf_counter()
            try:
                getattr(reader, kind)()
            except Exception as error:
                failures.append(error)
                return
            took[kind].append(time.perf_counter() - began)
            time.sleep(pause)

    threading.Thread(target=keep_reading, daemon=True).start()  # one that is under way is not waited for
    pipe.poll(None)

    def answer() -> dict[str, list[float]]:
        if failures:
            raise failures[0]
        return {kind: list(seconds) for kind, seconds in took.items()}

    pipe.send(tried(answer))


def beside(
    run: str,
    contestants: Sequence[Service],
    history: int,
    pace: Pace,
    rounds: int,
    pause: float,
    postmaster: int | None,
) -> Iterator[list[Row]]:
    """The rows of one contestant after the other: alone, and beside each kind of reading, in turns.

    pause: seconds between two readings. Without one the reader takes a core from server and workers, when it can.
    """
    for contestant in contestants:
        with stand(contestant, RANDOM, history, pace, postmaster) as workers:
            found: dict[str, list[dict[str, float]]] = {setting: [] for setting in (ALONE, *BESIDE)}
            for _ in range(rounds):
                for setting, figures in found.items():
                    figures.append(_round(contestant, workers, BESIDE.get(setting, ()), pause))
                    calm(contestant.server_pids[0])
            workers.check()
        yield [
            Row(run, PART, contestant.name, RANDOM.name, history, setting, tuple(figures))
            for setting, figures in found.items()
        ]


def _round(contestant: Service, workers: Stand, kinds: Sequence[str], pause: float) -> dict[str, float]:
    if not kinds:
        return asdict(workers.round())
    workers.renew()
    with ended(lambda pipe: read(contestant.url, workers.study, kinds, pause, pipe)) as pipe:
        time.sleep(0.1)  # the reader has begun
        figures = asdict(workers.round())
        pipe.send("stop")
        took: dict[str, list[float]] = received(pipe, 30.0, "the reader")
    readings = [f"{kind}_readings" for kind in took], [f"{kind}_seconds" for kind in took]
    counted = dict(zip(readings[0], (float(len(some)) for some in took.values()), strict=True))
    middle = (sorted(some)[len(some) // 2] if some else NAN for some in took.values())
    return figures | counted | dict(zip(readings[1], middle, strict=True))
