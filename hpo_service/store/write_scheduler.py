"""Decides when the calls that wait are written, and by which lane; brings their outcomes back to the event loop.

Calls of one turn of the loop go together, and those of one batch come together: waking a thread costs as much as a
call's own work. If all of them are light, the event loop's lane takes them at once; while another batch is being
written, they wait.

Those who have just been answered are given a moment to call again: else the callers fall into two halves that are
written by turns, with twice as many commits. Where the writing is done in the event loop, and the callers take longer
to come again than two commits take, they are not waited for: the one half is written while the other is on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque

from hpo_service.domain.errors import HpoError
from hpo_service.store.batch_runner import BatchRunner
from hpo_service.store.lanes import LARGEST_BATCH, FlightLane, InlineLane, LoopLane, ThreadLane
from hpo_service.store.write_call import WriteCall, Written, failed

# More than a round of four callers takes on two cores; the event loop counts in whole milliseconds.
GATHERING_SECONDS = 0.002
WORTH_COMMITS = 2  # callers are waited for as long as so many commits take, on the average (docs/decisions/0021)
TRIED_AGAIN = 16  # batches, until it is looked at anew whether callers have become quicker


class WriteScheduler:
    def __init__(self, runner: BatchRunner) -> None:
        self._runner = runner
        self.thread = ThreadLane(runner, self._deliver)
        self._loop_lane: LoopLane = (
            FlightLane(runner, self.thread, self._deliver) if runner.is_shared else InlineLane(runner, self._deliver)
        )
        self._queued: list[WriteCall] = []
        self._all_light = True
        self._done: deque[Written] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._is_giving = False
        self._expected = 0  # so many calls may soon be here
        self._gathering: asyncio.TimerHandle | None = None
        self._gathering_since = 0.0
        self._gathering_seconds = 0.0  # on the average of the last times
        self._batches = 0
        self.waiting = 0  # calls without an answer yet

    def submit(self, call: WriteCall) -> None:
        """In the event loop; `call.done` is called there, too."""
        self.waiting += 1
        if not self._queued:
            self._be_in(asyncio.get_running_loop())
        self._queued.append(call)
        if not call.light:
            self._all_light = False
        if len(self._queued) == self._expected and self._loop is not None:
            self._loop.call_soon(self._write_queued)

    def _be_in(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._loop:
            self._end_gathering()
            self._loop, self._loop_thread = loop, threading.get_ident()
        loop.call_soon(self._write_queued)

    def _deliver(self, written: Written) -> None:
        """At the end of a batch, in the thread that has run it. Without calls it says only that the turn is over."""
        if written.calls:
            self._done.append(written)
        if self._is_giving and threading.get_ident() == self._loop_thread:
            return  # who hands over takes it
        if threading.get_ident() == self._loop_thread:
            self._batch_is_over()
        elif (self._done or self._queued) and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                self._loop.call_soon_threadsafe(self._batch_is_over)

    def _write_queued(self) -> None:
        if not self._queued:
            return
        if self._all_light:
            if len(self._queued) < self._expected:
                return  # they are handed over when more are here, or have not come
            self._end_gathering()
            if self._give_to_loop_lane() or self._runner.is_at_work:
                return  # those that are left are handed over when the batch under way has ended
        calls, self._queued, self._all_light = self._queued, [], True
        try:
            self.thread.put(calls)
        except HpoError as error:
            self._done.append(failed(calls, error))
            self._give_answers()

    def _give_to_loop_lane(self) -> bool:
        some = self._queued[:LARGEST_BATCH]  # others shall not have to wait for a crowd
        if self.thread.is_closed:
            return False
        self._is_giving = True
        try:
            taken = self._loop_lane.take(some)
        finally:
            self._is_giving = False
        if not taken:
            return False
        del self._queued[:taken]
        self._all_light = taken == len(some)
        if self._done and self._is_worth_gathering():
            self._gather()
        self._give_answers()
        if self._queued and self._loop is not None:
            self._loop.call_soon(self._write_queued)
        return True

    def _batch_is_over(self) -> None:
        """A batch has been written elsewhere, or has come back."""
        if self._done and (self._runner.is_shared or self._is_worth_gathering()):
            self._gather()
        self._give_answers()
        self._write_queued()

    def _give_answers(self) -> None:
        while self._done:
            written = self._done.popleft()
            for call, outcome in zip(written.calls, written.outcomes, strict=True):
                self.waiting -= 1
                call.done(outcome)

    # -- who may come again in a moment -------------------------------------------------------------------

    def _is_worth_gathering(self) -> bool:
        self._batches += 1
        return self._gathering_seconds <= self._worth_seconds() or self._batches % TRIED_AGAIN == 0

    def _worth_seconds(self) -> float:
        return WORTH_COMMITS * self._runner.commit_seconds

    def _gather(self) -> None:
        """Let as many come together, for a moment, as are answered now and as are waiting."""
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
        """All who were expected are here, or the moment is over."""
        if self._gathering is not None:
            self._gathering.cancel()
            self._expected, self._gathering = 0, None
            took = time.perf_counter() - self._gathering_since
            too_long = 2 * self._worth_seconds()  # how much too long does not matter: some will not come again
            self._gathering_seconds += 0.1 * (min(took, too_long) - self._gathering_seconds)
