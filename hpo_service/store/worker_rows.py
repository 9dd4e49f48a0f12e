"""All workers that were ever seen: when, with which labels, what they hold, and what they have told."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from hpo_service.domain.errors import NotFound
from hpo_service.domain.json_types import Json
from hpo_service.domain.trial import TrialState
from hpo_service.store.tables import OURS, attempts, studies, tests, trials, workers

T = TypeVar("T")
_Word = sa.ColumnElement[str]
FINISHED_STATES: list[_Word] = [sa.literal_column(f"'{state}'") for state in TrialState if state.is_finished]
_RUNNING: _Word = sa.literal_column("'RUNNING'")
_FAIL: _Word = sa.literal_column("'FAIL'")
_TOLD: _Word = sa.literal_column("'told'")
_BY = ("worker_id", "state")


class SeenWorker(NamedTuple):
    """When a worker was last seen, by the database's clock. labels: None where its call said nothing of them."""

    at: float
    labels: Mapping[str, str] | None


@dataclass(frozen=True)
class WorkerRow:
    """trials: how many it holds; told: how many attempts it has ended by a tell, and failed: those as FAIL."""

    worker_id: str
    last_seen_at: float
    draining: bool
    labels: Json
    trials: int
    told: int
    failed: int


class WorkerRows:
    """Inside the transaction of a Record."""

    def __init__(self, connection: sa.Connection) -> None:
        self._db = connection

    def is_draining(self, worker_id: str) -> bool:
        return bool(self._db.execute(sa.select(workers.c.draining).where(workers.c.worker_id == worker_id)).scalar())

    def draining(self) -> frozenset[str]:
        """The ids of the draining workers, which get no more trials."""
        return frozenset(self._db.execute(sa.select(workers.c.worker_id).where(workers.c.draining)).scalars())

    def see(self, seen: Mapping[str, SeenWorker]) -> None:
        rows = [
            {"worker_id": name, "last_seen_at": at, "draining": False, "labels": labels and dict(labels)}
            for name, (at, labels) in sorted(seen.items())
        ]
        if rows:
            self._db.execute(_SEE[self._db.dialect.name], rows)

    def drain(self, worker_id: str) -> None:
        changed = self._db.execute(sa.update(workers).where(workers.c.worker_id == worker_id).values(draining=True))
        if changed.rowcount == 0:
            raise NotFound(f"no worker {worker_id!r} was ever seen")

    def page(self, after: str, limit: int, only: Collection[str] | None) -> list[WorkerRow]:
        """only: of studies of these names, those who hold or have told a trial of theirs."""
        query = sa.select(workers).where(workers.c.worker_id > after).order_by(workers.c.worker_id).limit(limit)
        if only is not None:
            theirs = sa.select(trials.c.worker_id).where(trials.c.study_id.in_(_ids_of(only)))
            query = query.where(workers.c.worker_id.in_(theirs))
        return self._with_counts(self._db.execute(query).all(), only)

    def one(self, worker_id: str) -> WorkerRow:
        query = sa.select(workers).where(workers.c.worker_id == worker_id)
        found = self._with_counts(self._db.execute(query).all(), None)
        if not found:
            raise NotFound(f"no worker {worker_id!r} was ever seen")
        return found[0]

    def write_and_delete_one(self, now: float) -> None:
        """Under a name that nobody else has: servers that check at the same time do not wait for each other."""
        name = f" {secrets.token_hex(8)}"
        self._db.execute(sa.insert(workers), {"worker_id": name, "last_seen_at": now, "draining": False})
        self._db.execute(sa.delete(workers).where(workers.c.worker_id == name))

    def _with_counts(self, rows: Sequence[Any], only: Collection[str] | None) -> list[WorkerRow]:
        """Counted from the trials: true after any restart, and whichever server was told; without deleted studies."""
        held, told, failed = Counter[str](), Counter[str](), Counter[str]()
        seen = _ids_of(only)
        for ids in batches([row.worker_id for row in rows]):
            held.update({worker_id: n for worker_id, _, n in self._db.execute(_held_by(ids, seen))})
            for query in _told_by(ids, seen):
                for worker_id, state, n in self._db.execute(query):
                    told[worker_id] += n
                    failed[worker_id] += n if state == TrialState.FAIL else 0
        return [
            WorkerRow(name, at, draining, labels or {}, held[name], told[name], failed[name])
            for name, at, draining, labels in rows
        ]


def _ids_of(names: Collection[str] | None) -> sa.Select[Any]:
    """The studies that there are, or those of these names."""
    ids = sa.select(studies.c.id).where(OURS)
    return ids if names is None else ids.where(studies.c.name.in_(names))


def _held_by(ids: Sequence[str], seen: sa.Select[Any]) -> sa.Select[Any]:
    mine = sa.and_(trials.c.state == _RUNNING, trials.c.worker_id.in_(ids), trials.c.study_id.in_(seen))
    return sa.select(trials.c.worker_id, trials.c.state, sa.func.count()).where(mine).group_by(*trials.c[_BY])


def _told_by(ids: Sequence[str], seen: sa.Select[Any]) -> Iterator[sa.Select[Any]]:
    """Of finished trials and tests, and of attempts that another one has followed, or will: these were a FAIL."""
    for table in (trials, tests):
        finished = sa.and_(table.c.attempt_end == _TOLD, table.c.state.in_(FINISHED_STATES))
        mine = sa.and_(finished, table.c.worker_id.in_(ids), table.c.study_id.in_(seen))
        yield sa.select(table.c.worker_id, table.c.state, sa.func.count()).where(mine).group_by(*table.c[_BY])
    earlier = sa.and_(attempts.c.end == _TOLD, attempts.c.worker_id.in_(ids), trials.c.study_id.in_(seen))
    yield (
        sa.select(attempts.c.worker_id, _FAIL, sa.func.count())
        .join(trials, trials.c.id == attempts.c.trial_id)
        .where(earlier)
        .group_by(attempts.c.worker_id)
    )


def batches(ids: Sequence[T]) -> Iterator[Sequence[T]]:
    """In parts of 500: databases limit the number of parameters."""
    for start in range(0, len(ids), 500):
        yield ids[start : start + 500]


def _seeing(module: Any) -> Any:
    """Labels that are NULL leave the stored ones as they are."""
    insert = module.insert(workers)
    kept = sa.func.coalesce(insert.excluded.labels, workers.c.labels)
    return insert.on_conflict_do_update(
        index_elements=["worker_id"], set_={"last_seen_at": insert.excluded.last_seen_at, "labels": kept}
    )


_SEE = {"sqlite": _seeing(sqlite), "postgresql": _seeing(postgresql)}
