"""A study under load: servers, a crew of workers, and at the end the drain and the check."""

from __future__ import annotations

import itertools
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drills.crew import Crew
from drills.histories import read_histories
from drills.history_checker import Checker, read_record
from drills.nursery import Nursery
from drills.served import Server

STUDY: dict[str, Any] = {
    "name": "s",
    "search_space": {"x": {"type": "float", "low": 0.0, "high": 1.0}, "y": {"type": "float", "low": 0.0, "high": 1.0}},
    "sampler": {"name": "random", "seed": 1},
}

# What the study still gives out after the last fault: its end shows whether the limit is kept exactly.
TRIALS_AFTER_THE_LAST_FAULT = 16
LEASE_SECONDS = 1.0
DRAIN_SECONDS = 60.0
_BYTES_A_CALL = 300
# With a broken guarantee the drain may never end; and that is a finding too.
DRAIN_SECONDS_SABOTAGED = 12.0


class NotHere(Exception):
    """The drill needs something that this machine does not have or does not allow."""


@dataclass
class Outcome:
    """What a drill did and found.

    count: of the faults; acknowledged and unknown: of the workers' calls; measured: figures that the reader of the page
    compares with those of the sabotaged run, such as "peak 131 MB, silent for 0.2 s".
    """

    count: int = 0
    acknowledged: int = 0
    unknown: int = 0
    violations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    measured: str = ""

    def kinds(self) -> Counter[str]:
        return Counter(violation.split(":")[0] for violation in self.violations)


class Place:
    """Where a drill runs: a folder of its own, a nursery of servers, databases. Ends what was started."""

    def __init__(
        self, nursery: Nursery, postgres: Callable[[], Any], seed: int = 1, sabotage: str | None = None
    ) -> None:
        """postgres: the cluster, started when first wanted."""
        self.nursery = nursery
        self.sabotage = sabotage
        self.random = random.Random(seed)
        self.folder = Path(tempfile.mkdtemp(prefix="hpo-drill-"))
        self._postgres = postgres
        self._open = ExitStack()
        self._open.callback(shutil.rmtree, self.folder, ignore_errors=True)

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def at_end(self, do: Callable[..., object], *arguments: Any) -> None:
        self._open.callback(do, *arguments)

    @property
    def postgres(self) -> Any:
        return self._postgres()

    def sqlite_file(self) -> Path:
        return self.folder / "hpo.db"

    def sqlite(self) -> str:
        return f"sqlite:///{self.sqlite_file()}"

    def postgresql(self) -> str:
        """The URL of a fresh PostgreSQL database."""
        name = f"drill_{next(_databases)}_{time.monotonic_ns()}"
        self.postgres.execute(f"CREATE DATABASE {name}")
        self.at_end(self.postgres.execute, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        url: str = self.postgres.url(name)
        return url

    def server(self, database: str) -> Server:
        """A server, started, with the sabotage of this place."""
        server = self.unstarted(database)
        server.start()
        return server

    def unstarted(self, database: str) -> Server:
        server = Server(self.nursery, self.folder, database, self.sabotage)
        self.at_end(server.kill)
        return server

    def pause(self, at_least: float, at_most: float) -> None:
        time.sleep(self.random.uniform(at_least, at_most))


_databases = itertools.count()


class LoadedStudy:
    """`with` it the crew works; after the faults comes `drained`."""

    def __init__(
        self,
        place: Place,
        server: Server,
        crew: int = 8,
        ports: list[int] | None = None,
        lease_seconds: float = LEASE_SECONDS,
        attempts: int = 100,
        early_ends: int = 0,
        **orders: Any,
    ) -> None:
        self.place = place
        self.server = server
        self._early_ends = early_ends
        spec = {**STUDY, "lease_seconds": lease_seconds, "limits": {"attempts": attempts}}
        server.patiently("POST", "/v1/studies", spec)
        self.crew = Crew(place.folder, crew, ports or [server.port], **orders)

    def __enter__(self) -> LoadedStudy:
        self.crew.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.crew.__exit__()

    def work_on(self, calls: int = 25) -> None:
        """Let the crew make about so many calls, and then some: the next fault comes at a random moment of the load."""
        enough = self.crew.written() + calls * _BYTES_A_CALL
        deadline = time.monotonic() + DRAIN_SECONDS
        while self.crew.written() < enough and self.crew.is_busy() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.place.pause(0.0, 0.1)

    def finished(self) -> int:
        counts = self.server.patiently("GET", "/v1/studies/s")["counts"]
        return int(counts["COMPLETE"] + counts["PRUNED"] + counts["FAIL"])

    def wait_for_finished(self, trials: int, seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while self.finished() < trials and self.crew.is_busy() and time.monotonic() < deadline:
            time.sleep(0.1)

    def drained(self, count: int) -> Outcome:
        """Let the study come to its end, and check; count: of the faults."""
        server = self.server
        try:
            server.patiently("POST", "/v1/studies/s:pause")
            given_out = sum(server.patiently("GET", "/v1/studies/s")["counts"].values())
            limit = {"limits": {"trials": given_out + TRIALS_AFTER_THE_LAST_FAULT}}
            server.patiently("PATCH", "/v1/studies/s", limit)
            server.patiently("POST", "/v1/studies/s:resume")
            faults = self.crew.drain(DRAIN_SECONDS_SABOTAGED if self.place.sabotage else DRAIN_SECONDS)
            history = read_histories(self.crew.histories())
            checker = Checker(history, read_record(server, "s"), self._early_ends)
        except RuntimeError as refused:
            return Outcome(count, violations=[f"the study goes on after the last fault: {refused}"])
        violations = [f"the drain: {fault}" for fault in faults] + checker.violations()
        return Outcome(count, history.acknowledged, history.unknown, violations)
