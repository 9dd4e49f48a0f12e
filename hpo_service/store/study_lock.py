"""The studies of a group, locked on PostgreSQL so that no other server writes them meanwhile.

A server that alone has written them lately goes ahead with its calls while the lock is on its way: it knows the
studies, and what the database's clock shows. When the lock arrives it is compared with that. If somebody else has
written after all, or was waited for, or an ask had been answered before, the calls run once more on what is true.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from hpo_service.store import one_round_trip

if TYPE_CHECKING:
    from hpo_service.store.writing_record import Memory

AnswerKey = tuple[str, str]  # of a remembered answer: the call, and its request_id

# The time is taken when the rows are locked, however long that took.
_LOCK = (
    "WITH locked AS MATERIALIZED "
    "(SELECT name, id, revision FROM hpo_studies WHERE name = ANY(%s) ORDER BY name FOR UPDATE) "
    "SELECT name, id, revision, extract(epoch FROM clock_timestamp())::float8 FROM locked"
)
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
    """What the database's clock shows, reckoned on from when it was last read."""

    def __init__(self) -> None:
        self._shown = 0.0
        self._read_at = -CLOCK_SECONDS

    def was_read(self, shown: float) -> None:
        self._shown, self._read_at = shown, time.monotonic()

    def reckoned(self) -> float | None:
        passed = time.monotonic() - self._read_at
        return self._shown + passed if passed < CLOCK_SECONDS else None


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
        self._sent: one_round_trip.Sent | None = one_round_trip.send(connection, _statements(names, keys))
        alone = time.monotonic() - memory.others_wrote_at > ALONE_SECONDS
        reckoned = memory.database_clock.reckoned()
        self._ahead_at = reckoned if alone and len(known) == len(names) else None
        self.time: float | None = self._ahead_at  # of the lock, once it has arrived
        if self._ahead_at is None:
            self.arrive()

    def arrive(self) -> None:
        """Wait for the lock. Raise OutOfDate when the group has gone ahead on what was not so."""
        sent, self._sent = self._sent, None
        if sent is None:
            return
        _, locked, *answered = sent.received()
        rows = [tuple(cell.decode() for cell in row if cell is not None) for row in locked]
        found = {name: (int(key), int(revision)) for name, key, revision, _ in rows}
        for _, _, _, shown in rows:
            self.time = float(shown)
            self._memory.database_clock.was_read(self.time)
        again = [tuple(cell.decode() for cell in row if cell is not None) for rows in answered for row in rows]
        self.asked_before.update({(call, request_id): json.loads(answer) for call, request_id, answer in again})
        others = [name for name, known in self._known.items() if found.get(name) != known]
        for name in others:
            self._memory.forget_study(name)
            self._memory.others_wrote_at = time.monotonic()
        if self._ahead_at is not None:
            late = self.time is None or abs(self.time - self._ahead_at) > LATE_SECONDS
            if others or again or late:
                for name in self._names:
                    self._memory.forget_study(name)
                raise OutOfDate


def _statements(names: Sequence[str], keys: Sequence[AnswerKey]) -> list[one_round_trip.Statement]:
    statements: list[one_round_trip.Statement] = [("BEGIN", ()), (_LOCK, (one_round_trip.array(names),))]
    if keys:
        calls, requests = zip(*keys, strict=True)
        statements.append((_ANSWERS, (one_round_trip.array(calls), one_round_trip.array(requests))))
    return statements
