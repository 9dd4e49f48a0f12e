"""The lane of the writer thread: whatever has to be waited for runs here."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Thread

import sqlalchemy as sa

from hpo_service.domain.errors import Unavailable
from hpo_service.store.batch_runner import BatchRunner
from hpo_service.store.held_studies import HeldStudies
from hpo_service.store.in_flight_batch import InFlightBatch
from hpo_service.store.lanes import LARGEST_BATCH, BatchEnded, Collect
from hpo_service.store.study_lock import StudyLockTimeout, held_by_others
from hpo_service.store.write_call import FinishedBatch, Outcome, WriteCall, give, studies_and_requests

LOOK_AFTER_SECONDS = 1.0  # how often the writer thread checks whether the event loop of a sent batch has ended


class ThreadLane:
    """The writer thread. After a lock timeout it parks the calls on the locked studies and runs the others."""

    def __init__(self, runner: BatchRunner, collect: Collect, batch_ended: BatchEnded) -> None:
        self._runner, self._collect_others, self._batch_ended = runner, collect, batch_ended
        self._queue: queue.SimpleQueue[Sequence[WriteCall] | None] = queue.SimpleQueue()
        self.is_closed = False
        self.held_studies = HeldStudies()
        # The batch that the pipeline lane has sent: set there, by whoever holds the write lock.
        self.flight: InFlightBatch | None = None
        self._thread = Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def put(self, calls: Sequence[WriteCall]) -> None:
        """Run them in one transaction, maybe together with others. Raise Unavailable."""
        if self.is_closed:
            raise Unavailable("the server is shutting down")
        self._queue.put(calls)

    def put_again(self, calls: Sequence[WriteCall]) -> None:
        """Queue calls of the pipeline lane (its batch failed, their study is held); also accepted during shutdown."""
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
        others = [each for each in outcomes if not each[0].done_in_thread]
        self._collect_others(FinishedBatch([call for call, _ in others], [of for _, of in others]))
        for call, outcome in outcomes:
            if call.done_in_thread:
                give(call, outcome)

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
            # Asked once of each call: the event loop may add a study at any moment.
            is_held = [self.held_studies.concerns(call) for call in calls]
            self.held_studies.park(call for call, held in zip(calls, is_held, strict=True) if held)
            calls = [call for call, held in zip(calls, is_held, strict=True) if not held]
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
