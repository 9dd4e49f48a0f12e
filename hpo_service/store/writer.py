"""Group commit: calls that wait together share one transaction and one fsync, each with its own answer.

One thread writes. It takes whatever calls have queued up, runs each inside a savepoint of one transaction, commits,
and only then hands out the answers. A call that is refused takes nothing of the others along; a commit that fails
fails all.

Light calls may run in the thread that brings them (`run_here`): handing them to another one and back costs more than
they do. That is for calls that wait for nothing: as soon as SQLite's disk is slow, or somebody else holds the file's
lock, or PostgreSQL has to be asked something, the writer's thread does the waiting. What PostgreSQL answers to a commit
is not waited for at all: the event loop says when it has come.

A study that somebody else holds for long is set aside with its calls (`studies_aside.py`), and the others go on.
"""

from __future__ import annotations

import queue
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import sqlalchemy as sa

from hpo_service import tracing
from hpo_service.domain.errors import Unavailable
from hpo_service.store.database_file import DatabaseFile
from hpo_service.store.engine import (
    begin,
    database_errors_translated,
    in_words_of_the_store,
    is_lock_timeout,
    is_locked,
    one_line,
)
from hpo_service.store.group_notes import GroupNotes
from hpo_service.store.one_round_trip import NotThisSession, Sent
from hpo_service.store.studies_aside import StudiesAside
from hpo_service.store.study_lock import MustWait, OutOfDate, StudiesHeld, held_by_others
from hpo_service.store.writing_record import Group, Memory

T = TypeVar("T")
Work = Callable[[Group], T]

LARGEST_GROUP = 64
CONNECTION_IDLE_SECONDS = 1.0
QUICK_COMMIT_SECONDS = 0.01  # on the average of the last few: above it, no commit is waited for but in the thread
LOCKED_PATIENCE_SECONDS = 10.0
LOOK_AGAIN_SECONDS = 0.005
LOOK_AFTER_SECONDS = 1.0  # whether what is on its way has nobody left to land it


class Call(NamedTuple):
    """What shall run in a transaction that holds these studies.

    done: takes the result and None after the commit, or None and the error, in the thread that has run it.
    request_id: of an ask. since: when it came, by time.perf_counter; trace: what it is part of.
    """

    work: Work[Any]
    studies: Sequence[str]
    done: Callable[[Any, BaseException | None], None]
    request_id: str | None = None
    since: float = 0.0
    trace: object = None


class Watching(Protocol):
    """A socket is watched by the event loop."""

    def stop(self) -> None: ...

    @property
    def is_over(self) -> bool:
        """Whether the event loop has ended."""


# Have the function called whenever this socket has something to read, or, where asked for, takes something more.
Watch = Callable[[int, bool, Callable[[], None]], Watching]


