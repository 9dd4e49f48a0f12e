"""What the writer keeps in memory of a study that is being worked on, so that a hot call reads nothing from SQL.

A mirror holds the study's row, its rounds, and the trials that run or have just finished, with their reports. It is
true as long as nobody else has written the study: on SQLite nobody can; on PostgreSQL the revision is compared under
the lock. What a call changed in it is undone when the call is refused; all is forgotten when a commit fails.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hpo_service.domain.altered import altered
from hpo_service.domain.outage import Outage
from hpo_service.domain.sizes import size_of
from hpo_service.domain.study import Round, Study
from hpo_service.domain.trial import Trial, TrialState
from hpo_service.store.rows import with_counts
from hpo_service.store.trial_reports import KeptReport, TrialReports

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# Finished trials stay as long as somebody may ask for them again: a repeated tell, a look at the result.
JUST_FINISHED = 256
BYTES_A_TRIAL = 1024  # without what may be large
# As objects, JSON takes some four times the memory that it takes as text; a model's ranges and choices some ten times.
OBJECTS, MODELS = 4, 10


_ABSENT: Any = object()


class Undo:
    """What has to be put back when the call is refused."""

    def __init__(self) -> None:
        self._steps: list[tuple[Any, Any, Any]] = []  # a dict (or TrialReports), a key, what it held

    def set(self, kept: dict[K, V], key: K, value: V) -> None:
        self._steps.append((kept, key, kept.get(key, _ABSENT)))
        kept[key] = value

    def put(self, kept: TrialReports, step: int, report: KeptReport) -> None:
        self._steps.append((kept, step, kept.get(step, _ABSENT)))
        kept[step] = report

    def pop(self, kept: dict[K, V], key: K) -> None:
        if key in kept:
            self._steps.append((kept, key, kept.pop(key)))

    def mark(self) -> int:
        return len(self._steps)

    def run_to(self, mark: int = 0) -> None:
        while len(self._steps) > mark:
            kept, key, before = self._steps.pop()
            if before is _ABSENT:
                kept.pop(key, None)
            else:
                kept[key] = before

    def clear(self) -> None:
        self._steps.clear()


@dataclass
class Mirror:
    study: Study
    rounds: dict[int, Round]
    trials: dict[int, Trial] = field(default_factory=dict)
    reports: dict[int, TrialReports] = field(default_factory=dict)
    finished: deque[int] = field(default_factory=deque)
    # Bounds of the leases' ends: while the clock lies between them, no lease needs looking at.
    earliest: float = math.inf
    latest: float = -math.inf
    # What another server has changed, as it was last taken over: from a revision to the next, these trials.
    taken_over: tuple[int, int, list[Trial]] = (0, 0, [])
    # About how many bytes it takes, as counted after the last commit, and how many of them each trial.
    weight: int = 0
    weights: dict[int, int] = field(default_factory=dict)
    uncounted: set[int] = field(default_factory=set)

    def keep(self, trial: Trial, undo: Undo) -> None:
        """Take the trial as it now is."""
        undo.set(self.trials, trial.number, trial)
        self.uncounted.add(trial.number)
        if trial.state.is_finished:
            self.finished.append(trial.number)
        lease = trial.holding.lease
        if trial.state is TrialState.RUNNING and lease is not None:
            self.earliest = min(self.earliest, lease.expires_at)
            self.latest = max(self.latest, lease.expires_at)

    def take_over(self, study: Study, changed: list[Trial]) -> None:
        """Take what another server has made of the study, and the trials that it has changed."""
        self.taken_over = (self.study.revision, study.revision, changed)
        self.study = study
        self.rounds[study.round] = with_counts(self.rounds[study.round], study)
        for trial in changed:
            self.keep(altered(trial, weight=size_of(trial.metrics)) if trial.metrics else trial, Undo())
            self.reports.pop(trial.number, None)

    def forget_old(self) -> None:
        """Let go of what finished long ago; called after a commit."""
        while len(self.finished) > JUST_FINISHED:
            self._forget_finished()

    def _forget_finished(self) -> None:
        number = self.finished.popleft()
        known = self.trials.get(number)
        if known is not None and known.state.is_finished:
            del self.trials[number]
            self.reports.pop(number, None)
            self.uncounted.add(number)

    def count(self) -> int:
        """Count the bytes of what has changed since; return how many more there are than before."""
        before = self.weight
        if not before:
            spaces = sum(size_of(round_.search_space.model_dump(mode="json")) for round_ in self.rounds.values())
            self.weight = MODELS * spaces + OBJECTS * size_of([self.study.spec.objective, self.study.spec.metadata])
        for number in self.uncounted:
            now = self._weight_of(number)
            self.weight += now - self.weights.pop(number, 0)
            if now:
                self.weights[number] = now
        self.uncounted.clear()
        return self.weight - before

    def _weight_of(self, number: int) -> int:
        trial, reports = self.trials.get(number), self.reports.get(number)
        weight = 0 if trial is None else BYTES_A_TRIAL + OBJECTS * trial.weight
        return weight + (0 if reports is None else reports.weight)

    def lighten(self, by: int) -> int:
        """Let go of so many bytes, if it can: what has finished, then reports of what runs; return how many."""
        before = self.weight
        while self.finished and before - self.weight < by:
            self._forget_finished()
            self.count()
        for number in list(self.reports):
            if before - self.weight >= by:
                break
            del self.reports[number]
            self.uncounted.add(number)
            self.count()
        return before - self.weight

    def running(self) -> Iterable[Trial]:
        return (trial for trial in self.trials.values() if trial.state is TrialState.RUNNING)

    def lapsed(self, now: float, outages: Callable[[], Sequence[Outage]]) -> list[Trial]:
        """RUNNING trials whose lease has run out, by number. outages: asked for where one may have."""
        if self.earliest > now and self.latest <= now + self.study.spec.lease_seconds:
            return []
        held = [(trial, trial.holding.lease) for trial in self.running() if trial.holding.lease is not None]
        missed = outages() if held else ()
        self.earliest = min((lease.ends_at(missed) for _, lease in held), default=math.inf)
        self.latest = max((lease.expires_at for _, lease in held), default=-math.inf)
        over = [trial for trial, lease in held if lease.is_expired(now, missed)]
        return sorted(over, key=lambda trial: trial.number)
