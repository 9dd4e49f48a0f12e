"""Group commit: calls that wait together share one transaction and one fsync, each with its own answer.

One thread writes. It takes whatever calls have queued up, runs each inside a savepoint of one transaction, commits,
and only then hands out the answers. A call that is refused takes nothing of the others along; a commit that fails
fails all.
"""

from __future__ import annotations

import queue
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa

from hpo_service.domain.errors import Unavailable
from hpo_service.store.engine import begin, commit, database_errors_translated
from hpo_service.store.writing_record import Group, Memory

T = TypeVar("T")
Work = Callable[[Group], T]

LARGEST_GROUP = 64
CONNECTION_IDLE_SECONDS = 1.0


@dataclass(frozen=True)
class _Call:
    studies: tuple[str, ...]
    work: Work[Any]
    answer: Future[Any]


@dataclass(frozen=True)
class _Done:
    result: Any = None
    error: BaseException | None = None


class Listener(Protocol):
    """Whoever keeps in memory what calls have shown him, and must forget it when they are undone."""

    def call_kept(self) -> None: ...

    def call_refused(self) -> None: ...

    def committed(self) -> None: ...

    def rolled_back(self) -> None: ...

    def answering(self) -> None:
        """The answers of a group are about to be set, one after the other."""

    def answered(self) -> None: ...


class NobodyListens:
    def call_kept(self) -> None: ...

    def call_refused(self) -> None: ...

    def committed(self) -> None: ...

    def rolled_back(self) -> None: ...

    def answering(self) -> None: ...

    def answered(self) -> None: ...


class Writer:
    """Runs writing calls one after the other; `submit` may be called from any thread."""

    def __init__(
        self,
        engine: sa.Engine,
        memory: Memory,
        listener: Listener,
    ) -> None:
        """memory: what the writer knows between transactions; listener: who else keeps something in memory."""
        self._engine = engine
        self._memory = memory
        self._shared = engine.dialect.name != "sqlite"  # other servers may write the same database
        self._listener = listener
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._closed = False
        self._connection: sa.Connection | None = None
        self._used_at = 0.0
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
        try:
            while (first := self._queue.get()) is not None:
                group, last = self._gather(first)
                self._commit(group)
                if last:
                    return
        finally:
            self._let_go()

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

    def _commit(self, calls: list[_Call]) -> None:
        studies = sorted({name for call in calls for name in call.studies})
        try:
            with database_errors_translated(), self._transaction() as connection:
                group = Group(connection, self._memory, shared=self._shared)
                group.lock(studies)
                outcomes = [self._run_one(group, call) for call in calls]
                group.finish()
        except BaseException as error:
            self._memory.forget_all()
            self._listener.rolled_back()
            if len(calls) > 1 and isinstance(error, sa.exc.IntegrityError | sa.exc.DataError):
                # One call's rows were refused at the end: each by itself, so that only that one is refused.
                for call in calls:
                    self._commit([call])
                return
            outcomes = [_Done(error=error)] * len(calls)
        else:
            self._memory.committed(group.touched)
            self._listener.committed()
        self._listener.answering()
        for call, outcome in zip(calls, outcomes, strict=True):
            if outcome.error is not None:
                call.answer.set_exception(outcome.error)
            else:
                call.answer.set_result(outcome.result)
        self._listener.answered()

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """One transaction on the connection of the last group, unless that failed or was long ago.

        From the pool it would cost as much as a call; and the pool looks whether it still lives, which is why one that
        has not been used for a while goes back there first.
        """
        now = time.monotonic()
        if now - self._used_at > CONNECTION_IDLE_SECONDS or (self._shared and self._has_been_ended()):
            self._let_go()
        if self._connection is None:
            self._connection = self._engine.connect()
        self._used_at = now
        begin(self._connection)
        try:
            yield self._connection
            commit(self._connection)
        except BaseException:
            self._let_go()
            raise

    def _has_been_ended(self) -> bool:
        """Whether the database has something to say although nobody asked: that it goes, or has gone."""
        if self._connection is None:
            return False
        heard = select.poll()
        heard.register(self._connection.connection.dbapi_connection.fileno(), select.POLLIN)  # type: ignore[union-attr]
        return bool(heard.poll(0))

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _run_one(self, group: Group, call: _Call) -> _Done:
        try:
            result = call.work(group)
            group.keep_call()
            self._listener.call_kept()
            return _Done(result=result)
        except Exception as error:
            lost = isinstance(error, sa.exc.DBAPIError) and not isinstance(
                error, sa.exc.IntegrityError | sa.exc.DataError
            )
            if lost:
                raise  # the connection or the disk: nobody in this group can be sure of anything
            group.refuse_call()
            self._listener.call_refused()
            return _Done(error=error)