@dataclass
class _Flight:
    """A group that was sent to PostgreSQL, all of it, and is not waited for."""

    calls: Sequence[Call]
    outcomes: Sequence[_Outcome]
    group: Group
    sent: Sent
    watch: Watch
    began: float  # by time.perf_counter
    watching: Watching | None = None


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
        file: DatabaseFile | None = None,
    ) -> None:
        """memory: what the writer knows between transactions; listener: who else keeps something in memory.

        file: SQLite's, which is to be in its place before anything is acknowledged.
        """
        self._engine = engine
        self._memory = memory
        self._shared = engine.dialect.name != "sqlite"  # other servers may write the same database
        self._listener = listener
        self._file = file
        self._queue: queue.SimpleQueue[Sequence[Call] | None] = queue.SimpleQueue()
        self._closed = False
        self._connection: sa.Connection | None = None
        self._used_at = 0.0
        self.commit_seconds = 0.0
        self._notes = GroupNotes()
        self._in_hand = threading.Lock()  # held by whoever runs a group, until it is answered or has landed
        self._is_wanted = False  # by the writer's thread, which would not get it between two groups of the event loop
        self._flight: _Flight | None = None
        self._aside: StudiesAside[Call] = StudiesAside()
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

        self.submit_all([Call(work, studies, done, None, time.perf_counter(), tracing.context())])
        return answer

    def submit_all(self, calls: Sequence[Call]) -> None:
        """Run them in one transaction, one after the other, maybe together with others. Raise Unavailable."""
        if self._closed:
            raise Unavailable("the server is shutting down")
        self._queue.put(calls)

    def run_here(self, calls: Sequence[Call], watch: Watch) -> int:
        """Run the first of them in this thread, and return how many that were; `submit_all` has to take the others.

        On return they are answered, or on their way to PostgreSQL: then they are answered later, by what `watch` calls.
        """
        if self._closed or self._is_wanted or not (self._shared or self.commit_seconds <= QUICK_COMMIT_SECONDS):
            return 0
        if not self._in_hand.acquire(blocking=False):
            return 0
        if self._shared:
            return self._depart_without_those_aside(calls, watch) if self._aside.names else self._depart(calls, watch)
        try:
            answers = self._run_group(list(calls), patient=False)
        except _Locked:
            return 0
        finally:
            self._in_hand.release()
        _answer(answers)
        self._listener.answered()
        return len(calls)

    def _depart_without_those_aside(self, calls: Sequence[Call], watch: Watch) -> int:
        """Leave calls on studies that are held to the thread, where they wait."""
        is_aside = [self._aside.concerns(call) for call in calls]
        others = [place for place, aside in enumerate(is_aside) if not aside]
        if not others:
            self._in_hand.release()
            return 0
        departed = self._depart([calls[place] for place in others], watch)
        if departed == 0:
            return 0
        until = others[departed] if departed < len(others) else len(calls)
        left = [call for call, aside in zip(calls[:until], is_aside[:until], strict=True) if aside]
        if left:
            self._queue.put(left)
        return until

    def _depart(self, calls: Sequence[Call], watch: Watch) -> int:
        """Run what can be run on what is known, and send it; at its landing the lock is let go of."""
        try:
            begun = self._run_ahead(calls)
        except BaseException:
            self._forget()
            self._in_hand.release()
            raise
        if begun is None:
            self._in_hand.release()
            return 0
        group, outcomes = begun
        some = calls[: len(outcomes)]
        try:
            with database_errors_translated():
                sent = group.sent()
        except MustWait:
            self._forget()
            self._in_hand.release()
            return 0
        except Exception as error:
            self._forget()
            self._let_go()
            self._notes.failed(some, error)
            self._land(some, [_Outcome(None, error)] * len(some))
        else:
            self._flight = _Flight(some, outcomes, group, sent, watch, time.perf_counter())
            self._watch(self._flight)
        return len(some)

    def _run_ahead(self, calls: Sequence[Call]) -> tuple[Group, list[_Outcome]] | None:
        """Run them until one needs something of the database; None where the first does."""
        connection = self._connection_at_hand()
        if connection is None:
            return None
        group = Group(connection, self._memory, shared=True, goes_ahead=True)
        outcomes: list[_Outcome] = []
        try:
            group.lock(*_asked_for(calls))
            for call in calls:
                outcomes.append(self._run_one(group, call))  # noqa: PERF401 - those before one that fails are kept
        except MustWait:
            group.refuse_call()
            self._listener.call_refused()
        return (group, outcomes) if outcomes else None

    def _watch(self, flight: _Flight) -> None:
        if flight.watching is not None:
            flight.watching.stop()
        flight.watching = flight.watch(flight.sent.socket, not flight.sent.is_out, lambda: self._arrive(flight))

    def _arrive(self, flight: _Flight) -> None:
        """Take what PostgreSQL says so far; when that is all, the calls have their answers."""
        was_out = flight.sent.is_out
        try:
            with database_errors_translated():
                if not flight.sent.arrived():
                    if flight.sent.is_out and not was_out:
                        self._watch(flight)
                    return
                flight.group.arrived(flight.sent)
        except NotThisSession:
            self._forget()
            self._disconnect(flight)
            self._queue.put(flight.calls)
            self._land((), ())
        except OutOfDate as reason:
            if isinstance(reason, StudiesHeld):
                self._aside.add(_asked_for(flight.calls)[0])
            self._listener.rolled_back()
            self._disconnect(flight)
            self._queue.put(flight.calls)  # to be run with the lock held
            self._land((), ())
        except Exception as error:
            self._forget()
            self._disconnect(flight)
            self._notes.failed(flight.calls, error)
            self._land(flight.calls, [_Outcome(None, error)] * len(flight.calls))
        else:
            self._memory.committed(flight.group.touched)
            self._listener.committed()
            took = time.perf_counter() - flight.began
            self._notes.committed(flight.calls, flight.began, took, len(flight.calls))
            if flight.watching is not None:
                flight.watching.stop()
            self._land(flight.calls, flight.outcomes)

    def _disconnect(self, flight: _Flight) -> None:
        if flight.watching is not None:
            flight.watching.stop()  # before the socket's number can be another's
        self._let_go()

    def _land(self, calls: Sequence[Call], outcomes: Sequence[_Outcome]) -> None:
        self._flight = None
        self._in_hand.release()
        _answer(zip(calls, outcomes, strict=True))
        self._listener.answered()

    def _forget(self) -> None:
        self._memory.forget_all()
        self._listener.rolled_back()

    @property
    def studies_aside(self) -> frozenset[str]:
        """The studies that somebody else holds."""
        return self._aside.names

    @property
    def is_at_work(self) -> bool:
        """Whether a group runs now; at its end the listener is told."""
        return self._is_wanted or self._in_hand.locked()

    def close(self) -> None:
        """Finish what was submitted, then stop."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            last = False
            while not last and (first := self._next()) is not None:
                group, last = self._gather(first)
                if group:
                    self._run_in_hand(group)
                if self._aside.seconds_until_look() == 0:
                    self._look_at_those_aside()
        finally:
            with self._taken_in_hand():
                pass  # what was on its way has landed, and may have come back to be run again
            with suppress(queue.Empty):
                while (rest := self._queue.get_nowait()) is not None:
                    self._run_in_hand(list(rest))
            self._give_up_waiting(all_=True)
            self._listener.answered()
            with self._taken_in_hand():
                self._let_go()

    def _next(self) -> Sequence[Call] | None:
        """The next calls; none when it is time to look at those aside, and None at the end."""
        try:
            return self._queue.get(timeout=self._aside.seconds_until_look())
        except queue.Empty:
            return ()

    def _run_in_hand(self, calls: list[Call]) -> None:
        if self._aside.names:
            self._aside.wait(call for call in calls if self._aside.concerns(call))
            calls = [call for call in calls if not self._aside.concerns(call)]
        with self._taken_in_hand():
            try:
                answers = self._run_group(calls, patient=True) if calls else []
            except StudiesHeld:
                self._aside.add(_asked_for(calls)[0])
                self._aside.wait(calls)
                answers = []
        _answer(answers)
        self._listener.answered()

    def _look_at_those_aside(self) -> None:
        with self._taken_in_hand():
            free = self._aside.looked(self._held(sorted(self._aside.wanted())))
        self._give_up_waiting()
        self._listener.answered()  # who has come meanwhile has waited for the end of this
        for start in range(0, len(free), LARGEST_GROUP):
            self._run_in_hand(free[start : start + LARGEST_GROUP])

    def _held(self, names: Sequence[str]) -> set[str]:
        """Where the database is away nobody is: the calls that wait will be told so."""
        try:
            with self._engine.connect() as connection:
                return held_by_others(connection, names)
        except sa.exc.SQLAlchemyError:
            return set()

    def _give_up_waiting(self, *, all_: bool = False) -> None:
        _answer((call, _Outcome(None, refusal)) for call, refusal in self._aside.given_up(all_=all_))

    @contextmanager
    def _taken_in_hand(self) -> Iterator[None]:
        """Wait until no group runs. One that flies lands by the event loop; where that has ended, here."""
        self._is_wanted = True
        while not self._in_hand.acquire(timeout=LOOK_AFTER_SECONDS):
            flight = self._flight
            if flight is not None and flight.watching is not None and flight.watching.is_over:
                flight.watching = None
                with suppress(sa.exc.DBAPIError, NotThisSession):
                    flight.sent.received()
                self._arrive(flight)
        self._is_wanted = False
        try:
            yield
        finally:
            self._in_hand.release()

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
        try:
            with database_errors_translated(), self._transaction(patient) as connection:
                has_begun = time.perf_counter()
                group = Group(connection, self._memory, shared=self._shared)
                group.lock(*_asked_for(calls))
                outcomes = [self._run_one(group, call) for call in calls]
                began = time.perf_counter()
                group.commit()
                took = time.perf_counter() - began
                self.commit_seconds += 0.2 * (took - self.commit_seconds)
                if self._file is not None:
                    self._file.check()
        except (_Locked, StudiesHeld):
            raise
        except NotThisSession:
            self._forget()
            return self._run_group(calls, patient=True)
        except BaseException as error:
            self._forget()
            if len(calls) > 1 and isinstance(error, sa.exc.IntegrityError | sa.exc.DataError):
                # One call's rows were refused at the end: each by itself, so that only that one is refused.
                return [self._run_alone(call) for call in calls]
            self._notes.failed(calls, error)
            outcomes = [_Outcome(None, error)] * len(calls)
        else:
            self._memory.committed(group.touched)
            self._listener.committed()
            self._notes.committed(calls, has_begun, took, len(calls))
        return list(zip(calls, outcomes, strict=True))

    def _run_alone(self, call: Call) -> tuple[Call, _Outcome]:
        try:
            (answer,) = self._run_group([call], patient=True)
            return answer
        except StudiesHeld:
            return call, _Outcome(None, self._aside.refusal(call))

    @contextmanager
    def _transaction(self, patient: bool) -> Iterator[sa.Connection]:
        """One transaction on the connection of the last group, unless that failed or was long ago.

        From the pool it would cost as much as a call; and the pool looks whether it still lives, which is why one that
        has not been used for a while goes back there first.
        """
        if self._file is not None and self._file.is_gone:
            self._file.check_all()
        connection = self._connection_at_hand()
        if connection is None:
            self._let_go()
            self._connection = connection = self._engine.connect()
            self._used_at = time.monotonic()
        self._begin(connection, patient)
        try:
            yield connection
        except BaseException:
            self._let_go()
            raise

    def _connection_at_hand(self) -> sa.Connection | None:
        now = time.monotonic()
        if now - self._used_at > CONNECTION_IDLE_SECONDS or (self._shared and self._has_been_ended()):
            return None
        self._used_at = now
        return self._connection

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
            self._notes.locked(time.monotonic() - deadline + LOCKED_PATIENCE_SECONDS)
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
            if is_lock_timeout(error) and group.can_undo_sql:
                error = Unavailable(f"somebody else holds what the call needs: {one_line(error)}")
            lost = isinstance(error, sa.exc.DBAPIError) and not isinstance(
                error, sa.exc.IntegrityError | sa.exc.DataError
            )
            if lost:
                raise  # the connection or the disk: nobody in this group can be sure of anything
            group.refuse_call()
            self._listener.call_refused()
            return _Outcome(None, error)


def _asked_for(calls: Sequence[Call]) -> tuple[list[str], list[tuple[str, str]]]:
    """The studies of these calls, in order, and who asks which of them."""
    requests = [(name, call.request_id) for call in calls if call.request_id for name in call.studies]
    return sorted({name for call in calls for name in call.studies}), requests


def _answer(answers: Iterable[tuple[Call, _Outcome]]) -> None:
    for call, outcome in answers:
        call.done(outcome.result, in_words_of_the_store(outcome.error))
