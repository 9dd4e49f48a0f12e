"""States that a log tells of once when they begin and once when they end, however often they are met with meanwhile."""

from __future__ import annotations

import time

import structlog

from hpo_service.log_format import limited

log = structlog.get_logger()


class LoggedState:
    """Something that works or does not. begins, ends: how the log says so."""

    def __init__(self, begins: str, ends: str) -> None:
        self.is_on = False
        self._begins, self._ends = begins, ends
        self._since = 0.0
        self._times = 0

    def failed(self, **says: object) -> None:
        self._times += 1
        if not self.is_on:
            self.is_on, self._since = True, time.monotonic()
            if limited.allows(self._begins):  # it may come and go
                log.warning(self._begins, **says)

    def worked(self) -> None:
        if self.is_on:
            seconds, times = round(time.monotonic() - self._since, 1), self._times
            self.is_on, self._times = False, 0
            if limited.allows(self._ends):
                log.warning(self._ends, seconds=seconds, times=times)
