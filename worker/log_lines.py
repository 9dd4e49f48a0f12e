"""How a worker logs: to standard error, pretty on a terminal, a JSON object a line otherwise."""

from __future__ import annotations

import logging
import sys

import structlog
from stamina.instrumentation import RetryDetails, set_on_retry_hooks


def configure(**bound: object) -> None:
    """Set up the process's log; `bound` goes with every line.

    Tracebacks come without local variables: keys are among them.
    """
    pretty = sys.stderr.isatty()
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        lambda _, __, line: {**bound, **line},
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if pretty else "iso", utc=not pretty),
    ]
    if pretty:
        processors.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    set_on_retry_hooks([_log_retry])


def _log_retry(details: RetryDetails) -> None:
    """Say from the third failure on that a call is being tried again: one lost connection is no news."""
    if details.retry_num >= 3:
        log = structlog.get_logger()
        log.warning(
            "trying again", error=str(details.caused_by), retry=details.retry_num, wait=round(details.wait_for, 1)
        )
