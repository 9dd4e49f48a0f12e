"""Outages that are logged once when they begin and once when they end, however many failures lie in between."""

from __future__ import annotations

import time
from collections.abc import Coroutine
from typing import Any

import structlog

from hpo_service.domain.errors import HpoError
from hpo_service.log_format import limited

log = structlog.get_logger()


class LoggedState:
    """Whether something fails or works. begins, ends: what is logged when it starts and when it stops failing."""

    def __init__(self, begins: str, ends: str) -> None:
        self.is_on = False
        self._begins, self._ends = begins, ends
        self._since = 0.0
        self._times = 0

    def failed(self, **says: object) -> None:
        self._times += 1
        if not self.is_on:
            self.is_on, self._since = True, time.monotonic()
            if limited.allows(self._begins):  # it may begin and end often
                log.warning(self._begins, **says)

    def worked(self) -> None:
        if self.is_on:
            seconds, times = round(time.monotonic() - self._since, 1), self._times
            self.is_on, self._times = False, 0
            if limited.allows(self._ends):
                log.warning(self._ends, seconds=seconds, times=times)


async def fault_of(work: Coroutine[Any, Any, None]) -> Exception | None:
    try:
        await work
    except Exception as error:
        return error
    return None


async def log_failures(work: Coroutine[Any, Any, None], outage: LoggedState) -> None:
    """Await one run of a periodic background job; log its error instead of raising it, an HpoError once per outage."""
    error = await fault_of(work)
    if error is None:
        outage.worked()
    elif isinstance(error, HpoError):
        outage.failed(error=error.detail)
    elif limited.allows("a fault in the background"):
        log.error("what is done in the background met a fault", exc_info=error)
