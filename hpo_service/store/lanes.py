"""Where batches are run: three lanes, of which one at a time has the turn.

    inline     SQLite, calls that wait for nothing: in the event loop, which brings them. To hand them to a thread and
               back costs more than they do.
    in flight  PostgreSQL, the same calls: run in the event loop on what is known, sent in one round trip with their
               lock and their commit, and answered when the event loop hears of it (`study_lock.py`).
    thread     all others, and whatever has to be waited for: a slow disk, a lock, an answer of PostgreSQL.

An event loop's lane returns how many of the calls it has taken; those that it leaves are for the thread.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from typing import Protocol

import sqlalchemy as sa

from hpo_service.domain.errors import Unavailable
from hpo_service.store.batch_runner import BatchRunner, Locked
from hpo_service.store.engine import database_errors_translated, in_words_of_the_store
from hpo_service.store.one_round_trip import NotThisSession, Sent
from hpo_service.store.studies_aside import StudiesAside
from hpo_service.store.study_lock import MustWait, OutOfDate, StudiesHeld, held_by_others
from hpo_service.store.write_batch import WriteBatch
from hpo_service.store.write_call import Outcome, WriteCall, Written, asked_for, failed

LARGEST_BATCH = 64
QUICK_COMMIT_SECONDS = 0.01  # on the average of the last few: above it, no commit is waited for but in the thread
LOOK_AFTER_SECONDS = 1.0  # whether what is on its way has nobody left to land it

Deliver = Callable[[Written], None]  # takes a batch's outcomes in the thread that has run it


class LoopLane(Protocol):
    def take(self, calls: Sequence[WriteCall]) -> int: ...


class InlineLane:
    def __init__(self, runner: BatchRunner, deliver: Deliver) -> None:
        self._runner, self._deliver = runner, deliver

    def take(self, calls: Sequence[WriteCall]) -> int:
        runner = self._runner
        if runner.is_wanted or runner.commit_seconds > QUICK_COMMIT_SECONDS or not runner.turn.acquire(blocking=False):
            return 0
        try:
            written = runner.run(calls, patient=False)
        except Locked:
            return 0
        finally:
            runner.turn.release()
        self._deliver(written)
        return len(calls)


class ThreadLane:
    """A study that somebody else holds for long is set aside with its calls (`studies_aside.py`); the others go on."""

    def __init__(self, runner: BatchRunner, deliver: Deliver) -> None:
        self._runner, self._deliver_others = runner, deliver
        self._queue: queue.SimpleQueue[Sequence[WriteCall] | None] = queue.SimpleQueue()
        self.is_closed = False
        self.aside = StudiesAside()
        self.flight: Flight | None = None  # what the other lane has on its way
        self._thread = Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def put(self, calls: Sequence[WriteCall]) -> None:
        """Run them in one transaction, maybe together with others. Raise Unavailable."""
        if self.is_closed:
            raise Unavailable("the server is shutting down")
        self._queue.put(calls)

    def put_again(self, calls: Sequence[WriteCall]) -> None:
        """Calls that were begun before it closed, to be run with their studies locked."""
        self._queue.put(calls)

    def close(self) -> None:
        """Finish what was put, then stop."""
        self.is_closed = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            last = False
            while not last and (first := self._next()) is not None:
                batch, last = self._gather(first)
                if batch:
                    self._run_batch(batch)
                if self.aside.seconds_until_look() == 0:
                    self._look_at_those_aside()
        finally:
            with self._turn():
                pass  # what was on its way has landed, and may have come back to be run again
            with suppress(queue.Empty):
                while (rest := self._queue.get_nowait()) is not None:
                    self._run_batch(list(rest))
            self._give_up_waiting(all_=True)
            with self._turn():
                self._runner.let_go()

    def _deliver(self, written: Written) -> None:
        """Answer those who are answered in this thread; the others are for the event loop."""
        outcomes = list(zip(written.calls, written.outcomes, strict=True))
        for call, outcome in outcomes:
            if call.anywhere:
                call.done(outcome)
        others = [each for each in outcomes if not each[0].anywhere]
        self._deliver_others(Written([call for call, _ in others], [of for _, of in others]))

    def _next(self) -> Sequence[WriteCall] | None:
        """The next calls; none when it is time to look at those aside, and None at the end."""
        try:
            return self._queue.get(timeout=self.aside.seconds_until_look())
        except queue.Empty:
            return ()

    def _gather(self, first: Sequence[WriteCall]) -> tuple[list[WriteCall], bool]:
        batch = list(first)
        while len(batch) < LARGEST_BATCH:
            try:
                calls = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
            if calls is None:
                return batch, True
            batch.extend(calls)
        return batch, False

    def _run_batch(self, calls: list[WriteCall]) -> None:
        if self.aside.names:
            self.aside.wait(call for call in calls if self.aside.concerns(call))
            calls = [call for call in calls if not self.aside.concerns(call)]
        written = Written((), ())
        with self._turn():
            try:
                if calls:
                    written = self._runner.run(calls, patient=True)
            except StudiesHeld:
                self.aside.add(asked_for(calls)[0])
                self.aside.wait(calls)
        self._deliver(written)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for the turn. A batch in flight is landed by the event loop; where that has ended, here."""
        runner = self._runner
        runner.is_wanted = True
        while not runner.turn.acquire(timeout=LOOK_AFTER_SECONDS):
            if self.flight is not None and not self.flight.loop.is_running():
                self.flight.land_without_loop()
        runner.is_wanted = False
        try:
            yield
        finally:
            runner.turn.release()

    def _look_at_those_aside(self) -> None:
        with self._turn():
            free = self.aside.looked(self._held(sorted(self.aside.wanted())))
        self._give_up_waiting()
        for start in range(0, len(free), LARGEST_BATCH):
            self._run_batch(free[start : start + LARGEST_BATCH])

    def _held(self, names: Sequence[str]) -> set[str]:
        """Where the database is away nobody is: the calls that wait will be told so."""
        try:
            with self._runner.engine.connect() as connection:
                return held_by_others(connection, names)
        except sa.exc.SQLAlchemyError:
            return set()

    def _give_up_waiting(self, *, all_: bool = False) -> None:
        """Also tell those who have come while there was a look that it is over."""
        gone = self.aside.given_up(all_=all_)
        refused = Written([call for call, _ in gone], [Outcome(None, error) for _, error in gone])
        self._deliver(self._runner.noted(refused))


