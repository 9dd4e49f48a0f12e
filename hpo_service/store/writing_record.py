"""The record as the writer sees it: what is hot comes from the mirrors, and what changes waits for the group's end.

Whatever needs SQL after all (`_db`) first writes what waits, inside a savepoint of the call, so that it sees everything
and a refused call takes nothing of the others along.
"""

from __future__ import annotations

import json
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from hpo_service import instruments
from hpo_service.domain.curve import Curve
from hpo_service.domain.outage import Outage
from hpo_service.domain.sizes import MIB
from hpo_service.domain.study import Round, Study
from hpo_service.domain.trial import AttemptEnd, HistoryTrial, Report, Trial, TrialState
from hpo_service.store import one_round_trip
from hpo_service.store.engine import Clock, database_time, is_lock_timeout, raw
from hpo_service.store.mirror import Mirror, Undo
from hpo_service.store.outages import Beat, KnownOutages, Uptime, beat, read_known
from hpo_service.store.pending import Pending
from hpo_service.store.record import Record
from hpo_service.store.study_lock import AnswerKey, DatabaseClock, MustWait, StudyLock
from hpo_service.store.tables import answers, workers
from hpo_service.store.trial_reports import KeptReport, TrialReports

MOST_MIRRORS = 500
MOST_BYTES = 64 * MIB  # of all mirrors together
DRAINING_SECONDS = 1.0  # so long it is remembered which workers are to be sent home
_DRAINING: one_round_trip.Statement = ("SELECT worker_id FROM hpo_workers WHERE draining", ())


class Memory:
    """What one server's writer remembers between transactions. Only the writer's thread touches it."""

    def __init__(self) -> None:
        self.mirrors: OrderedDict[int, Mirror] = OrderedDict()  # the least recently written one first
        self.weight = 0  # of all mirrors
        self.ids: dict[str, int] = {}
        self.draining: frozenset[str] | None = None
        self.draining_read_at = 0.0
        self.database_clock = DatabaseClock()
        self.uptime = Uptime()
        self.outages: KnownOutages | None = None
        self._others_wrote: dict[str, float] = {}  # in which study, and when that was last met with

    def meet_others(self, name: str) -> None:
        """Another server has written the study."""
        self._others_wrote.pop(name, None)
        self._others_wrote[name] = time.monotonic()  # the latest is the last
        while len(self._others_wrote) > MOST_MIRRORS:
            del self._others_wrote[next(iter(self._others_wrote))]

    def has_met_others(self, name: str, seconds: float) -> bool:
        """Whether another server was met with in the study so lately."""
        return time.monotonic() - self._others_wrote.get(name, -math.inf) <= seconds

    def forget(self, study_id: int) -> None:
        mirror = self.mirrors.pop(study_id, None)
        if mirror is not None:
            self.weight -= mirror.weight
            self.ids.pop(mirror.study.name, None)

    def forget_study(self, name: str) -> None:
        if name in self.ids:
            self.forget(self.ids[name])

    def forget_all(self) -> None:
        self.mirrors.clear()
        self.weight = 0
        self.ids.clear()
        self.draining = None

    def committed(self, touched: Iterable[int]) -> None:
        for study_id in touched:
            if study_id in self.mirrors:
                mirror = self.mirrors[study_id]
                mirror.forget_old()
                self.weight += mirror.count()
                self.mirrors.move_to_end(study_id)
        while len(self.mirrors) > MOST_MIRRORS or (self.weight > MOST_BYTES and len(self.mirrors) > 1):
            self.forget(next(iter(self.mirrors)))
        if self.weight > MOST_BYTES:
            self.weight -= next(iter(self.mirrors.values())).lighten(self.weight - MOST_BYTES)


