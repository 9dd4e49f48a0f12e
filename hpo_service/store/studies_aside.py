"""Studies that somebody else holds for long, set aside: their calls wait apart for a moment, and the others go on.

Usually a lock is held for the milliseconds of a batch. It is held for longer by a server that was stopped in the middle
of one, or by somebody at a console, until he goes on or PostgreSQL ends his transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

from hpo_service.domain.errors import StudyHeld
from hpo_service.store.write_call import WriteCall

WAITS_SECONDS = 1.0  # a call, for its study
LOOK_AGAIN_SECONDS = 0.1
MOST_WAITING = 1000  # calls


class StudiesAside:
    """Which studies are aside, and the calls that wait for them. Only the writer's thread changes it, but for `add`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.names: frozenset[str] = frozenset()
        self._clock = clock
        self._waiting: list[tuple[float, WriteCall]] = []  # and until when
        self._look_at = 0.0

    def add(self, names: Iterable[str]) -> None:
        """One of these is held: look at once which."""
        self.names = self.names.union(names)
        self._look_at = 0.0

    def concerns(self, call: WriteCall) -> bool:
        return any(name in self.names for name in call.studies)

    def wait(self, calls: Iterable[WriteCall]) -> None:
        """Have them wait until it is known whether their studies are held."""
        until = self._clock() + WAITS_SECONDS
        self._waiting += [(until, call) for call in calls]

    def wanted(self) -> frozenset[str]:
        """The studies of which it is to be known whether they are held."""
        return self.names.union(name for _, call in self._waiting for name in call.studies)

    def seconds_until_look(self) -> float | None:
        """None: there is nothing to look for."""
        return max(0.0, self._look_at - self._clock()) if self.names or self._waiting else None

    def looked(self, held: Collection[str]) -> list[WriteCall]:
        """Keep those aside that are held; return the calls that need wait no longer."""
        self.names = frozenset(held)
        self._look_at = self._clock() + LOOK_AGAIN_SECONDS
        free = [call for _, call in self._waiting if not self.concerns(call)]
        self._waiting = [(until, call) for until, call in self._waiting if self.concerns(call)]
        return free

    def given_up(self, *, all_: bool = False) -> list[tuple[WriteCall, StudyHeld]]:
        """Take out the calls that have waited for long enough, each with its refusal."""
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
