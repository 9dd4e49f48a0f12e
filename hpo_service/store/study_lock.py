"""The studies of a batch, locked on PostgreSQL so that no other server writes them meanwhile.

If no other server has written them lately, calls with `runs_in_loop` run optimistically, without a lock: on the cached
studies, at an estimate of the database's time. Their rows go to the database in one round trip, with the lock statement
before them and the commit behind them. That statement fails if another server has written after all, the lock was
waited for long, or an ask had been answered before: then nothing is written, and the calls run again with the lock
held. A long computation, which could be for nothing, is not made in an optimistic run: the call raises NotReady.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import sqlalchemy as sa

from hpo_service.store import one_round_trip
from hpo_service.store.engine import is_lock_timeout
from hpo_service.store.rows import STUDY_CHANGING_COLUMNS, trial_of, with_counters
from hpo_service.store.tables import studies, trials

if TYPE_CHECKING:
    from hpo_service.store.study_cache import StudyCache

AnswerKey = tuple[str, str]  # of a remembered answer: the call, and its request_id

_STUDY_COLUMNS = (studies.c.name, studies.c.id, *(studies.c[name] for name in STUDY_CHANGING_COLUMNS))
_read_study = one_round_trip.reader(_STUDY_COLUMNS)
_read_trial = one_round_trip.reader(list(trials.c))
_NAMES = ", ".join(column.name for column in _STUDY_COLUMNS)
# The time is taken when the rows are locked, however long that took.
_LOCK = (
    f"WITH locked AS MATERIALIZED (SELECT {_NAMES} FROM hpo_studies WHERE name = ANY(%s) ORDER BY name FOR UPDATE) "  # noqa: S608
    f"SELECT {_NAMES}, extract(epoch FROM clock_timestamp())::float8 FROM locked"
)
_TRIAL_NAMES = ", ".join(f'"{column.name}"' for column in trials.c)
_CHANGED = f"SELECT {_TRIAL_NAMES} FROM hpo_trials WHERE study_id = %s AND revision > %s ORDER BY revision LIMIT %s"  # noqa: S608
MOST_TAKEN_OVER = 200  # changed trials; with more of them the study is read again
# A separate statement, so that it sees what another server has answered while the lock was waited for.
_ANSWERS = (
    "SELECT call, request_id, answer FROM hpo_answers "
    "WHERE (call, request_id) IN (SELECT * FROM unnest(%s::text[], %s::text[]))"
)
_OTHERS_WROTE = "another server has written"  # part of the error's text; the rest is in the server's language
# Locks, and fails unless the studies are as assumed: to cast words to a number is an error (22P02), which aborts the
# transaction, so that nothing after it is written. The answers may be checked by the same statement, though it sees
# none given between its snapshot and its lock: such an answer comes with a new revision.
_LOCK_AS_KNOWN = (
    "WITH locked AS MATERIALIZED (SELECT id, revision FROM hpo_studies WHERE name = ANY(%s) ORDER BY name FOR UPDATE) "
    "SELECT now, CASE WHEN known <> %s THEN ('{others_wrote}: ' || known)::int "
    "WHEN now - %s BETWEEN %s AND %s {and_not_answered} THEN 0 "
    "ELSE ('the clock had gone on, or it was asked before: ' || known)::int END "
    "FROM (SELECT known, extract(epoch FROM clock_timestamp())::float8 AS now FROM (SELECT count(*) AS known "
    "FROM locked WHERE (id, revision) IN (SELECT * FROM unnest(%s::bigint[], %s::bigint[]))) AS counted OFFSET 0) AS it"
)
_NOT_ANSWERED = (
    "AND NOT EXISTS (SELECT FROM hpo_answers "
    "WHERE (call, request_id) IN (SELECT * FROM unnest(%s::text[], %s::text[])))"
)
_LOCK_TO_TELL = _LOCK_AS_KNOWN.format(others_wrote=_OTHERS_WROTE, and_not_answered="")
_LOCK_TO_ASK = _LOCK_AS_KNOWN.format(others_wrote=_OTHERS_WROTE, and_not_answered=_NOT_ANSWERED)
ALONE_SECONDS = 10.0  # after another server's last write in a study, until batches are optimistic there again
CLOCK_SECONDS = 10.0  # how long the database's time is estimated from one reading
LATE_SECONDS = 0.05  # how late a reading of the clock may be
AGED_SECONDS = 0.5  # most time between the `now` of an optimistic batch and its lock


class WouldBlock(BaseException):
    """The call needs SQL, or its study may not be used unlocked. BaseException, so that no call catches it."""


class OptimisticLockFailed(BaseException):
    """What an optimistic batch assumed was not so; nothing was written. BaseException, so that no call catches it."""


class StudyLockTimeout(OptimisticLockFailed):
    """Another transaction holds one of the batch's studies for longer than the lock timeout."""


class DatabaseClock:
    """Estimates the database's time from the last reading.

    It does not go back by the LATE_SECONDS that readings may be late: the lease given a moment ago would then end
    further away than leases can, as if the clock had been put back. A clock that goes back by more is followed.
    """

    def __init__(self) -> None:
        self._shown = 0.0
        self._read_at = -math.inf
        self._last = -math.inf

    def take_reading(self, shown: float) -> float:
        """Take a reading; return the time to go by."""
        self._shown, self._read_at = shown, time.monotonic()
        self._last = shown if shown < self._last - LATE_SECONDS else max(shown, self._last)
        return self._last

    def estimated_now(self) -> float | None:
        """None if the last reading is over 10 s old. Later than the clock by LATE_SECONDS at most."""
        passed = time.monotonic() - self._read_at
        if passed >= CLOCK_SECONDS:
            return None
        self._last = max(self._last, self._shown + passed)
        return self._last