class Group:
    """One transaction of the writer, for one call after the other."""

    def __init__(self, connection: sa.Connection, memory: Memory, *, shared: bool, goes_ahead: bool = False) -> None:
        """shared: whether other servers may write the same database. goes_ahead: without a lock, see StudyLock."""
        self.memory = memory
        self.shared = shared
        self.pending = Pending()
        self.undo = Undo()
        self.touched: set[int] = set()
        self.lease_ends: dict[tuple[int, int | str, int], AttemptEnd | None] = {}  # study id, trial or test, attempt
        self.verified: set[str] = set()  # studies that cannot have been written by another server meanwhile
        self._connection = connection
        self._goes_ahead = goes_ahead
        self._lock: StudyLock | None = None
        self._before_sql: list[dict[Any, Any]] | None = None
        self._now: float | None = None
        self._outages: tuple[Outage, ...] | None = None
        self._reads_draining = False

    @property
    def connection(self) -> sa.Connection:
        """The connection, with the studies locked. Raise MustWait."""
        if self._goes_ahead:
            raise MustWait
        return self._connection

    def now(self, clock: Clock | None) -> float:
        """The time for all calls of the group: read once, after its studies have been locked.

        clock: None is the database's own.
        """
        if self._now is None:
            if clock is not None:
                self._now = clock()
            elif self._lock is not None and self._lock.time is not None:
                self._now = self._lock.time
            else:
                self._now = database_time(self.connection)
        return self._now

    def outages(self, clock_shows: float) -> tuple[Outage, ...]:
        """What no lease is charged with, up to now. Raise MustWait."""
        if self._outages is None:
            known = self.memory.outages
            if known is None or not known.is_fresh():
                known = self.memory.outages = read_known(self.connection, self.memory.uptime.server_id)
            self._outages = known.until(clock_shows, self.memory.uptime.outage(clock_shows))
        return self._outages

    def lock(self, names: Sequence[str], requests: Sequence[tuple[str, str]]) -> None:
        """Keep other servers from these studies; requests: (study, request_id) of who asks it. Raise MustWait."""
        if self.shared and names:
            self._lock = StudyLock(self._connection, self.memory, names, requests, ahead=self._goes_ahead)
            self.verified.update(names)

    def asked_before(self, key: AnswerKey) -> tuple[bool, Any]:
        """Whether it is known what was answered under this key, and what; None: nothing."""
        if self._lock is None or key not in self._lock.asked_before:
            return False, None
        return True, self._lock.asked_before[key]

    def trusts(self, name: str) -> bool:
        return not self.shared or name in self.verified

    def sql(self) -> sa.Connection:
        """The connection, with everything written that waits. Undone with the call."""
        connection = self.connection
        if self._before_sql is None:
            self._before_sql = self.pending.copy()
            connection.exec_driver_sql("SAVEPOINT one_call")
        self.pending.flush(connection, self.memory.mirrors)
        return connection

    @property
    def can_undo_sql(self) -> bool:
        """Whether what the call has done by SQL, a statement that failed included, can be undone without the others."""
        return self._before_sql is not None

    def keep_call(self) -> None:
        if self._before_sql is not None:
            self._connection.exec_driver_sql("RELEASE SAVEPOINT one_call")
            self._before_sql = None
        self.undo.clear()

    def refuse_call(self) -> None:
        if self._before_sql is not None:
            self._connection.exec_driver_sql("ROLLBACK TO SAVEPOINT one_call")
            self._connection.exec_driver_sql("RELEASE SAVEPOINT one_call")
            self.pending.restore(self._before_sql)
            self._before_sql = None
        self.undo.run_to()

    def commit(self) -> None:
        self.pending.commit(self.connection, self.memory.mirrors)
        self._count_lease_ends()

    def sent(self) -> one_round_trip.Sent:
        """All of a group that goes ahead, on its way: lock, what its calls have changed, commit. Raise MustWait."""
        if self._lock is None or self.pending.others_need_ids():
            raise MustWait
        memory = self.memory
        self._reads_draining = abs(self.now(None) - memory.draining_read_at) >= DRAINING_SECONDS / 2
        draining = [_DRAINING] if self._reads_draining else []
        written = self.pending.statements(memory.mirrors)
        statements = [("BEGIN", ()), self._lock.as_known(), *draining, *written, ("COMMIT", ())]
        return one_round_trip.send(self._connection, statements)

    def arrived(self, sent: one_round_trip.Sent) -> None:
        """Take the answers to what was sent. Raise OutOfDate when nothing of it was written."""
        assert self._lock is not None
        try:
            _, lock, *answers = sent.received()
        except (sa.exc.IntegrityError, sa.exc.DataError) as error:
            self._lock.was_not_so(error)
        except sa.exc.OperationalError as error:
            if is_lock_timeout(error):
                self._lock.was_held(error)
            raise
        self._lock.was_as_known(lock)
        if self._reads_draining:
            self.memory.draining = frozenset(name.decode() for (name,) in answers.pop(0) if name is not None)
            self.memory.draining_read_at = self.now(None)
        self.pending.were_written(answers, self.memory.mirrors)
        self._count_lease_ends()

    def _count_lease_ends(self) -> None:
        if self.lease_ends:
            instruments.LeaseEnds.count(self.lease_ends.values())


