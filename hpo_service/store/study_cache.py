"""What the writer keeps in memory of the studies that are being worked on, so that a worker's call reads no SQL.

Of a study that is its row, its rounds, and the trials that run or have just finished, with their reports. It is true as
long as nobody else has written the study: on SQLite nobody can; on PostgreSQL the revision is compared under the lock.
A call's changes enter it when the call is kept (`transaction.py`); all of it is dropped when a commit fails.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hpo_service.domain.fast_replace import fast_replace
from hpo_service.domain.outage import Outage
from hpo_service.domain.sizes import MIB, size_of
from hpo_service.domain.study import Round, Study, StudySpec
from hpo_service.domain.trial import Trial, TrialState
from hpo_service.store.outages import KnownOutages, Uptime
from hpo_service.store.refusals import Refusals
from hpo_service.store.rows import with_counts
from hpo_service.store.study_lock import DatabaseClock
from hpo_service.store.trial_reports import TrialReports

# Finished trials that are kept: a tell may be repeated, or the result be read.
JUST_FINISHED = 256
BYTES_A_TRIAL = 1024  # without what may be large
MOST_STUDIES = 500
MOST_BYTES = 64 * MIB  # of all studies together
# As objects, JSON takes some four times the memory that it takes as text; a model's ranges and choices some ten times.
OBJECTS, MODELS = 4, 10


@dataclass
class CachedStudy:
    study: Study
    rounds: dict[int, Round]
    trials: dict[int, Trial] = field(default_factory=dict)
    reports: dict[int, TrialReports] = field(default_factory=dict)
    finished: deque[int] = field(default_factory=deque)
    # Earliest and latest end of a lease. No lease is checked before the earliest, unless the clock was put back.
    earliest: float = math.inf
    latest: float = -math.inf
    # The changes last read from another server: revision before, revision after, changed trials.
    foreign_changes: tuple[int, int, list[Trial]] = (0, 0, [])
    # Estimated bytes in memory, as of the last commit; of the spec; and of each trial's metrics and reports, the parts
    # that may be large.
    weight: int = 0
    spec_weight: tuple[StudySpec | None, int] = (None, 0)
    weights: dict[int, int] = field(default_factory=dict)
    weight_of_large: int = 0  # the sum of these
    uncounted: set[int] = field(default_factory=set)  # numbers of trials whose `weights` may have changed

    def store(self, trial: Trial) -> None:
        """Store the trial in its new state."""
        self.trials[trial.number] = trial
        if trial.weight:
            self.uncounted.add(trial.number)
        if trial.state.is_finished:
            self.finished.append(trial.number)
        lease = trial.lifecycle.lease
        if trial.state is TrialState.RUNNING and lease is not None:
            self.earliest = min(self.earliest, lease.expires_at)
            self.latest = max(self.latest, lease.expires_at)

    def drop_reports(self, number: int) -> None:
        self.reports.pop(number, None)
        self.uncounted.add(number)

    def apply_foreign_changes(self, study: Study, changed: list[Trial]) -> None:
        """Store the study as another server has written it, and the trials that it has changed."""
        self.foreign_changes = (self.study.revision, study.revision, changed)
        self.study = study
        self.rounds[study.round] = with_counts(self.rounds[study.round], study)
        for trial in changed:
            self.store(fast_replace(trial, weight=size_of(trial.metrics)) if trial.metrics else trial)
            self.drop_reports(trial.number)

    def forget_old(self) -> None:
        """Drop trials that finished long ago; called after a commit."""
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
        """Count the bytes of what has changed since the last count; return by how many they have grown."""
        before = self.weight
        if self.spec_weight[0] is not self.study.spec:  # its metadata may have changed, or its search space has grown
            self.spec_weight = self.study.spec, self._weight_of_spec()
        while self.uncounted:
            number = self.uncounted.pop()
            now = self._weight_of_large(number)
            self.weight_of_large += now - self.weights.pop(number, 0)
            if now:
                self.weights[number] = now
        self.weight = self.spec_weight[1] + BYTES_A_TRIAL * len(self.trials) + self.weight_of_large
        return self.weight - before

    def _weight_of_spec(self) -> int:
        spec = self.study.spec
        spaces = sum(size_of(round_.search_space.model_dump(mode="json")) for round_ in self.rounds.values())
        return MODELS * spaces + OBJECTS * size_of([spec.objective, spec.metadata])

    def _weight_of_large(self, number: int) -> int:
        trial, reports = self.trials.get(number), self.reports.get(number)
        return (0 if trial is None else OBJECTS * trial.weight) + (0 if reports is None else reports.weight)

    def evict_bytes(self, by: int) -> int:
        """Free so many bytes if possible: finished trials, then reports of running ones; return how many."""
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
        """RUNNING trials whose lease has run out, by number. outages: called only if one may have."""
        if self.earliest > now and self.latest <= now + self.study.spec.lease_seconds:
            return []
        held = [(trial, trial.lifecycle.lease) for trial in self.running() if trial.lifecycle.lease is not None]
        missed = outages() if held else ()
        self.earliest = min((lease.ends_at(missed) for _, lease in held), default=math.inf)
        self.latest = max((lease.expires_at for _, lease in held), default=-math.inf)
        over = [trial for trial, lease in held if lease.is_expired(now, missed)]
        return sorted(over, key=lambda trial: trial.number)


class StudyCache:
    """What a server remembers between transactions. Changed only by the holder of the write lock, in any thread.

    Only `uptime` and `refusals` are told from without, too: of a beat that was committed, of calls that were given up.
    """

    def __init__(self) -> None:
        self.studies: OrderedDict[int, CachedStudy] = OrderedDict()  # the least recently written one first
        self.weight = 0  # of all of them
        self.ids: dict[str, int] = {}
        self.draining: frozenset[str] | None = None
        self.draining_read_at = 0.0
        self.database_clock = DatabaseClock()
        self.uptime = Uptime()
        self.outages: KnownOutages | None = None
        self.refusals = Refusals(self.uptime.elapsed)
        self._others_wrote: dict[str, float] = {}  # by study: when another server's write was last noticed

    def note_foreign_write(self, name: str) -> None:
        """Another server has written the study."""
        self._others_wrote.pop(name, None)
        self._others_wrote[name] = time.monotonic()  # the latest is the last
        while len(self._others_wrote) > MOST_STUDIES:
            del self._others_wrote[next(iter(self._others_wrote))]

    def had_foreign_write(self, name: str, seconds: float) -> bool:
        """Whether another server's write in the study was noticed within the last `seconds`."""
        return time.monotonic() - self._others_wrote.get(name, -math.inf) <= seconds

    def trial_id(self, study_id: int, number: int) -> int | None:
        """The id under which the trial was inserted, if it is cached."""
        cached = self.studies.get(study_id)
        trial = None if cached is None else cached.trials.get(number)
        return None if trial is None else trial.id

    def take_ids(self, ids: Mapping[tuple[int, int], int]) -> None:
        """ids: of trials that were just inserted, by study and number."""
        for (study_id, number), key in ids.items():
            cached = self.studies.get(study_id)
            if cached is not None and number in cached.trials:
                cached.trials[number] = fast_replace(cached.trials[number], id=key)

    def forget(self, study_id: int) -> None:
        cached = self.studies.pop(study_id, None)
        if cached is not None:
            self.weight -= cached.weight
            self.ids.pop(cached.study.name, None)

    def forget_study(self, name: str) -> None:
        if name in self.ids:
            self.forget(self.ids[name])

    def forget_all(self) -> None:
        self.studies.clear()
        self.weight = 0
        self.ids.clear()
        self.draining = None

    def add(self, cached: CachedStudy) -> None:
        """Add a study that was read; what is over the limits is evicted after the commit."""
        self.studies[cached.study.id] = cached
        self.ids[cached.study.name] = cached.study.id
        self.weight += cached.count()

    def trials_were_taken(self, study_ids: Iterable[int]) -> None:
        """The database has taken trials of these studies: the spans of their refusals end."""
        if self.refusals:
            for study_id in study_ids:
                if study_id in self.studies:
                    self.refusals.end(self.studies[study_id].study.name)

    def committed(self, saved_studies: Iterable[int]) -> None:
        for study_id in saved_studies:
            if study_id in self.studies:
                cached = self.studies[study_id]
                cached.forget_old()
                self.weight += cached.count()
                self.studies.move_to_end(study_id)
        while len(self.studies) > MOST_STUDIES or (self.weight > MOST_BYTES and len(self.studies) > 1):
            self.forget(next(iter(self.studies)))
        if self.weight > MOST_BYTES:
            self.weight -= next(iter(self.studies.values())).evict_bytes(self.weight - MOST_BYTES)
