"""A worker's log: the service's own format, and a word about calls that are being tried again."""

from __future__ import annotations

import structlog
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from hpo_service import log_format


def configure(**bound: object) -> None:
    """Set up the process's log; `bound` goes with every line."""
    log_format.configure(**bound)
    set_on_retry_hooks([_log_retry])


def _log_retry(details: RetryDetails) -> None:
    """Say from the third failure on that a call is being tried again: one lost connection is no news."""
    if details.retry_num >= 3:
        log = structlog.get_logger()
        log.warning(
            "trying again", error=str(details.caused_by), retry=details.retry_num, wait=round(details.wait_for, 1)
        )