class WritingRecord(Record):
    """One call's view of the record inside the group's transaction."""

    def __init__(self, group: Group, now: float) -> None:
        self._group = group
        self._pending = group.pending
        self._undo = group.undo
        self._memory = group.memory
        self.now = now
        self.wakes = ()
        self.draws = {}

    @property
    def _db(self) -> sa.Connection:  # type: ignore[override]
        return self._group.sql()

    @contextmanager
    def undone_if_refused(self) -> Iterator[None]:
        """One call among several: a rule that it breaks is found before it has written anything by SQL."""
        mark = self._undo.mark()
        try:
            yield
        except BaseException:
            self._undo.run_to(mark)
            raise

    # -- studies ------------------------------------------------------------------------------------------

    def find_study(self, name: str) -> Study | None:
        known = self._memory.ids.get(name)
        if known is not None and self._group.trusts(name):
            return self._memory.mirrors[known].study
        if known is not None:
            self._memory.forget(known)
        found = super().find_study(name)
        if found is None:
            return None
        self._group.verified.add(name)
        return self._mirror(found).study

    def _mirror(self, study: Study) -> Mirror:
        """The study's mirror, read from the database when it is not there."""
        mirror = self._memory.mirrors.get(study.id)
        if mirror is None:
            mirror = Mirror(study, {round_.round: round_ for round_ in super().rounds(study)})
            for trial in super().trials_in_state(study, TrialState.RUNNING):
                mirror.keep(trial, Undo())
            self._memory.mirrors[study.id] = mirror
            self._memory.ids[study.name] = study.id
        return mirror

    def save_study(self, study: Study) -> None:
        mirror = self._mirror(study)
        self._undo.set(vars(mirror), "study", study)
        self._undo.set(self._pending.studies, study.id, study)
        self._group.touched.add(study.id)

    def delete_study(self, study: Study) -> None:
        super().delete_study(study)
        self._memory.forget(study.id)

    def taken_over(self, study: Study, revision: int, with_reports: bool) -> list[HistoryTrial] | None:
        """What history_since would read, where it is what was just taken over from another server; else None."""
        before, after, changed = self._mirror(study).taken_over
        if (before, after) != (revision, study.revision):
            return None
        return [
            trial.as_history(self.curve(study, trial).items() if with_reports and trial.state.is_finished else ())
            for trial in changed
            if trial.is_known_to_samplers
        ]

    # -- rounds -------------------------------------------------------------------------------------------

    def rounds(self, study: Study) -> list[Round]:
        return [round_ for _, round_ in sorted(self._mirror(study).rounds.items())]

    def round(self, study: Study, number: int) -> Round:
        return self._mirror(study).rounds[number]

    def add_round(self, study: Study, round_: Round) -> None:
        super().add_round(study, round_)
        self._undo.set(self._mirror(study).rounds, round_.round, round_)

    def count_in_round(self, study: Study, round_: Round) -> None:
        """The study, saved too, has its counts: the round's own row need not be written."""
        self._undo.set(self._mirror(study).rounds, round_.round, round_)

    def save_round(self, study: Study, round_: Round) -> None:
        self._undo.set(self._mirror(study).rounds, round_.round, round_)
        self._undo.set(self._pending.rounds, (study.id, round_.round), round_)

    # -- trials -------------------------------------------------------------------------------------------

    def trial(self, study: Study, number: int) -> Trial:
        known = self._mirror(study).trials.get(number)
        return super().trial(study, number) if known is None else known

    def add_trials(self, study: Study, new: Sequence[Trial]) -> list[Trial]:
        mirror = self._mirror(study)
        for trial in new:
            self._undo.set(self._pending.new_trials, (study.id, trial.number), trial)
            mirror.keep(trial, self._undo)
        return list(new)

    def save_trial(self, study: Study, trial: Trial) -> None:
        key = (study.id, trial.number)
        if key in self._pending.new_trials:
            self._undo.set(self._pending.new_trials, key, trial)
        else:
            self._undo.set(self._pending.trials, key, trial)
        self._mirror(study).keep(trial, self._undo)

    def lapsed_trials(self, study: Study) -> list[Trial]:
        """RUNNING trials whose lease has run out, or was set by a clock that has since stepped back."""
        return self._mirror(study).lapsed(self.now, self.outages)

    # -- outages ------------------------------------------------------------------------------------------

    def outages(self) -> tuple[Outage, ...]:
        """When workers could not be heard, through no fault of theirs. Raise MustWait."""
        return self._group.outages(self.now)

    def beat(self, clock: Clock | None) -> Beat:
        """Note that this server serves, and what was missed before. Other calls of the group may have taken long."""
        self._memory.outages = None
        db = self._db
        return beat(db, database_time(db) if clock is None else clock(), self._memory.uptime)

    # -- reports and attempts -----------------------------------------------------------------------------

    def reports(self, study: Study, trial: Trial) -> list[Report]:
        found = self._reports(study, trial).all()
        return super().reports(study, trial) if found is None else found

    def curve(self, study: Study, trial: Trial) -> Curve:
        return self._reports(study, trial).curve

    def carried_reports(self, study: Study, trial: Trial) -> list[Report]:
        """The last ones, as many as a worker's answer carries."""
        kept = self._reports(study, trial)
        found = kept.carried()
        return self.reports_from(trial, kept.last_step_carried()) if found is None else found

    def _reports(self, study: Study, trial: Trial) -> TrialReports:
        mirror = self._mirror(study)
        known = mirror.reports.get(trial.number)
        if known is None:
            is_new = (study.id, trial.number) in self._pending.new_trials
            known = TrialReports(() if is_new else super().kept_reports(trial))
            if trial.number in mirror.trials:
                self._undo.set(mirror.reports, trial.number, known)
        return known

    def reports_of(self, some: Sequence[Trial]) -> dict[int, list[Report]]:
        if all(trial.id is not None for trial in some):
            return super().reports_of(some)
        study = self._memory.mirrors[self._memory.ids[some[0].study]].study
        return {trial.number: self.reports(study, trial) for trial in some}

    def put_reports(self, study: Study, trial: Trial, new: Mapping[int, KeptReport]) -> None:
        """By step; one value per step, the last one. Raise Invalid, TooLarge before anything is kept."""
        kept = self._reports(study, trial)
        kept.check(new)
        self._mirror(study).uncounted.add(trial.number)
        for step, report in new.items():
            self._undo.put(kept, step, report)
            self._undo.set(self._pending.reports, (study.id, trial.number, step), report)

    def drop_reports(self, study: Study, trial: Trial) -> None:
        super().drop_reports(study, trial)
        self._undo.set(self._mirror(study).reports, trial.number, TrialReports())

    def begin_attempt(self, study: Study, trial: Trial) -> None:
        self._undo.set(self._mirror(study).reports, trial.number, TrialReports())  # an attempt begins without any

    def end_attempt(self, study: Study, trial: Trial, end: AttemptEnd) -> None:
        """Write how the trial's last attempt has ended: another one may follow."""
        ended = (trial.worker_id, trial.started_at, self.now, end)
        self._undo.set(self._pending.ended, (study.id, trial.number, trial.holding.attempt), ended)
        self.note_lease_end(study, trial.number, trial.holding.attempt, end)

    def note_lease_end(self, study: Study, whose: int | str, attempt: int, end: AttemptEnd | None) -> None:
        """To be counted when it is committed; None: it has not ended after all."""
        self._undo.set(self._group.lease_ends, (study.id, whose, attempt), end)

    def note_waiting(self, study: Study, trial: Trial) -> None:
        """Write since when a new trial waits: the row of its attempt 0, which is none."""
        self._undo.set(self._pending.ended, (study.id, trial.number, 0), ("", self.now, self.now, None))

    def resume_attempt(self, study: Study, trial: Trial) -> None:
        """It has not ended after all, or as the trial itself."""
        self._undo.set(self._pending.ended, (study.id, trial.number, trial.holding.attempt), None)
        self.note_lease_end(study, trial.number, trial.holding.attempt, None)

    # -- answers, by request_id ---------------------------------------------------------------------------

    def answer(self, call: str, request_id: str) -> Any | None:
        key = (call, request_id)
        if key in self._pending.answers:
            return self._pending.answers[key][1]
        known, before = self._group.asked_before(key)
        if known:
            return before
        found = raw(self._group.connection, "SELECT answer FROM hpo_answers WHERE call = ? AND request_id = ?", key)
        if found is None:
            return None
        return json.loads(found[0]) if isinstance(found[0], str) else found[0]

    def study_answered(self, call: str, request_id: str) -> Study | None:
        """The same; an answer that a deleted study has left makes room for another one."""
        study = super().study_answered(call, request_id)
        if study is None:
            mine = sa.and_(answers.c.call == call, answers.c.request_id == request_id)
            self._db.execute(sa.delete(answers).where(mine))
        return study

    def remember_answer(self, study: Study, call: str, request_id: str, answer: Any) -> None:
        """In the table only: it is hardly ever asked for again, and that of an import is as large as the import."""
        self._undo.set(self._pending.answers, (call, request_id), (study.id, answer))

    # -- workers ------------------------------------------------------------------------------------------

    def is_draining(self, worker_id: str) -> bool:
        memory = self._memory
        old = self._group.shared and abs(self.now - memory.draining_read_at) >= DRAINING_SECONDS
        if memory.draining is None or old:
            query = sa.select(workers.c.worker_id).where(workers.c.draining)
            memory.draining = frozenset(self._group.connection.execute(query).scalars())
            memory.draining_read_at = self.now
        return worker_id in memory.draining

    def drain_worker(self, worker_id: str) -> None:
        super().drain_worker(worker_id)
        self._memory.draining = None
