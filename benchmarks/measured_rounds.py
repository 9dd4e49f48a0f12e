"""A round of a contestant's workers: what it took, and the proof that its trials are there."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from contestants import Contestant
from loads import Load
from processes import NAN, cpu_seconds, family_cpu_seconds, in_child, machine_seconds, resident_bytes
from worker_team import Done, Team, team

PREPARING_SECONDS = 600.0
MAY_GROW = 0.1  # of its history a study may have been added by earlier rounds; then it is made anew
MIB = 2**20


class Lost(Exception):
    """A contestant does not have the trials that its workers have told."""


@dataclass(frozen=True)
class Pace:
    """workers: processes; trials and seconds: of a round, which ends with the first of the two."""

    workers: int
    trials: int
    seconds: float


@dataclass(frozen=True)
class Figures:
    """Of one round. Milliseconds of asks and tells; microseconds of CPU a trial; nan where there is nothing to see.

    server_cpu is of all servers together, `busiest_server` of the one that used most, as a share of one core.
    """

    trials: int
    trials_per_second: float
    ask_p50: float
    ask_p99: float
    tell_p50: float
    tell_p99: float
    server_cpu: float
    database_cpu: float
    worker_cpu: float
    busiest_server: float
    idle: float  # of the machine's CPUs, as a share
    server_mib: float


@dataclass(frozen=True)
class Row:
    """A line of a table: what was measured where, and its rounds. run: when it began; ratios hold within one run."""

    run: str
    part: str
    contestant: str
    load: str
    history: int
    setting: str
    rounds: tuple[Mapping[str, float], ...]

    def median(self, field: str) -> float:
        return statistics.median(figures[field] for figures in self.rounds)

    @property
    def place(self) -> tuple[str, str, str, int, str]:
        """What a later measurement of the same replaces."""
        return self.part, self.contestant, self.load, self.history, self.setting

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, read: Mapping[str, Any]) -> Self:
        return cls(**{**read, "rounds": tuple(read["rounds"])})


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them do not exceed; nan of none."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else NAN


class _Meter:
    """CPU used between two looks."""

    def __init__(self, servers: Sequence[int], postmaster: int | None) -> None:
        self._servers, self._postmaster = servers, postmaster
        self._before = self._look()

    def _look(self) -> tuple[float, list[float], float, float, float]:
        database = NAN if self._postmaster is None else family_cpu_seconds(self._postmaster)
        return time.perf_counter(), [cpu_seconds(pid) for pid in self._servers], database, *machine_seconds()

    def used(self) -> tuple[float, list[float], float, float]:
        """Seconds by the clock, seconds of CPU of each server and of PostgreSQL, and the machine's idle share."""
        began, servers_before, database_before, busy_before, idle_before = self._before
        now, servers, database, busy, idle = self._look()
        free, given = idle - idle_before, busy - busy_before
        used = [after - before for after, before in zip(servers, servers_before, strict=True)]
        return now - began, used, database - database_before, free / (free + given) if free + given > 0 else NAN


def figures_of(
    done: Done, elapsed: float, servers: Sequence[float], database: float, idle: float, mib: float
) -> Figures:
    asks, tells = sorted(done.asks), sorted(done.tells)
    trials = len(tells)
    micro = 1e6 / trials
    return Figures(
        trials=trials,
        trials_per_second=trials / elapsed,
        ask_p50=quantile(asks, 0.5) * 1e3,
        ask_p99=quantile(asks, 0.99) * 1e3,
        tell_p50=quantile(tells, 0.5) * 1e3,
        tell_p99=quantile(tells, 0.99) * 1e3,
        server_cpu=sum(servers) * micro if servers else NAN,
        database_cpu=database * micro,
        worker_cpu=done.cpu * micro,
        busiest_server=max(servers, default=NAN) / elapsed,
        idle=idle,
        server_mib=mib,
    )


class Stand:
    """A contestant with a study of some size, its workers, and the account of how many trials there must be."""

    def __init__(
        self,
        contestant: Contestant,
        load: Load,
        history: int,
        crew: Team,
        pace: Pace,
        postmaster: int | None = None,
    ) -> None:
        self.contestant, self.load, self.history = contestant, load, history
        self._team, self._pace, self._postmaster = crew, pace, postmaster
        self.study = ""
        self._past = self._added = 0
        self.rounds: list[Figures] = []

    def renew(self) -> None:
        """Make a study for the next round, unless there is one already that is worth keeping."""
        if self.study and self._added <= MAY_GROW * self.history:
            return
        contestant, load, history = self.contestant, self.load, self.history
        self.study = in_child(lambda: contestant.prepare(load, history), PREPARING_SECONDS)
        self._past = history * len(self.study.split())
        self._added = self._team.open(self.study)

    def round(self) -> Figures:
        """Measure, and check that every trial is there."""
        self.renew()
        meter = _Meter(self.contestant.server_pids, self._postmaster)
        done = self._team.run(self._pace.trials, self._pace.seconds)
        elapsed, servers, database, idle = meter.used()
        self._added += len(done.tells)
        self.check(by_row=False)
        mib = sum(map(resident_bytes, self.contestant.server_pids)) / MIB if servers else NAN
        figures = figures_of(done, elapsed, servers, database, idle, mib)
        self.rounds.append(figures)
        return figures

    def check(self, *, by_row: bool = True) -> None:
        """Raise Lost unless the study has its history and every trial told, all COMPLETE."""
        contestant, study = self.contestant, self.study
        if contestant.in_one_process:
            found = self._team.complete(study, by_row)
        else:
            found = in_child(lambda: contestant.complete(study, by_row=by_row), PREPARING_SECONDS)
        if found != self._past + self._added:
            told = f"{self._past:,} were there and {self._added:,} were told to it"
            raise Lost(f"{contestant.name} has {found:,} COMPLETE trials, when {told}")


@contextlib.contextmanager
def stand(
    contestant: Contestant, load: Load, history: int, pace: Pace, postmaster: int | None = None
) -> Iterator[Stand]:
    with team(contestant, load, pace.workers) as crew:
        yield Stand(contestant, load, history, crew, pace, postmaster)


def in_turns(stands: Sequence[Stand], rounds: int) -> None:
    """So many rounds of each, alternating; then every row is looked at."""
    for _ in range(rounds):
        for one in stands:
            one.round()
    for one in stands:
        one.check()
