"""Ends a process whose trials fail one after the other without a report: the fault is not in their parameters."""

from __future__ import annotations

import threading

from hpo_service.domain.errors import HpoError

MAX_FAILURES = 5  # in a row; 0: never


class TooManyFailures(HpoError):
    code = "too_many_failures"


class FailureLimit:
    """Counts the outcomes of one process's trials, for all its threads, and limits failures in a row without a report.

    A failure after a report ends the row, since the training has worked up to there; so does a success.
    """

    def __init__(self, max_failures: int = MAX_FAILURES) -> None:
        self.max_failures = max_failures
        self.failed = 0
        self.successes = 0
        self.last_reason = ""
        self._in_a_row = 0
        self._lock = threading.Lock()

    def record_success(self) -> None:
        """A trial has a result."""
        with self._lock:
            self.successes += 1
            self._in_a_row = 0

    def fail(self, reason: str, *, reported: bool) -> None:
        """A trial has failed. Raise TooManyFailures at the limit."""
        with self._lock:
            self.failed += 1
            self.last_reason = reason
            self._in_a_row = 0 if reported else self._in_a_row + 1
            if 0 < self.max_failures <= self._in_a_row:
                trials = "1 trial has" if self._in_a_row == 1 else f"{self._in_a_row} trials in a row have"
                raise TooManyFailures(
                    f"{trials} failed without a report, the last one: {reason}. Mend that and start again; "
                    "--max-failures says how many it takes (0: any number)"
                )
