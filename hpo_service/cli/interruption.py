"""Ctrl-C, SIGTERM and SIGHUP set a flag, which a long command checks between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """While the with block runs, signals only set `happened`: no step is cut off in the middle."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def happened(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep for so many seconds, or until a signal comes; return whether one came."""
        return self._event.wait(seconds)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._event.set()
