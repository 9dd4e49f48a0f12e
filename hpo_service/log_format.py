"""How every process logs: to standard error, pretty on a terminal, a JSON object a line otherwise.

A server must not block on the reader of its log, nor end because a disk is full: see `write_in_thread`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Hashable
from typing import TextIO

import structlog

from hpo_service.printable import printable, printable_lines

LONGEST_LINE = 2**14  # characters; a traceback has a few thousand
MOST_LINES = 2**12  # that wait to be written
LINES_A_SECOND = 10  # of one kind
_IS_LOGGED = "hpo_is_logged"
# An API key (hpo_service/domain/key.py): a caller may put one into a path or an id, which errors quote.
_KEY = re.compile("hpo_[0-9A-Za-z]{36}")

lost = {"dropped": 0, "withheld": 0}  # lines, since the process began


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
        logger_factory=lambda *_arguments: structlog.WriteLogger(_output),  # type: ignore[arg-type]
    )


def _printable(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape text from elsewhere, such as a trial's reason, for a terminal; the JSON renderer escapes by itself."""
    return {name: printable(value) if isinstance(value, str) else value for name, value in line.items()}


def _traceback(target: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    written = io.StringIO()
    structlog.dev.plain_traceback(written, exc_info)
    target.write(printable_lines(written.getvalue()))


class _Output:
    """Writes to the current sys.stderr, and never fails: a full disk must not end the process that reports it."""

    def __init__(self) -> None:
        self.thread: _LinesInThread | None = None

    def write(self, line: str) -> None:
        line = _KEY.sub("hpo_***", line)
        if self.thread is not None:
            self.thread.put(line)
            return
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(line)

    def flush(self) -> None:
        if self.thread is None:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.flush()


_output = _Output()


class _LinesInThread:
    """A queue of lines that its own thread writes. Lines without room are dropped and counted, and the log says so."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: queue.Queue[str] = queue.Queue(MOST_LINES)
        self._dropped = 0
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def put(self, line: str) -> None:
        if len(line) > LONGEST_LINE:
            line = line[:LONGEST_LINE] + "…\n"
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._drop()

    def _drop(self) -> None:
        self._dropped += 1
        lost["dropped"] += 1

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            try:
                self._write(line.encode(errors="backslashreplace"))
            except OSError:
                self._drop()
            else:
                self._tell_of_dropped()
            finally:
                self._lines.task_done()

    def _write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._descriptor, line) :]

    def _tell_of_dropped(self) -> None:
        dropped, self._dropped = self._dropped, 0
        if dropped:
            structlog.get_logger().warning(
                "lines of this log were lost: nobody read them, or the disk was full", lines=dropped
            )

    def finish(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)


def write_in_thread() -> None:
    """From now on write the log in a thread, so that logging never blocks on the reader of a pipe or on a disk."""
    with contextlib.suppress(OSError, ValueError):
        _output.thread = _LinesInThread(sys.stderr.fileno())


def finish(seconds: float = 1.0) -> None:
    """Wait until all lines are written, but not longer than this: their reader may be stuck."""
    if _output.thread is not None:
        _output.thread.finish(seconds)


# -- what libraries log -----------------------------------------------------------------------------------


def take_over_logging(level: int = logging.WARNING) -> None:
    """Send lines of the standard library's loggers (uvicorn, asyncio, OpenTelemetry) through structlog, too.

    Python's warnings, such as NumPy's, are sent there as well.
    """
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.handlers[:] = [_ToOurs(level)]


class _ToOurs(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if is_logged(error) or not limited.allows(("library", record.name, record.levelno)):
            return
        with contextlib.suppress(Exception):  # a log line is no reason to fail
            structlog.get_logger().log(record.levelno, record.getMessage().strip(), logger=record.name, exc_info=error)


def mark_as_logged(error: BaseException) -> None:
    """Mark the error, so that nothing that handles it later logs it again."""
    with contextlib.suppress(AttributeError):
        setattr(error, _IS_LOGGED, True)


def is_logged(error: BaseException | None) -> bool:
    return getattr(error, _IS_LOGGED, False)


# -- rate limit -------------------------------------------------------------------------------------------


class Limited:
    """Allows so many lines a second of each kind. The others are counted; `tell` logs how many they were.

    There are few kinds: none contains what a caller has sent.
    """

    def __init__(self, per_second: int = LINES_A_SECOND) -> None:
        self._per_second = per_second
        self._lines: dict[Hashable, tuple[int, int]] = {}  # (in which second, how many)
        self._withheld: dict[Hashable, int] = {}

    def allows(self, kind: Hashable) -> bool:
        second = int(time.monotonic())
        then, lines = self._lines.get(kind, (second, 0))
        lines = lines + 1 if then == second else 1
        self._lines[kind] = (second, lines)
        if lines <= self._per_second:
            return True
        self._withheld[kind] = self._withheld.get(kind, 0) + 1
        lost["withheld"] += 1
        return False

    def tell(self) -> None:
        """Log how many lines were withheld since the last call; once a second is enough."""
        withheld, self._withheld = self._withheld, {}
        for kind, lines in withheld.items():
            structlog.get_logger().warning("more lines like these were not logged", kind=kind, lines=lines)


limited = Limited()
