"""Group commit: calls that wait together share one transaction and one fsync, each with its own answer.

One thread writes. It takes whatever calls have queued up, runs each inside a savepoint of one transaction, commits,
and only then hands out the answers. A call that is refused takes nothing of the others along; a commit that fails
fails all.

On SQLite, light calls may run in the thread that brings them (`run_here`): handing them to another one and back costs
more than they do. That is for calls that wait for nothing: as soon as the disk is slow, or somebody else holds the
file's lock, the writer's thread does the waiting.
"""

from __future__ import annotations

import queue
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar

import sqlalchemy as sa

from hpo_service.domain.errors import Unavailable
from hpo_service.store.engine import begin, database_errors_translated, is_locked
from hpo_service.store.study_lock import OutOfDate
from hpo_service.store.writing_record import Group, Memory

T = TypeVar("T")
Work = Callable[[Group], T]

LARGEST_GROUP = 64
CONNECTION_IDLE_SECONDS = 1.0
QUICK_COMMIT_SECONDS = 0.01  # on the average of the last few: above it, no commit is waited for but in the thread
LOCKED_PATIENCE_SECONDS = 10.0
LOOK_AGAIN_SECONDS = 0.005


class Call(NamedTuple):
    """What shall run in a transaction that holds these studies.

    done: takes the result and None after the commit, or None and the error, in the thread that has run it.
    request_id: of an ask.
    """

    work: Work[Any]
    studies: Sequence[str]
    done: Callable[[Any, BaseException | None], None]
    request_id: str | None = None


class _Locked(Exception):
    """Somebody else holds the file's lock, and it was not to be waited for."""


class _Outcome(NamedTuple):
    result: Any
    error: BaseException | None


class Listener(Protocol):
    """Whoever keeps in memory what calls have shown him, and must forget it when they are undone."""

    def call_kept(self) -> None: ...

    def call_refused(self) -> None: ...

    def committed(self) -> None: ...

    def rolled_back(self) -> None: ...

    def answered(self) -> None:
        """All calls of a group have had their answers."""


class NobodyListens:
    def call_kept(self) -> None: ...

    def call_refused(self) -> None: ...

    def committed(self) -> None: ...

    def rolled_back(self) -> None: ...

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
        self._queue: queue.SimpleQueue[Sequence[Call] | None] = queue.SimpleQueue()
        self._closed = False
        self._connection: sa.Connection | None = None
        self._used_at = 0.0
        self._commit_seconds = 0.0
        self._in_hand = threading.Lock()  # held by whoever runs a group
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def submit(self, work: Work[T], studies: Sequence[str] = ()) -> Future[T]:
        """Run `work` in a transaction that holds these studies; its result comes after the commit."""
        answer: Future[T] = Future()

        def done(result: Any, error: BaseException | None) -> None:
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        self.submit_all([Call(work, studies, done)])
        return answer

    def submit_all(self, calls: Sequence[Call]) -> None:
        """Run them in one transaction, one after the other, maybe together with others. Raise Unavailable."""
        if self._closed:
            raise Unavailable("the server is shutting down")
        self._queue.put(calls)

    def run_here(self, calls: Sequence[Call]) -> bool:
        """Run them in this thread, answered on return. False: nothing has run, and `submit_all` has to take them."""
        if self._shared or self._closed or self._commit_seconds > QUICK_COMMIT_SECONDS:
            return False
        if not self._in_hand.acquire(blocking=False):
            return False
        try:
            answers = self._run_group(list(calls), patient=False)
        except _Locked:
            return False
        finally:
            self._in_hand.release()
        _answer(answers)
        self._listener.answered()
        return True

    @property
    def is_at_work(self) -> bool:
        """Whether a group runs now; at its end the listener is told."""
        return self._in_hand.locked()

    def close(self) -> None:
        """Finish what was submitted, then stop."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while (first := self._queue.get()) is not None:
                group, last = self._gather(first)
                with self._in_hand:
                    answers = self._run_group(group, patient=True)
                _answer(answers)
                self._listener.answered()
                if last:
                    return
        finally:
            with self._in_hand:
                self._let_go()

    def _gather(self, first: Sequence[Call]) -> tuple[list[Call], bool]:
        group = list(first)
        while len(group) < LARGEST_GROUP:
            try:
                calls = self._queue.get_nowait()
            except queue.Empty:
                return group, False
            if calls is None:
                return group, True
            group.extend(calls)
        return group, False

    def _run_group(self, calls: list[Call], *, patient: bool) -> list[tuple[Call, _Outcome]]:
        """Run them in one transaction. patient: whether to wait for the file's lock; else raise _Locked."""
        studies = sorted({name for call in calls for name in call.studies})
        try:
            with database_errors_translated(), self._transaction(patient) as connection:
                group = Group(connection, self._memory, shared=self._shared)
                group.lock(
                    studies, [(name, call.request_id) for call in calls if call.request_id for name in call.studies]
                )
                try:
                    outcomes = [self._run_one(group, call) for call in calls]
                    group.connection  # noqa: B018  # the lock has arrived
                except OutOfDate:
                    self._listener.rolled_back()
                    group = group.again()
                    outcomes = [self._run_one(group, call) for call in calls]
                began = time.perf_counter()
                group.commit()
                self._commit_seconds += 0.2 * (time.perf_counter() - began - self._commit_seconds)
        except _Locked:
            raise
        except BaseException as error:
            self._memory.forget_all()
            self._listener.rolled_back()
            if len(calls) > 1 and isinstance(error, sa.exc.IntegrityError | sa.exc.DataError):
                # One call's rows were refused at the end: each by itself, so that only that one is refused.
                return [answer for call in calls for answer in self._run_group([call], patient=True)]
            outcomes = [_Outcome(None, error)] * len(calls)
        else:
            self._memory.committed(group.touched)
            self._listener.committed()
        return list(zip(calls, outcomes, strict=True))

    @contextmanager
    def _transaction(self, patient: bool) -> Iterator[sa.Connection]:
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
        self._begin(self._connection, patient)
        try:
            yield self._connection
        except BaseException:
            self._let_go()
            raise

    def _begin(self, connection: sa.Connection, patient: bool) -> None:
        """The writer's connection itself waits for nobody: a lock that is held is waited for here, in short steps."""
        deadline = time.monotonic() + LOCKED_PATIENCE_SECONDS
        while True:
            try:
                begin(connection)
                return
            except sa.exc.OperationalError as error:
                if not is_locked(error):
                    self._let_go()
                    raise
                if not patient:
                    raise _Locked from None
                if time.monotonic() > deadline:
                    raise
            time.sleep(LOOK_AGAIN_SECONDS)

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

    def _run_one(self, group: Group, call: Call) -> _Outcome:
        try:
            result = call.work(group)
            group.keep_call()
            self._listener.call_kept()
            return _Outcome(result, None)
        except Exception as error:
            lost = isinstance(error, sa.exc.DBAPIError) and not isinstance(
                error, sa.exc.IntegrityError | sa.exc.DataError
            )
            if lost:
                raise  # the connection or the disk: nobody in this group can be sure of anything
            group.refuse_call()
            self._listener.call_refused()
            return _Outcome(None, error)


def _answer(answers: list[tuple[Call, _Outcome]]) -> None:
    for call, outcome in answers:
        call.done(*outcome)
