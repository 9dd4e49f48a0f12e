"""Worker processes that do trials side by side, kept for several rounds, so that what they have read is read once."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from contestants import Contestant, Worker
from loads import Load, rising
from processes import ended, received, tried

WARM_UP = 1  # trial of each worker: connections and imports are not what is measured
OPENING_SECONDS = 300.0  # Optuna's in-memory study is made in here, and its workers read what is there
OVERTIME = 60.0  # a trial that began in time may take so long


@dataclass(frozen=True)
class Done:
    """The trials of one worker or of all: seconds of each ask and tell, CPU seconds of the workers.

    asks: those that were calls of their own.
    """

    asks: tuple[float, ...]
    tells: tuple[float, ...]
    cpu: float


class Member:
    """What one worker process does when told to."""

    def __init__(self, contestant: Contestant, load: Load, place: int) -> None:
        self._contestant, self._load, self._place = contestant, load, place
        self._worker: Worker | None = None

    def open(self, study: str) -> int:
        """Trials done in it, to warm up."""
        self._worker = self._contestant.open(study, self._load, self._place)
        return len(self.run(WARM_UP, float("inf")).tells)

    def run(self, trials: int, seconds: float) -> Done:
        """So many trials, or as many as begin in so many seconds."""
        assert self._worker is not None
        worker, clock = self._worker, time.perf_counter
        asks: list[float] = []
        tells: list[float] = []
        cpu, until = time.process_time(), clock() + seconds
        while len(tells) < trials and (began := clock()) < until:
            number = worker.ask()
            if worker.asks_apart:
                asks.append(clock() - began)
            for step in range(self._load.reports):
                worker.report(rising(number, step), step)
            began = clock()
            worker.tell(rising(number, self._load.reports))
            tells.append(clock() - began)
        return Done(tuple(asks), tuple(tells), time.process_time() - cpu)

    def complete(self, study: str, by_row: bool) -> int:
        return self._contestant.complete(study, by_row=by_row)


class Team:
    def __init__(self, name: str, pipes: Sequence[Connection]) -> None:
        self._name, self._pipes = name, pipes

    def open(self, study: str) -> int:
        """Trials done in it, to warm up."""
        return sum(self._all("open", study, limit=OPENING_SECONDS))

    def run(self, trials: int, seconds: float) -> Done:
        """Trials of all workers together; more than given only where they cannot be split evenly."""
        each = -(-trials // len(self._pipes))
        done: list[Done] = self._all("run", each, seconds, limit=seconds + OVERTIME)
        return Done(
            tuple(second for one in done for second in one.asks),
            tuple(second for one in done for second in one.tells),
            sum(one.cpu for one in done),
        )

    def complete(self, study: str, by_row: bool) -> int:
        """What the first worker counts."""
        self._pipes[0].send(("complete", study, by_row))
        return int(received(self._pipes[0], OPENING_SECONDS, self._name))

    def _all(self, verb: str, *arguments: Any, limit: float) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((verb, *arguments))
        until = time.monotonic() + limit
        return [received(pipe, max(0.0, until - time.monotonic()), f"{self._name}: {verb}") for pipe in self._pipes]


@contextlib.contextmanager
def team(contestant: Contestant, load: Load, workers: int) -> Iterator[Team]:
    """Workers in processes of their own; one where the contestant has no storage to share."""
    parent = os.getpid()
    with contextlib.ExitStack() as running:
        pipes = [
            running.enter_context(ended(partial(_obey, Member(contestant, load, place), parent)))
            for place in range(1 if contestant.in_one_process else workers)
        ]
        yield Team(contestant.name, pipes)


def _obey(member: Member, parent: int, pipe: Connection) -> None:
    """Do what is told until nobody is there to tell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            # forked brothers hold the other end too: its closing alone cannot be relied on
            while not pipe.poll(1.0):
                if os.getppid() != parent:
                    return
            verb, *arguments = pipe.recv()
            pipe.send(tried(partial(getattr(member, verb), *arguments)))
