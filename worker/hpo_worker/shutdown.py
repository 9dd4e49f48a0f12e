"""How a worker leaves: the first signal hands its trials back, a person's second one ends it at once.

SIGHUP, a closed terminal, comes twice (from the kernel and from the shell), and systemd may send it after SIGTERM.
SIGTERM comes twice where Slurm or systemd signal each process of a job and whoever started this one passes it on, on a
busy machine seconds apart. Neither is ever the second one. Where SIGHUP is ignored, as under nohup, it stays so. What
comes in the same moment is the first one still.

Training runs in the main thread, and is interrupted there by an exception. Where that does not get through in time (a
long call into C, an objective that catches everything), another thread hands the trials back and ends the process.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

GRACE_SECONDS = 1.5
SAME_MOMENT_SECONDS = 0.15
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
AT_ONCE = (signal.SIGINT, signal.SIGQUIT)  # when they come second


class Leaving(BaseException):
    """Raised in the main thread, once, when the worker is to leave. No Exception: objectives must not swallow it."""


class Shutdown:
    """Turns signals into Leaving, and sees to it that the process ends.

    hand_back: called once, by either thread; at_once: called before the process ends on a second signal;
    grace_seconds: for the main thread to get away.
    """

    def __init__(
        self,
        hand_back: Callable[[], None],
        *,
        at_once: Callable[[], None] = lambda: None,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._hand_back, self._at_once, self._grace_seconds = hand_back, at_once, grace_seconds
        self._raised = False
        self._begun = threading.Lock()
        self._forking = threading.local()  # what each thread that forks had blocked before
        self._received, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)

    def install(self) -> None:
        # The number of a signal is written here at once, even while the main thread is inside a C function.
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        for each in heeded():
            signal.signal(each, self._raise)
        # A process that an objective forks (multiprocessing) is not this worker: what ends it is its own. No signal
        # gets through before the handlers are out of the way: it would be lost.
        os.register_at_fork(
            before=self._hold_signals, after_in_parent=self._let_signals, after_in_child=self._uninstall
        )
        threading.Thread(target=self._see_it_through, name="shutdown", daemon=True).start()

    def _hold_signals(self) -> None:
        self._forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def _let_signals(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._forking.mask)

    def _uninstall(self) -> None:
        signal.set_wakeup_fd(-1)
        for each in SIGNALS:
            if signal.getsignal(each) == self._raise:
                signal.signal(each, signal.SIG_DFL)
        os.close(self._wakeup)
        os.close(self._received)
        self._let_signals()

    def hand_back(self) -> None:
        if self._begun.acquire(blocking=False):
            self._hand_back()

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        if not self._raised:
            self._raised = True
            raise Leaving

    def _see_it_through(self) -> None:
        self._wait_for_signal(SIGNALS, None)
        time.sleep(SAME_MOMENT_SECONDS)
        while select.select([self._received], [], [], 0)[0]:
            os.read(self._received, 64)
        for _ in range(2):  # for the training to break off, and for the calls that hand back
            if (second := self._wait_for_signal(AT_ONCE, self._grace_seconds / 2)) is not None:
                self._at_once()
                os._exit(128 + second)
            self.hand_back()
        os._exit(0)

    def _wait_for_signal(self, awaited: Sequence[int], seconds: float | None) -> int | None:
        while select.select([self._received], [], [], seconds)[0]:
            (signum,) = os.read(self._received, 1)
            if signum in awaited:
                return int(signum)
        return None


def heeded() -> list[signal.Signals]:
    """The signals that ask us to leave: those that nohup has had ignored are left alone."""
    return [each for each in SIGNALS if each is not signal.SIGHUP or signal.getsignal(each) is not signal.SIG_IGN]


def leave_with_parent() -> None:
    """Leave when the process that started this one is gone: it holds the other end of standard input."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
