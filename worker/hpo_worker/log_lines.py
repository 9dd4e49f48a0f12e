"""A worker's log: the service's own format, also for the client's messages about calls that it retries."""

from __future__ import annotations

import logging

import structlog

from hpo_service import log_format


def configure(**bound: object) -> None:
    """Set up the process's log; `bound` goes with every line."""
    log_format.configure(**bound)
    client = logging.getLogger("hpo_service.client")
    client.handlers, client.propagate = [_IntoOurLog()], False


class _IntoOurLog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(record.levelno, record.getMessage())
