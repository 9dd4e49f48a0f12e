"""How every process logs: to standard error, pretty on a terminal, a JSON object a line otherwise."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from typing import TextIO

import structlog

from hpo_service.printable import printable, printable_lines


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
        processors += [_printable, structlog.dev.ConsoleRenderer(exception_formatter=_traceback)]
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=_StandardError(),
    )


def _printable(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A server's words and a trial's reason are texts from elsewhere; JSON escapes them by itself."""
    return {name: printable(value) if isinstance(value, str) else value for name, value in line.items()}


def _traceback(target: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    written = io.StringIO()
    structlog.dev.plain_traceback(written, exc_info)
    target.write(printable_lines(written.getvalue()))


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
