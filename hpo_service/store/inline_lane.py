"""SQLite's lane for short calls: they are run and committed in the event loop."""

from __future__ import annotations

from collections.abc import Sequence

from hpo_service.store.batch_runner import BatchRunner, Locked
from hpo_service.store.lanes import Collect
from hpo_service.store.write_call import WriteCall

QUICK_COMMIT_SECONDS = 0.01  # average commit time above which the event loop does not wait for one itself


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
