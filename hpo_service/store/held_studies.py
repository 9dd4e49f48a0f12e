"""Studies that another transaction keeps locked: their calls are parked for a second, and the others go on.

Usually a lock is held for the milliseconds of a batch. It is held for longer by a server that was stopped in the middle
of one, or by somebody at a console, until that transaction goes on or PostgreSQL ends it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

from hpo_service.domain.errors import StudyHeld
from hpo_service.store.write_call import WriteCall

WAITS_SECONDS = 1.0  # how long a call is parked before it is refused
CHECK_SECONDS = 0.1
MOST_WAITING = 1000  # calls


class HeldStudies:
    """Held studies and the calls parked for them. Changed only by the writer thread, but for `add`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.names: frozenset[str] = frozenset()
        self._clock = clock
        self._waiting: list[tuple[float, WriteCall]] = []  # and until when
        self._check_at = 0.0

    def add(self, names: Iterable[str]) -> None:
        """A lock timeout: one of these is held. Check at once which."""
        self.names = self.names.union(names)
        self._check_at = 0.0

    def concerns(self, call: WriteCall) -> bool:
        return any(name in self.names for name in call.studies)

    def park(self, calls: Iterable[WriteCall]) -> None:
        """Park these calls. Each is refused after a second, unless a check finds its studies unlocked."""
        until = self._clock() + WAITS_SECONDS
        self._waiting += [(until, call) for call in calls]

    def wanted(self) -> frozenset[str]:
        """Names of the studies to check."""
        return self.names.union(name for _, call in self._waiting for name in call.studies)

    def seconds_until_check(self) -> float | None:
        """Seconds until the next check is due; None if there is nothing to check."""
        return max(0.0, self._check_at - self._clock()) if self.names or self._waiting else None

    def take_check(self, held: Collection[str]) -> list[WriteCall]:
        """Take the result of a check: keep the studies still held; return the calls that are free to run."""
        self.names = frozenset(held)
        self._check_at = self._clock() + CHECK_SECONDS
        free = [call for _, call in self._waiting if not self.concerns(call)]
        self._waiting = [(until, call) for until, call in self._waiting if self.concerns(call)]
        return free

    def expired(self, *, all_: bool = False) -> list[tuple[WriteCall, StudyHeld]]:
        """Remove the calls that have waited for a second, or are too many; return each with its refusal."""
        now, too_many = self._clock(), len(self._waiting) - MOST_WAITING
        over = [all_ or until <= now or place < too_many for place, (until, _) in enumerate(self._waiting)]
        gone = [call for (_, call), is_over in zip(self._waiting, over, strict=True) if is_over]
        self._waiting = [entry for entry, is_over in zip(self._waiting, over, strict=True) if not is_over]
        return [(call, refusal([name for name in call.studies if name in self.names] or call.studies)) for call in gone]


def refusal(names: Collection[str]) -> StudyHeld:
    return StudyHeld(
        f"the study {', '.join(sorted(names))} is held by another server, or by somebody at the database, in a "
        "transaction that has not ended; try again in a second"
    )
