"""Whether a failed call is retried, and after how long a wait."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from hpo_service.domain.errors import HpoError


@dataclass(frozen=True)
class Retries:
    """How long a call is tried again: waits of a random share of initial × 2ⁿ, until the deadline has passed.

    Full jitter: workers that lost their server together come back one by one.
    """

    initial: float = 0.5
    longest: float = 5.0
    deadline: float = 60.0

    def wait(self, failures: int, retry_after: float, rng: random.Random) -> float:
        """Seconds to wait after so many failures, never less than the server asked for."""
        return retry_after + rng.uniform(0, min(self.longest, self.initial * 2.0 ** min(failures - 1, 60)))

    def for_heartbeats(self) -> Retries:
        """The same with short waits: once a server is back it waits for a heartbeat no longer than a lease lasts."""
        return replace(self, longest=min(self.longest, 1.0))


LOG_AFTER_FAILURES = 3  # failures of one call
PATIENTLY = Retries()
NEVER = Retries(deadline=0)


class Failure(Exception):
    """A call that failed, and whether the same call may be made again."""

    def __init__(self, error: HpoError, *, retry: bool, retry_after: float = 0.0) -> None:
        self.error, self.retry, self.retry_after = error, retry, retry_after


class Backoff:
    """Counts the failures of one call, and decides after each whether and when to retry."""

    def __init__(self, retries: Retries, rng: random.Random, clock: Callable[[], float]) -> None:
        self.retries, self.rng, self.clock = retries, rng, clock
        self.failures, self.began = 0, clock()

    def after(self, failure: Failure) -> float | None:
        """The seconds to wait before the next try; None: it was the last one."""
        if not failure.retry:
            return None
        self.failures += 1
        wait = self.retries.wait(self.failures, failure.retry_after, self.rng)
        return wait if self.clock() - self.began + wait <= self.retries.deadline else None

    @property
    def should_log(self) -> bool:
        """Whether to log a warning: fewer than LOG_AFTER_FAILURES failures of a call are routine."""
        return self.failures >= LOG_AFTER_FAILURES
