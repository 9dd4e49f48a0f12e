"""Three ways to run a batch of calls; whoever holds the runner's write lock is the only one that runs one.

    inline    SQLite, short calls (`runs_in_loop`): in the event loop. A thread and back would cost more than they do.
    pipeline  PostgreSQL, short calls: run in the event loop on the cached studies, then sent in one round trip (lock,
              rows, commit); the event loop is told when the answer is there (optimistic locking: `study_lock.py`).
    thread    all others, and whatever has to be waited for: a slow disk, a lock, an answer of PostgreSQL.

The event loop's lane returns how many of the calls it has taken; the thread lane takes those that are left.
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
from hpo_service.store.held_studies import HeldStudies
from hpo_service.store.one_round_trip import NotThisSession, RoundTrip
from hpo_service.store.study_lock import OptimisticLockFailed, StudyLockTimeout, WouldBlock, held_by_others
from hpo_service.store.write_batch import WriteBatch
from hpo_service.store.write_call import FinishedBatch, Outcome, WriteCall, all_failed, studies_and_requests

LARGEST_BATCH = 64
QUICK_COMMIT_SECONDS = 0.01  # average commit time above which the event loop does not wait for one itself
LOOK_AFTER_SECONDS = 1.0  # how often the writer thread checks whether the event loop of a sent batch has ended

# Called while the write lock is held, so that outcomes are delivered in the order of the commits: an ask that found
# nothing is listed as waiting before the outcome of a later batch wakes those who wait.
Collect = Callable[[FinishedBatch], None]
BatchEnded = Callable[[], None]  # called after the write lock was released, in the same thread


class LoopLane(Protocol):
    def take(self, calls: Sequence[WriteCall]) -> int: ...


class InlineLane:
    def __init__(self, runner: BatchRunner, collect: Collect) -> None:
        self._runner, self._collect = runner, collect

    def take(self, calls: Sequence[WriteCall]) -> int:
        runner = self._runner
        if (
            runner.thread_is_waiting
            or runner.commit_seconds > QUICK_COMMIT_SECONDS
            or not runner.write_lock.acquire(blocking=False)
        ):
            return 0
        try:
            self._collect(runner.run(calls, wait_for_lock=False))
        except Locked:
            return 0
        finally:
            runner.write_lock.release()
        return len(calls)


class ThreadLane:
    """The writer thread. After a lock timeout it parks the calls on the locked studies and runs the others."""

    def __init__(self, runner: BatchRunner, collect: Collect, batch_ended: BatchEnded) -> None:
        self._runner, self._collect_others, self._batch_ended = runner, collect, batch_ended
        self._queue: queue.SimpleQueue[Sequence[WriteCall] | None] = queue.SimpleQueue()
        self.is_closed = False
        self.held_studies = HeldStudies()
        self.flight: InFlightBatch | None = None  # the batch that the pipeline lane has sent
        self._thread = Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def put(self, calls: Sequence[WriteCall]) -> None:
        """Run them in one transaction, maybe together with others. Raise Unavailable."""
        if self.is_closed:
            raise Unavailable("the server is shutting down")
        self._queue.put(calls)

    def put_again(self, calls: Sequence[WriteCall]) -> None:
        """Queue calls whose optimistic batch failed; unlike `put`, also accepted during shutdown."""
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
                if self.held_studies.seconds_until_check() == 0:
                    self._check_held_studies()
        finally:
            with self._write_lock():
                pass  # a sent batch has its answer now, and may have been queued to run again
            with suppress(queue.Empty):
                while (rest := self._queue.get_nowait()) is not None:
                    self._run_batch(list(rest))
            self._give_up_waiting(all_=True)
            with self._write_lock():
                self._runner.release_connection()
            self._batch_ended()  # calls that were queued while the lock was held here: they are refused now

    def _collect(self, written: FinishedBatch) -> None:
        """Call `done` here for calls with `done_in_thread`; the others are delivered in the event loop."""
        outcomes = list(zip(written.calls, written.outcomes, strict=True))
        for call, outcome in outcomes:
            if call.done_in_thread:
                call.done(outcome)
        others = [each for each in outcomes if not each[0].done_in_thread]
        self._collect_others(FinishedBatch([call for call, _ in others], [of for _, of in others]))

    def _next(self) -> Sequence[WriteCall] | None:
        """The next calls; empty when it is time to check the held studies, None at the end."""
        try:
            return self._queue.get(timeout=self.held_studies.seconds_until_check())
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
        if self.held_studies.names:
            self.held_studies.park(call for call in calls if self.held_studies.concerns(call))
            calls = [call for call in calls if not self.held_studies.concerns(call)]
        with self._write_lock():
            try:
                if calls:
                    self._collect(self._runner.run(calls, wait_for_lock=True))
            except StudyLockTimeout:
                self.held_studies.add(studies_and_requests(calls)[0])
                self.held_studies.park(calls)
        self._batch_ended()

    @contextmanager
    def _write_lock(self) -> Iterator[None]:
        """Wait for the write lock. A sent batch is completed by the event loop, or here where that has ended."""
        runner = self._runner
        runner.thread_is_waiting = True
        while not runner.write_lock.acquire(timeout=LOOK_AFTER_SECONDS):
            if self.flight is not None and not self.flight.loop.is_running():
                self.flight.complete_without_loop()
        runner.thread_is_waiting = False
        try:
            yield
        finally:
            runner.write_lock.release()

    def _check_held_studies(self) -> None:
        with self._write_lock():
            free = self.held_studies.take_check(self._held(sorted(self.held_studies.wanted())))
        self._give_up_waiting()
        for start in range(0, len(free), LARGEST_BATCH):
            self._run_batch(free[start : start + LARGEST_BATCH])

    def _held(self, names: Sequence[str]) -> set[str]:
        """Which of these studies are locked; none if the database is down: then the calls run, and are refused."""
        try:
            with self._runner.engine.connect() as connection:
                return held_by_others(connection, names)
        except sa.exc.SQLAlchemyError:
            return set()

    def _give_up_waiting(self, *, all_: bool = False) -> None:
        """Refuse with StudyHeld the calls that have waited for a held study for a second, or are too many; or all."""
        gone = self.held_studies.expired(all_=all_)
        refused = FinishedBatch([call for call, _ in gone], [Outcome(None, error) for _, error in gone])
        self._collect(self._runner.record_refusals(refused))
        self._batch_ended()


class PipelineLane:
    def __init__(self, runner: BatchRunner, thread: ThreadLane, collect: Collect, batch_ended: BatchEnded) -> None:
        self._runner, self._thread, self._collect, self._batch_ended = runner, thread, collect, batch_ended

    def take(self, calls: Sequence[WriteCall]) -> int:
        """Send a batch of these calls; return how many were taken. Calls on held studies are queued for the thread."""
        runner = self._runner
        if runner.thread_is_waiting or not runner.write_lock.acquire(blocking=False):
            return 0
        if not self._thread.held_studies.names:
            return self._run_and_send(calls)
        is_held = [self._thread.held_studies.concerns(call) for call in calls]
        others = [place for place, held in enumerate(is_held) if not held]
        if not others:
            runner.write_lock.release()
            return 0
        taken = self._run_and_send([calls[place] for place in others])
        if taken == 0:
            return 0
        until = others[taken] if taken < len(others) else len(calls)
        left = [call for call, held in zip(calls[:until], is_held[:until], strict=True) if held]
        if left:
            self._thread.put_again(left)
        return until

    def _run_and_send(self, calls: Sequence[WriteCall]) -> int:
        """Run the calls on the cache and send the batch. The write lock stays held until its results have come."""
        try:
            begun = self._runner.run_optimistically(calls)
        except BaseException:
            self._runner.write_lock.release()
            raise
        if begun is None:
            self._runner.write_lock.release()
            return 0
        batch, outcomes = begun
        some = calls[: len(outcomes)]
        try:
            with database_errors_translated():
                sent = batch.send()
        except WouldBlock:
            self._runner.forget(batch)
            self._runner.write_lock.release()
            return 0
        except Exception as error:
            self._runner.forget(batch)
            self._runner.release_connection()
            self._runner.notes.failed(some, error)
            self._complete_batch(all_failed(some, in_words_of_the_store(error)))
        else:
            flight = InFlightBatch(self, asyncio.get_running_loop(), some, outcomes, batch, sent, time.perf_counter())
            self._thread.flight = flight
            flight.watch()
        return len(some)

    def on_socket_ready(self, flight: InFlightBatch) -> None:
        """Called when the socket is ready. After the last result: deliver the outcomes, run again, or 503."""
        runner, calls = self._runner, flight.calls
        was_out = flight.sent.is_out
        try:
            with database_errors_translated():
                if not flight.sent.receive_available():
                    if flight.sent.is_out and not was_out:
                        flight.watch()
                    return
                flight.batch.read_results(flight.sent)
        except NotThisSession:
            runner.forget(flight.batch)
            self._run_again(flight)
        except OptimisticLockFailed as reason:
            if isinstance(reason, StudyLockTimeout):
                self._thread.held_studies.add(studies_and_requests(calls)[0])
            runner.discard_tuners(flight.batch)
            self._run_again(flight)
        except Exception as error:
            runner.forget(flight.batch)
            self._disconnect(flight)
            runner.notes.failed(calls, error)
            self._complete_batch(all_failed(calls, in_words_of_the_store(error)))
        else:
            took = time.perf_counter() - flight.began
            runner.notes.committed(calls, flight.began, took, len(calls))
            flight.unwatch()
            self._complete_batch(FinishedBatch(calls, flight.outcomes))

    def _run_again(self, flight: InFlightBatch) -> None:
        """Nothing of the batch was written: queue its calls for the thread, which locks their studies."""
        self._disconnect(flight)
        self._thread.put_again(flight.calls)
        self._complete_batch(FinishedBatch((), ()))

    def _disconnect(self, flight: InFlightBatch) -> None:
        flight.unwatch()  # before the socket's number can be another's
        self._runner.release_connection()

    def _complete_batch(self, written: FinishedBatch) -> None:
        self._thread.flight = None
        self._collect(self._runner.record_refusals(written))
        self._runner.write_lock.release()
        self._batch_ended()


@dataclass(eq=False)
class InFlightBatch:
    """A batch that was sent to PostgreSQL and has no answer yet. began: by time.perf_counter."""

    lane: PipelineLane
    loop: asyncio.AbstractEventLoop
    calls: Sequence[WriteCall]
    outcomes: Sequence[Outcome]
    batch: WriteBatch
    sent: RoundTrip
    began: float
    _watched: tuple[int, bool] | None = None

    def watch(self) -> None:
        """Have the event loop call `on_socket_ready` when the socket is readable (or writable: more to send)."""
        self.unwatch()
        self._watched = (self.sent.socket, not self.sent.is_out)
        self.loop.add_reader(self.sent.socket, self.lane.on_socket_ready, self)
        if not self.sent.is_out:
            self.loop.add_writer(self.sent.socket, self.lane.on_socket_ready, self)

    def unwatch(self) -> None:
        watched, self._watched = self._watched, None
        if watched is not None and self.loop.is_running():
            self.loop.remove_reader(watched[0])
            if watched[1]:
                self.loop.remove_writer(watched[0])

    def complete_without_loop(self) -> None:
        with suppress(sa.exc.DBAPIError, NotThisSession):
            self.sent.received()
        self.lane.on_socket_ready(self)
