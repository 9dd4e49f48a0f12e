"""What metrics, traces and the log say of the batches that the writer has written, or could not write."""

from __future__ import annotations

import time
from collections.abc import Iterable

import structlog

from hpo_service import instruments, tracing
from hpo_service.domain.errors import Unavailable
from hpo_service.logged_state import LoggedState
from hpo_service.store.write_call import WriteCall

SLOW_COMMIT_SECONDS = 1.0
LOCKED_SECONDS = 1.0  # waiting for SQLite's lock, before the log says so

log = structlog.get_logger()
_waited = instruments.call_wait_seconds.observe  # looked up once: with a single worker each call is a batch
_took = instruments.commit_seconds.observe
_together = instruments.group_calls.observe


class BatchNotes:
    def __init__(self) -> None:
        self._database = LoggedState("the database does not take writes", "the database takes writes again")
        self._lock = LoggedState(
            "somebody else holds the database's write lock", "the database's write lock is free again"
        )

    def locked(self, waiting: float) -> None:
        """Another process holds SQLite's lock; waiting: seconds that the batch has waited for it so far."""
        if waiting > LOCKED_SECONDS and not self._lock.is_on:
            self._lock.failed(waiting_seconds=round(waiting, 1))

    def committed(self, calls: Iterable[WriteCall], began: float, commit_seconds: float, together: int) -> None:
        """began: when the transaction had begun."""
        if self._lock.is_on or self._database.is_on:
            self._lock.worked()
            self._database.worked()
        for call in calls:
            _waited(began - call.since)
        _took(commit_seconds)
        _together(together)
        if tracing.is_on():
            ended = time.time_ns()
            tracing.committed((call.trace for call in calls), ended - int(commit_seconds * 1e9), ended, together)
        if commit_seconds > SLOW_COMMIT_SECONDS:
            log.warning("a commit was slow", seconds=round(commit_seconds, 2), calls=together)

    def failed(self, calls: Iterable[WriteCall], error: BaseException) -> None:
        """None of them was written."""
        now = time.perf_counter()
        for call in calls:
            _waited(now - call.since)
        if isinstance(error, Unavailable):
            self._database.failed(error=error.detail)
