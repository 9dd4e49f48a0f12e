"""Three ways to run a batch of calls; whoever holds the runner's write lock is the only one that runs one.

    inline    SQLite, short calls (`runs_in_loop`): in the event loop. A thread and back would cost more than they do.
    pipeline  PostgreSQL, short calls: run in the event loop on the cached studies, then sent in one round trip (lock,
              rows, commit); the event loop is told when the answer is there (optimistic locking: `study_lock.py`).
    thread    all others, and whatever has to be waited for: a slow disk, a lock, an answer of PostgreSQL.

The event loop's lane returns how many of the calls it has taken; the thread lane takes those that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from hpo_service.store.write_call import FinishedBatch, WriteCall

LARGEST_BATCH = 64

# Called while the write lock is held, so that outcomes are delivered in the order of the commits: an ask that found
# nothing is listed as waiting before the outcome of a later batch wakes those who wait. (Refusals of calls that were
# never written may be collected without the lock.)
Collect = Callable[[FinishedBatch], None]
BatchEnded = Callable[[], None]  # called after the write lock was released, in the same thread


class LoopLane(Protocol):
    def take(self, calls: Sequence[WriteCall]) -> int: ...
