"""Whether the database accepts writes, checked once a second at most: anybody may ask, and each check is a commit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

GOOD_FOR_SECONDS = 1.0


class Readiness:
    """One check at a time: concurrent callers await the same one, and its result holds for GOOD_FOR_SECONDS."""

    def __init__(self, check: Callable[[], list[str]], clock: Callable[[], float] = time.monotonic) -> None:
        """check: returns what is wrong; it may take seconds, and runs in a thread."""
        self._check, self._clock = check, clock
        self._under_way: asyncio.Task[list[str]] | None = None
        self._found: list[str] = []
        self._good_until = float("-inf")

    async def faults(self) -> list[str]:
        if self._clock() < self._good_until:
            return self._found
        if self._under_way is None:
            self._under_way = asyncio.create_task(self._ask())
        return await asyncio.shield(self._under_way)  # a caller that is cancelled does not cancel the check

    async def _ask(self) -> list[str]:
        try:
            self._found = await asyncio.to_thread(self._check)
            self._good_until = self._clock() + GOOD_FOR_SECONDS
            return self._found
        finally:
            self._under_way = None
