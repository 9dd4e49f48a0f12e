"""A batch: the calls that share one transaction of the database and one fsync, one after the other.

Each call works on a `Transaction` of its own. Its changes are added to the batch when the call is kept, and dropped
when it is refused, so that a refused call does not affect the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from hpo_service import instruments
from hpo_service.domain.outage import Outage, disjoint
from hpo_service.domain.trial import AttemptEnd
from hpo_service.store import one_round_trip
from hpo_service.store.engine import Clock, database_time, is_full, is_lock_timeout
from hpo_service.store.outages import Beat, carried_beat, read_known
from hpo_service.store.pending_rows import PendingRows
from hpo_service.store.study_cache import StudyCache
from hpo_service.store.study_lock import AnswerKey, StudyLock, WouldBlock

DRAINING_SECONDS = 1.0  # how long the set of draining workers is cached on PostgreSQL
_DRAINING: one_round_trip.Statement = ("SELECT worker_id FROM hpo_workers WHERE draining", ())


class WriteBatch:
    """One transaction of the writer's connection.

    saved_studies: ids of the studies that its calls have saved; saved_trials_of: of those of which they have saved
    trials; changed_tuners: of those whose tuner has seen trials that are not committed yet.
    """

    failure: Exception | None = None  # writing the rows of earlier calls has failed, and so does the batch
    _has_rows = False
    _lock: StudyLock | None = None
    _now: float | None = None
    _outages: tuple[Outage, ...] | None = None
    _reads_draining = False
    _beat: Beat | None = None

    def __init__(
        self,
        connection: sa.Connection,
        cache: StudyCache,
        clock: Clock | None,
        *,
        shared: bool,
        optimistic: bool = False,
    ) -> None:
        """clock: None is the database's own. shared: whether other servers may write the same database.

        optimistic: without a lock, see StudyLock.
        """
        self.cache = cache
        self.shared = shared
        self.rows = PendingRows()
        self.saved_studies: set[int] = set()
        self.saved_trials_of: set[int] = set()
        self.changed_tuners: set[int] = set()
        self.lease_ends: dict[tuple[int, int | str, int], AttemptEnd | None] = {}  # study id, trial or test, attempt
        # Studies whose cache may be used: locked, or assumed to be current until the lock statement checks them.
        self.locked_or_assumed_current: set[str] = set()
        self._connection = connection
        self._clock = clock
        self._optimistic = optimistic

    @property
    def connection(self) -> sa.Connection:
        """The connection, with the studies locked. Raise WouldBlock."""
        if self._optimistic:
            raise WouldBlock
        return self._connection

    @property
    def now(self) -> float:
        """The time for all calls of the batch: read once, after its studies have been locked."""
        if self._now is None:
            if self._clock is not None:
                self._now = self._clock()
            elif self._lock is not None and self._lock.time is not None:
                self._now = self._lock.time
            else:
                self._now = database_time(self.connection)
        return self._now

    def time(self) -> float:
        """The clock read anew: other calls of the batch may have taken long since `now` was read."""
        return database_time(self.connection, self._clock)

    def outages(self, study: str) -> tuple[Outage, ...]:
        """Outages up to now: that time does not count against leases of the study. Raise WouldBlock."""
        if self._outages is None:
            known, uptime = self.cache.outages, self.cache.uptime
            if known is None or not known.is_fresh():
                known = self.cache.outages = read_known(self.connection, uptime.server_id)
            self._outages = known.until(self.now, uptime.outage(self.now))
        refused = self.cache.refusals.of(study, self.now)
        return disjoint([*self._outages, *refused]) if refused else self._outages

    def is_draining(self, worker_id: str) -> bool:
        cache = self.cache
        old = self.shared and abs(self.now - cache.draining_read_at) >= DRAINING_SECONDS
        if cache.draining is None or old:
            found = self.connection.exec_driver_sql(_DRAINING[0])
            cache.draining = frozenset(found.scalars())
            cache.draining_read_at = self.now
        return worker_id in cache.draining

    def lock(self, names: Sequence[str], requests: Sequence[tuple[str, str]]) -> None:
        """Lock the studies on PostgreSQL. An optimistic batch only checks whether it may run unlocked, or WouldBlock.

        requests: (study, request_id) of each ask.
        """
        if self.shared and names:
            self._lock = StudyLock(self._connection, self.cache, names, requests, optimistic=self._optimistic)
            self.locked_or_assumed_current.update(names)

    def asked_before(self, key: AnswerKey) -> tuple[bool, Any]:
        """Whether the answer under this key is known without SQL, and the answer; None if there was none."""
        if key in self.rows.answers:
            return True, self.rows.answers[key][1]
        if self._lock is None or key not in self._lock.asked_before:
            return False, None
        return True, self._lock.asked_before[key]

    def add(self, rows: PendingRows) -> None:
        """Add the rows of a call that is kept, after those of earlier calls."""
        if self._has_rows:
            self.rows.add(rows)
        else:
            self.rows, self._has_rows = rows, True

    def cache_is_current(self, name: str) -> bool:
        return not self.shared or name in self.locked_or_assumed_current

    def flush(self) -> None:
        """Write the rows of the calls kept so far, so that SQL sees them. Raise WouldBlock."""
        connection = self.connection
        if self._lock is not None:
            self._lock.asked_before.update((key, answer) for key, (_, answer) in self.rows.answers.items())
        try:
            self.cache.take_ids(self.rows.flush(connection, self.cache.trial_id))
        except Exception as error:
            self.failure = error
            raise

    def commit(self) -> None:
        self.cache.take_ids(self.rows.commit(self.connection, self.cache.trial_id))
        self._committed()

    def send(self) -> one_round_trip.RoundTrip:
        """Send an optimistic batch in one round trip: lock, rows of its calls, commit. Raise WouldBlock."""
        if self._lock is None or self.rows.others_need_ids():
            raise WouldBlock
        self._reads_draining = abs(self.now - self.cache.draining_read_at) >= DRAINING_SECONDS / 2
        draining = [_DRAINING] if self._reads_draining else []
        uptime = self.cache.uptime
        self._beat = uptime.beat_to_carry(self.now)
        beat = [carried_beat(self._beat, uptime.server_id)] if self._beat is not None else []
        written = self.rows.statements(self.cache.trial_id)
        statements = [("BEGIN", ()), self._lock.lock_if_unchanged(), *draining, *written, *beat, ("COMMIT", ())]
        return one_round_trip.send(self._connection, statements)

    def read_results(self, sent: one_round_trip.RoundTrip) -> None:
        """Read the results of the sent batch. Raise OptimisticLockFailed when nothing of it was written."""
        assert self._lock is not None
        try:
            _, lock, *answers = sent.received()
        except (sa.exc.IntegrityError, sa.exc.DataError) as error:
            self._lock.raise_stale(error)
        except sa.exc.OperationalError as error:
            if is_lock_timeout(error):
                self._lock.raise_held(error)
            if is_full(error):
                self._lock.raise_stale(error)  # run again in the thread, each call by itself
            raise
        self._lock.read_lock_result(lock)
        if self._reads_draining:
            self.cache.draining = frozenset(name.decode() for (name,) in answers.pop(0) if name is not None)
            self.cache.draining_read_at = self.now
        self.cache.take_ids(self.rows.were_written(answers))
        if self._beat is not None and answers[-2]:  # before the commit's; empty where another server held the row
            self.cache.uptime.beaten(self._beat)
        self._committed()

    def _committed(self) -> None:
        self.cache.committed(self.saved_studies)
        self.cache.trials_were_taken(self.saved_trials_of)
        if self.lease_ends:
            instruments.LeaseEnds.count(self.lease_ends.values())
