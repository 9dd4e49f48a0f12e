"""Decides when submitted calls are written, and in which lane; delivers their outcomes in the event loop.

Calls of one iteration of the event loop form a batch, since waking a thread costs as much as a call's own work. If all
of them have `runs_in_loop`, the event loop's lane runs them at once; while another batch is being written, they wait.

After a batch of several calls the next one waits up to 2 ms, so that the callers just answered can join it: else they
fall into two halves that are written alternately, with twice as many commits. Where batches are written in the event
loop itself, and callers take longer than two commits to call again, nobody waits for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque

import structlog

from hpo_service.domain.errors import HpoError
from hpo_service.store.batch_runner import BatchRunner
from hpo_service.store.inline_lane import InlineLane
from hpo_service.store.lanes import LARGEST_BATCH, LoopLane
from hpo_service.store.pipeline_lane import PipelineLane
from hpo_service.store.thread_lane import ThreadLane
from hpo_service.store.write_call import FinishedBatch, WriteCall, all_failed, give

log = structlog.get_logger()

# Longest wait for callers that were just answered to call again. Event loop timers have a resolution of 1 ms.
GATHERING_SECONDS = 0.002
# On SQLite a batch is gathered only where that has lately taken at most so many commits (docs/decisions/0021).
WORTH_COMMITS = 2
TRIED_AGAIN = 16  # every 16th batch is gathered in any case: callers may have become quicker


class WriteScheduler:
    def __init__(self, runner: BatchRunner) -> None:
        self._runner = runner
        self.thread = ThreadLane(runner, self._collect, self._batch_ended)
        self._loop_lane: LoopLane = (
            PipelineLane(runner, self.thread, self._collect, self._batch_ended)
            if runner.is_shared
            else InlineLane(runner, self._collect)
        )
        self._queued: list[WriteCall] = []
        self._all_run_in_loop = True
        self._done: deque[FinishedBatch] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._is_giving = False
        self._expected = 0  # calls that the gathering timer waits for
        self._gathering: asyncio.TimerHandle | None = None
        self._gathering_since = 0.0
        self._gathering_seconds = 0.0  # average of the last times
        self._batches = 0
        self.waiting = 0  # calls without an answer yet

    def submit(self, call: WriteCall) -> None:
        """Queue a call, in the event loop, which runs it on its next iteration and calls `call.done`."""
        self.waiting += 1
        if not self._queued:
            self._be_in(asyncio.get_running_loop())
        self._queued.append(call)
        if not call.runs_in_loop:
            self._all_run_in_loop = False
        if len(self._queued) == self._expected and self._loop is not None:
            self._loop.call_soon(self._write_queued)

    def _be_in(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._loop:
            self._end_gathering()
            self._loop, self._loop_thread = loop, threading.get_ident()
        loop.call_soon(self._write_queued)

    def _collect(self, written: FinishedBatch) -> None:
        if written.calls:
            self._done.append(written)

    def _batch_ended(self) -> None:
        """Called in the thread that has run a batch, or has only released the write lock again."""
        if self._is_giving and threading.get_ident() == self._loop_thread:
            return  # an inline batch: _give_to_loop_lane, which called us, answers it
        if threading.get_ident() == self._loop_thread:
            self._batch_is_over()
        elif (self._done or self._queued) and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                self._loop.call_soon_threadsafe(self._batch_is_over)

    def _write_queued(self) -> None:
        if not self._queued:
            return
        if self._all_run_in_loop:
            if len(self._queued) < self._expected:
                return  # written when the expected calls have come, or the gathering timer is over
            self._end_gathering()
            if self._give_to_loop_lane() or self._runner.is_busy:
                return  # the rest is written when the batch that runs now has ended
        calls, self._queued, self._all_run_in_loop = self._queued, [], True
        try:
            self.thread.put(calls)
        except HpoError as error:
            self._done.append(all_failed(calls, error))
            self._give_answers()

    def _give_to_loop_lane(self) -> bool:
        some = self._queued[:LARGEST_BATCH]  # a large batch would keep the event loop from other calls
        if self.thread.is_closed:
            return False
        self._is_giving = True
        try:
            taken = self._loop_lane.take(some)
        except Exception as error:  # these calls only: the queue goes on
            log.exception("a batch failed in the event loop", calls=len(some))
            self._done.append(all_failed(some, error))
            taken = len(some)
        finally:
            self._is_giving = False
        if not taken:
            return False
        del self._queued[:taken]
        self._all_run_in_loop = taken == len(some)
        if self._done and self._is_worth_gathering():
            self._gather()
        self._give_answers()
        if self._queued and self._loop is not None:
            self._loop.call_soon(self._write_queued)
        return True

    def _batch_is_over(self) -> None:
        """In the event loop, after a batch that did not run in it: answer its calls, then start the next one."""
        if self._done and (self._runner.is_shared or self._is_worth_gathering()):
            self._gather()
        self._give_answers()
        self._write_queued()

    def _give_answers(self) -> None:
        while self._done:
            written = self._done.popleft()
            for call, outcome in zip(written.calls, written.outcomes, strict=True):
                self.waiting -= 1
                give(call, outcome)

    # -- waiting for callers that were just answered -------------------------------------------------------------------

    def _is_worth_gathering(self) -> bool:
        self._batches += 1
        return self._gathering_seconds <= self._worth_seconds() or self._batches % TRIED_AGAIN == 0

    def _worth_seconds(self) -> float:
        return WORTH_COMMITS * self._runner.commit_seconds

    def _gather(self) -> None:
        """Start the gathering timer: the next batch waits for as many calls as are now answered or queued."""
        assert self._loop is not None
        self._end_gathering()
        calls = sum(len(written.calls) for written in self._done) + len(self._queued)
        if calls > 1:
            self._expected, self._gathering_since = min(calls, LARGEST_BATCH), time.perf_counter()
            self._gathering = self._loop.call_later(GATHERING_SECONDS, self._write_gathered)

    def _write_gathered(self) -> None:
        self._end_gathering()
        self._write_queued()

    def _end_gathering(self) -> None:
        """The expected calls have come, or the timer is over: note how long that took."""
        if self._gathering is not None:
            self._gathering.cancel()
            self._expected, self._gathering = 0, None
            took = time.perf_counter() - self._gathering_since
            too_long = 2 * self._worth_seconds()  # how much too long does not matter: some will not come again
            self._gathering_seconds += 0.1 * (min(took, too_long) - self._gathering_seconds)