class FlightLane:
    def __init__(self, runner: BatchRunner, thread: ThreadLane, deliver: Deliver) -> None:
        self._runner, self._thread, self._deliver = runner, thread, deliver

    def take(self, calls: Sequence[WriteCall]) -> int:
        """Calls on studies that are held go to the thread, where they wait."""
        runner = self._runner
        if runner.is_wanted or not runner.turn.acquire(blocking=False):
            return 0
        if not self._thread.aside.names:
            return self._depart(calls)
        is_aside = [self._thread.aside.concerns(call) for call in calls]
        others = [place for place, aside in enumerate(is_aside) if not aside]
        if not others:
            runner.turn.release()
            return 0
        departed = self._depart([calls[place] for place in others])
        if departed == 0:
            return 0
        until = others[departed] if departed < len(others) else len(calls)
        left = [call for call, aside in zip(calls[:until], is_aside[:until], strict=True) if aside]
        if left:
            self._thread.put_again(left)
        return until

    def _depart(self, calls: Sequence[WriteCall]) -> int:
        """Run what can be run on what is known, and send it; at its landing the turn is over."""
        try:
            begun = self._runner.run_ahead(calls)
        except BaseException:
            self._runner.turn.release()
            raise
        if begun is None:
            self._runner.turn.release()
            return 0
        batch, outcomes = begun
        some = calls[: len(outcomes)]
        try:
            with database_errors_translated():
                sent = batch.sent()
        except MustWait:
            self._runner.forget(batch)
            self._runner.turn.release()
            return 0
        except Exception as error:
            self._runner.forget(batch)
            self._runner.let_go()
            self._runner.notes.failed(some, error)
            self._land(failed(some, in_words_of_the_store(error)))
        else:
            flight = Flight(self, asyncio.get_running_loop(), some, outcomes, batch, sent, time.perf_counter())
            self._thread.flight = flight
            flight.watch()
        return len(some)

    def arrived(self, flight: Flight) -> None:
        """Take what PostgreSQL says so far; when that is all, the calls have their answers."""
        runner, calls = self._runner, flight.calls
        was_out = flight.sent.is_out
        try:
            with database_errors_translated():
                if not flight.sent.arrived():
                    if flight.sent.is_out and not was_out:
                        flight.watch()
                    return
                flight.batch.arrived(flight.sent)
        except NotThisSession:
            runner.forget(flight.batch)
            self._run_again(flight)
        except OutOfDate as reason:
            if isinstance(reason, StudiesHeld):
                self._thread.aside.add(asked_for(calls)[0])
            runner.undo(flight.batch)
            self._run_again(flight)
        except Exception as error:
            runner.forget(flight.batch)
            self._disconnect(flight)
            runner.notes.failed(calls, error)
            self._land(failed(calls, in_words_of_the_store(error)))
        else:
            took = time.perf_counter() - flight.began
            runner.notes.committed(calls, flight.began, took, len(calls))
            flight.unwatch()
            self._land(Written(calls, flight.outcomes))

    def _run_again(self, flight: Flight) -> None:
        """With the lock held: nothing of it was written."""
        self._disconnect(flight)
        self._thread.put_again(flight.calls)
        self._land(Written((), ()))

    def _disconnect(self, flight: Flight) -> None:
        flight.unwatch()  # before the socket's number can be another's
        self._runner.let_go()

    def _land(self, written: Written) -> None:
        self._thread.flight = None
        self._runner.noted(written)
        self._runner.turn.release()
        self._deliver(written)


@dataclass(eq=False)
class Flight:
    """A batch that was sent to PostgreSQL, all of it, and is not waited for. began: by time.perf_counter."""

    lane: FlightLane
    loop: asyncio.AbstractEventLoop
    calls: Sequence[WriteCall]
    outcomes: Sequence[Outcome]
    batch: WriteBatch
    sent: Sent
    began: float
    _watched: tuple[int, bool] | None = None

    def watch(self) -> None:
        """Have the event loop say when PostgreSQL has something to read, or takes more."""
        self.unwatch()
        self._watched = (self.sent.socket, not self.sent.is_out)
        self.loop.add_reader(self.sent.socket, self.lane.arrived, self)
        if not self.sent.is_out:
            self.loop.add_writer(self.sent.socket, self.lane.arrived, self)

    def unwatch(self) -> None:
        watched, self._watched = self._watched, None
        if watched is not None and self.loop.is_running():
            self.loop.remove_reader(watched[0])
            if watched[1]:
                self.loop.remove_writer(watched[0])

    def land_without_loop(self) -> None:
        with suppress(sa.exc.DBAPIError, NotThisSession):
            self.sent.received()
        self.lane.arrived(self)
