"""Group commit: calls that wait together share one transaction and one fsync, each with its own answer.

One thread writes. It takes whatever calls have queued up, runs each inside a savepoint of one transaction, commits,
and only then hands out the answers. A call that is refused takes nothing of the others along; a commit that fails
fails all.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from hpo_service.domain.errors import HpoError, Unavailable
from hpo_service.store.engine import database_errors_translated

T = TypeVar("T")
Work = Callable[[sa.Connection], T]

LARGEST_GROUP = 64


@dataclass(frozen=True)
class _Call:
    studies: tuple[str, ...]
    work: Work[Any]
    answer: Future[Any]


@dataclass(frozen=True)
class _Done:
    result: Any = None
    error: BaseException | None = None


class Writer:
    """Runs writing calls one after the other; `submit` may be called from any thread."""

    def __init__(
        self,
        engine: sa.Engine,
        lock_studies: Callable[[sa.Connection, Sequence[str]], None],
        on_commit: Callable[[], None],
        on_rollback: Callable[[Sequence[str]], None],
    ) -> None:
        """lock_studies: keep other servers from these studies until the transaction ends, taken in one order.

        on_rollback: forget what memory holds of these studies; it may have seen what was undone.
        """
        self._engine = engine
        self._lock_studies = lock_studies
        self._on_commit = on_commit
        self._on_rollback = on_rollback
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def submit(self, work: Work[T], studies: Sequence[str] = ()) -> Future[T]:
        """Run `work` in a transaction that holds these studies; its result comes after the commit."""
        if self._closed:
            raise Unavailable("the server is shutting down")
        answer: Future[T] = Future()
        self._queue.put(_Call(tuple(studies), work, answer))
        return answer

    def close(self) -> None:
        """Finish what was submitted, then stop."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            group, last = self._gather(first)
            self._commit(group)
            if last:
                return

    def _gather(self, first: _Call) -> tuple[list[_Call], bool]:
        group = [first]
        while len(group) < LARGEST_GROUP:
            try:
                call = self._queue.get_nowait()
            except queue.Empty:
                return group, False
            if call is None:
                return group, True
            group.append(call)
        return group, False

    def _commit(self, group: list[_Call]) -> None:
        studies = sorted({name for call in group for name in call.studies})
        try:
            with database_errors_translated(), self._engine.begin() as connection:
                self._lock_studies(connection, studies)
                outcomes = [self._run_one(connection, call) for call in group]
        except BaseException as error:
            self._on_rollback(studies)
            outcomes = [_Done(error=error)] * len(group)
        else:
            self._on_commit()
        for call, outcome in zip(group, outcomes, strict=True):
            if outcome.error is not None:
                call.answer.set_exception(outcome.error)
            else:
                call.answer.set_result(outcome.result)

    def _run_one(self, connection: sa.Connection, call: _Call) -> _Done:
        try:
            with connection.begin_nested():
                return _Done(result=call.work(connection))
        except HpoError as error:
            self._on_rollback(call.studies)
            return _Done(error=error)
        except sa.exc.DBAPIError as error:
            self._on_rollback(call.studies)
            if isinstance(error, sa.exc.IntegrityError | sa.exc.DataError):
                return _Done(error=error)
            raise  # the connection or the disk: nobody in this group can be sure of anything
        except Exception as error:
            self._on_rollback(call.studies)
            return _Done(error=error)
