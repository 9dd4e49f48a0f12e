"""PostgreSQL's lane for short calls: run in the event loop on the cached studies, sent in one round trip.

The write lock is taken in `take`, and released when the answer to what was sent has been read (`_complete_batch`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from hpo_service.store.batch_runner import BatchRunner
from hpo_service.store.engine import database_errors_translated, in_words_of_the_store
from hpo_service.store.in_flight_batch import InFlightBatch
from hpo_service.store.lanes import BatchEnded, Collect
from hpo_service.store.one_round_trip import NotThisSession
from hpo_service.store.study_lock import OptimisticLockFailed, StudyLockTimeout, WouldBlock
from hpo_service.store.thread_lane import ThreadLane
from hpo_service.store.write_batch import WriteBatch
from hpo_service.store.write_call import FinishedBatch, WriteCall, all_failed, studies_and_requests


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
                sent, loop = batch.send(), asyncio.get_running_loop()
                flight = InFlightBatch(self.on_socket_ready, loop, some, outcomes, batch, sent, time.perf_counter())
                flight.watch()
        except WouldBlock:
            self._runner.forget(batch)
            self._runner.write_lock.release()
            return 0
        except Exception as error:
            self._fail(some, batch, error)
        else:
            self._thread.flight = flight
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
            flight.unwatch()
            self._fail(calls, flight.batch, error)
        else:
            took = time.perf_counter() - flight.began
            flight.unwatch()
            self._complete_batch(FinishedBatch(calls, flight.outcomes))
            runner.notes.committed(calls, flight.began, took, len(calls))

    def _run_again(self, flight: InFlightBatch) -> None:
        """Nothing of the batch was written: queue its calls for the thread, which locks their studies."""
        flight.unwatch()  # before the socket's number can be another's
        self._thread.put_again(flight.calls)
        try:
            self._runner.release_connection()
        finally:
            self._complete_batch(FinishedBatch((), ()))

    def _fail(self, calls: Sequence[WriteCall], batch: WriteBatch, error: Exception) -> None:
        """Whether the batch was committed is not known: its calls are refused, and the connection is closed."""
        try:
            self._runner.forget(batch)
            self._runner.release_connection()
            self._runner.notes.failed(calls, error)
        finally:
            self._complete_batch(all_failed(calls, in_words_of_the_store(error)))

    def _complete_batch(self, written: FinishedBatch) -> None:
        self._thread.flight = None
        try:
            self._collect(self._runner.record_refusals(written))
        finally:
            self._runner.write_lock.release()
        self._batch_ended()
