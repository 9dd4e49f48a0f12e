"""How every process logs: to standard error, pretty on a terminal, a JSON object a line otherwise."""

from __future__ import annotations

import contextlib
import logging
import sys

import structlog


def configure(**bound: object) -> None:
    """Set up the process's log; `bound` goes with every line.

    Tracebacks come without local variables: keys and passwords are among them, and printing them takes seconds.
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
        logger_factory=_StandardError(),
    )


class _StandardError:
    """Writes to what standard error is at that moment, and never fails: a full disk must not end who reports it."""

    def __call__(self, *_arguments: object) -> structlog.PrintLogger:
        return structlog.PrintLogger(self)  # type: ignore[arg-type]

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
