"""The studies of a group, locked on PostgreSQL so that no other server writes them meanwhile.

A server that alone has written them lately goes ahead with its calls while the lock is on its way: it knows the
studies, and what the database's clock shows. When the lock arrives it is compared with that. If somebody else has
written after all, or was waited for, or an ask had been answered before, the calls run once more on what is true.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from hpo_service.store import one_round_trip
from hpo_service.store.rows import STUDY_COUNTERS, trial_of, with_counters
from hpo_service.store.tables import studies, trials

if TYPE_CHECKING:
    from hpo_service.store.writing_record import Memory

AnswerKey = tuple[str, str]  # of a remembered answer: the call, and its request_id

_STUDY_COLUMNS = (studies.c.name, studies.c.id, *(studies.c[name] for name in STUDY_COUNTERS))
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
MOST_TAKEN_OVER = 200  # trials; more are left to whoever needs them
# A statement of its own: what another server has answered while the lock was waited for is seen by it.
_ANSWERS = (
    "SELECT call, request_id, answer FROM hpo_answers "
    "WHERE (call, request_id) IN (SELECT * FROM unnest(%s::text[], %s::text[]))"
)
ALONE_SECONDS = 10.0  # so long after another server's last writing, this one takes itself to be alone
CLOCK_SECONDS = 10.0  # so long the database's clock is reckoned on from when it was last read
LATE_SECONDS = 0.05  # between the time reckoned and the time of the lock


class OutOfDate(BaseException):
    """The group has gone ahead on something that was not so. No call's error: none may catch it."""


class DatabaseClock:
    """What the database's clock shows, reckoned on from when it was last read.

    It never goes back by the little that readings are late: a lease given out a moment ago would then end further away
    than leases can, as if set by a clock that has been put back. A clock that has been is followed.
    """

    def __init__(self) -> None:
        self._shown = 0.0
        self._read_at = -math.inf
        self._last = -math.inf

    def was_read(self, shown: float) -> float:
        """Take a reading; return the time to go by."""
        self._shown, self._read_at = shown, time.monotonic()
        self._last = shown if shown < self._last - LATE_SECONDS else max(shown, self._last)
        return self._last

    def reckoned(self) -> float | None:
        """None when it has not been read lately. Never later than the clock itself."""
        passed = time.monotonic() - self._read_at
        if passed >= CLOCK_SECONDS:
            return None
        self._last = max(self._last, self._shown + passed)
        return self._last


def ask_call(study_id: int) -> str:
    """What a call that asks this study is remembered as."""
    return f"ask {study_id}"


class StudyLock:
    def __init__(
        self, connection: sa.Connection, memory: Memory, names: Sequence[str], requests: Sequence[tuple[str, str]]
    ) -> None:
        """names: of the studies, in order, so that nobody waits in a circle.

        requests: (study, request_id) of who asks it: what was answered to them is read along.
        """
        self._memory = memory
        self._names = names
        known = {name: memory.mirrors[memory.ids[name]].study for name in names if name in memory.ids}
        self._known = {name: (study.id, study.revision) for name, study in known.items()}
        keys = [(ask_call(known[name].id), request_id) for name, request_id in requests if name in known]
        self.asked_before: dict[AnswerKey, Any] = dict.fromkeys(keys)  # None where there is no answer
        alone = time.monotonic() - memory.others_wrote_at > ALONE_SECONDS
        self._followed = [] if alone else list(known)  # whose changes are read along
        changed = [(_CHANGED, (*self._known[name], MOST_TAKEN_OVER)) for name in self._followed]
        reckoned = memory.database_clock.reckoned()  # before the lock can be taken
        self._sent: one_round_trip.Sent | None = one_round_trip.send(
            connection, [("BEGIN", ()), (_LOCK, (one_round_trip.array(names),)), *changed, *_answers(keys)]
        )
        self._ahead_at = reckoned if alone and len(known) == len(names) else None
        self.time: float | None = self._ahead_at  # of the lock, once it has arrived
        if self._ahead_at is None:
            self.arrive()

    def arrive(self) -> None:
        """Wait for the lock. Raise OutOfDate when the group has gone ahead on what was not so."""
        sent, self._sent = self._sent, None
        if sent is None:
            return
        _, locked, *rest = sent.received()
        changed, answered = rest[: len(self._followed)], rest[len(self._followed) :]
        found, arrived_at = {}, -math.inf
        for *cells, shown in locked:
            study = _read_study(cells)
            found[study.name] = study
            assert shown is not None
            arrived_at = float(shown)
            self.time = self._memory.database_clock.was_read(arrived_at)
        again = [tuple(cell.decode() for cell in row if cell is not None) for rows in answered for row in rows]
        self.asked_before.update({(call, request_id): json.loads(answer) for call, request_id, answer in again})
        others = [name for name, known in self._known.items() if not _is(found.get(name), known)]
        if others:
            self._memory.others_wrote_at = time.monotonic()
        if self._ahead_at is None:
            taken_over = dict(zip(self._followed, changed, strict=True))
            for name in others:
                if not self._take_over(found.get(name), taken_over.get(name)):
                    self._memory.forget_study(name)
        elif others or again or abs(arrived_at - self._ahead_at) > LATE_SECONDS:
            for name in self._names:
                self._memory.forget_study(name)
            raise OutOfDate

    def _take_over(self, row: Any, changed: one_round_trip.Rows | None) -> bool:
        """Bring what is known of a study up to its row; False where all of it has to be read again."""
        if row is None or changed is None or len(changed) >= MOST_TAKEN_OVER:
            return False
        mirror = self._memory.mirrors[self._memory.ids[row.name]]
        before = mirror.study
        if row.id != before.id or row.revision < before.revision or row.version != before.version:
            return False
        if row.round != before.round or row.sealed != before.sealed or mirror.rounds[row.round].first_trial is None:
            return False
        study = with_counters(before, row)
        its_trials = [trial_of(_read_trial(cells), study) for cells in changed]
        if any(trial.round not in (None, row.round) for trial in its_trials):
            return False  # an earlier round's counts have changed too
        mirror.take_over(study, its_trials)
        return True


def _is(row: Any, known: tuple[int, int]) -> bool:
    return row is not None and (row.id, row.revision) == known


def _answers(keys: Sequence[AnswerKey]) -> list[one_round_trip.Statement]:
    if not keys:
        return []
    calls, requests = zip(*keys, strict=True)
    return [(_ANSWERS, (one_round_trip.array(calls), one_round_trip.array(requests)))]