def held_by_others(connection: sa.Connection, names: Sequence[str]) -> set[str]:
    """Which of these studies cannot be locked now; does not wait."""
    named = sa.select(studies.c.name).where(studies.c.name.in_(names))
    free = set(connection.execute(named.with_for_update(skip_locked=True)).scalars())
    return set(connection.execute(named).scalars()) - free


def ask_call(study_id: int) -> str:
    """The call under which answers to asks of this study are remembered."""
    return f"ask {study_id}"


class StudyLock:
    def __init__(
        self,
        connection: sa.Connection,
        cache: StudyCache,
        names: Sequence[str],
        requests: Sequence[tuple[str, str]],
        *,
        optimistic: bool,
    ) -> None:
        """names: of the studies, sorted, so that servers do not deadlock.

        requests: (study, request_id) of each ask, whose earlier answer is read with the lock.
        optimistic: the batch is optimistic: no lock yet, and WouldBlock where it needs one. Else it is held on return.
        """
        self._connection = connection
        self._cache = cache
        self._names = names
        known = {name: cache.studies[cache.ids[name]].study for name in names if name in cache.ids}
        self._known = {name: (study.id, study.revision) for name, study in known.items()}
        self._keys = [(ask_call(known[name].id), request_id) for name, request_id in requests if name in known]
        self.asked_before: dict[AnswerKey, Any] = dict.fromkeys(self._keys)  # None where there is no answer
        shared = [name for name in names if cache.had_foreign_write(name, ALONE_SECONDS)]
        self.time: float | None = None  # of the lock, or the estimate of it
        if optimistic:
            self.time = cache.database_clock.estimated_now()
            if self.time is None or shared or len(known) < len(names):
                raise WouldBlock
        else:
            self._hold([name for name in shared if name in known])

    def _hold(self, followed: Sequence[str]) -> None:
        """Lock the studies, waiting for that; also read what other servers have changed in those of `followed`."""
        changed = [(_CHANGED, (*self._known[name], MOST_TAKEN_OVER)) for name in followed]
        lock = (_LOCK, (one_round_trip.array(self._names),))
        statements = [("BEGIN", ()), lock, *changed, *_answers(self._keys)]
        try:
            _, locked, *rest = one_round_trip.run(self._connection, statements)
        except sa.exc.OperationalError as error:
            if is_lock_timeout(error):
                raise StudyLockTimeout from error
            raise
        foreign_rows, answered = dict(zip(followed, rest, strict=False)), rest[len(followed) :]
        found = {}
        for *cells, shown in locked:
            study = _read_study(cells)
            found[study.name] = study
            assert shown is not None
            self.time = self._cache.database_clock.take_reading(float(shown))
        again = [tuple(cell.decode() for cell in row if cell is not None) for rows in answered for row in rows]
        self.asked_before.update({(call, request_id): json.loads(answer) for call, request_id, answer in again})
        for name, known in self._known.items():
            if _is(found.get(name), known):
                continue
            self._cache.note_foreign_write(name)
            if not self._apply_foreign_changes(found.get(name), foreign_rows.get(name)):
                self._cache.forget_study(name)

    def lock_if_unchanged(self) -> one_round_trip.Statement:
        """First statement of an optimistic batch: lock, and fail if a revision, the clock or an answer differs."""
        ids, revisions = zip(*self._known.values(), strict=True)
        known = one_round_trip.numbers(ids), one_round_trip.numbers(revisions)
        names = one_round_trip.array(self._names)
        expected = names, len(self._names), self.time, -LATE_SECONDS, AGED_SECONDS
        if not self._keys:
            return _LOCK_TO_TELL, (*expected, *known)
        calls, requests = map(one_round_trip.array, zip(*self._keys, strict=True))
        return _LOCK_TO_ASK, (*expected, calls, requests, *known)

    def read_lock_result(self, rows: one_round_trip.Rows) -> None:
        ((shown, _),) = rows
        assert shown is not None
        self._cache.database_clock.take_reading(float(shown))

    def raise_stale(self, error: Exception) -> NoReturn:
        for name in self._names:
            self._cache.forget_study(name)
            if _OTHERS_WROTE in str(error):
                self._cache.note_foreign_write(name)
        raise OptimisticLockFailed from error

    def raise_held(self, error: Exception) -> NoReturn:
        for name in self._names:
            self._cache.forget_study(name)
        raise StudyLockTimeout from error

    def _apply_foreign_changes(self, row: Any, changed: one_round_trip.Rows | None) -> bool:
        """Bring the cached study up to its row; False where it has to be read again as a whole."""
        if row is None or changed is None or len(changed) >= MOST_TAKEN_OVER:
            return False
        cached = self._cache.studies[self._cache.ids[row.name]]
        before = cached.study
        if row.id != before.id or row.revision < before.revision or row.version != before.version:
            return False
        if row.round != before.round or row.sealed != before.sealed or cached.rounds[row.round].first_trial is None:
            return False
        study = with_counters(before, row)
        its_trials = [trial_of(_read_trial(cells), study) for cells in changed]
        if any(trial.round not in (None, row.round) for trial in its_trials):
            return False  # an earlier round's counts have changed too
        cached.apply_foreign_changes(study, its_trials)
        return True


def _is(row: Any, known: tuple[int, int]) -> bool:
    return row is not None and (row.id, row.revision) == known


def _answers(keys: Sequence[AnswerKey]) -> list[one_round_trip.Statement]:
    if not keys:
        return []
    calls, requests = zip(*keys, strict=True)
    return [(_ANSWERS, (one_round_trip.array(calls), one_round_trip.array(requests)))]
