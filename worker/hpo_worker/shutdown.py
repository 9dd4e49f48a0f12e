"""Shutdown of a worker: the first signal releases its trials, a second SIGINT or SIGQUIT ends it at once.

SIGHUP, a closed terminal, comes twice (from the kernel and from the shell), and systemd may send it after SIGTERM.
SIGTERM comes twice where Slurm or systemd signal each process of a job and whoever started this one passes it on, on a
busy machine seconds apart. Neither counts as a second signal. Where SIGHUP is ignored, as under nohup, it stays so.
Signals within SAME_MOMENT_SECONDS of the first one count as one.

Training runs in the main thread, and is interrupted there by an exception. Where that does not get through in time (a
long call into C, an objective that catches everything), another thread releases the trials and ends the process.

After SIGTERM or SIGHUP there is time to release the trials even to a server that is slow or just being replaced: Slurm,
Kubernetes, Ray and docker-compose.yml kill after half a minute, `hpo run` after a quarter. After Ctrl-C there is none.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

BREAK_OFF_SECONDS = 0.75  # for training to break off
PATIENT_SECONDS, HURRIED_SECONDS = 12.0, 0.75  # then, for the calls that release the trials
END_SECONDS = 1.5  # then, for the main thread to end the process
SAME_MOMENT_SECONDS = 0.15
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
AT_ONCE = (signal.SIGINT, signal.SIGQUIT)  # typed: as first signals they leave little time, as second ones they end it
HANDED_BACK = 0  # written to the wakeup pipe in place of a signal's number


class Leaving(BaseException):
    """Raised in the main thread, once, when the worker is to leave. No Exception: objectives must not swallow it."""


class Shutdown:
    """Turns signals into Leaving, and makes sure that the process ends.

    hand_back: called once, by either thread, with whether there is time; the other thread waits until it is done.
    at_once: called before the process ends on a second signal. before_seconds: what hand_back needs before its calls.
    """

    def __init__(
        self,
        hand_back: Callable[[bool], None],
        *,
        at_once: Callable[[], None] = lambda: None,
        before_seconds: float = 0.0,
    ) -> None:
        self._hand_back, self._at_once, self._before_seconds = hand_back, at_once, before_seconds
        self._is_patient = False  # without a signal there is an error to be shown soon
        self._raised = self._is_done = self._main_thread_leaves = False
        self._handing_back = threading.Lock()
        self._forking = threading.local()  # the signal mask of each forking thread before the fork
        self._received, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)

    def install(self) -> None:
        # The number of a signal is written here at once, even while the main thread is inside a C function.
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        for each in heeded():
            signal.signal(each, self._raise)
        # A process that an objective forks (multiprocessing) gets the default handlers back. Signals are blocked until
        # then: our handlers would swallow them.
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
        self._handing_back, self._is_done = threading.Lock(), True  # the child must not release the worker's trials
        self._let_signals()

    def hand_back(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._main_thread_leaves = self._raised = True  # from here on no signal interrupts it
        with self._handing_back:
            if self._is_done:
                return
            try:
                self._hand_back(self._is_patient)
            finally:
                self._is_done = True
                os.write(self._wakeup, bytes([HANDED_BACK]))

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        if not self._raised:
            self._raised = True
            self._is_patient = signum not in AT_ONCE
            raise Leaving

    def _see_it_through(self) -> None:
        first = self._wait_for_signal(SIGNALS, None)
        is_patient = self._is_patient = first not in AT_ONCE
        time.sleep(SAME_MOMENT_SECONDS)
        while select.select([self._received], [], [], 0)[0]:
            os.read(self._received, 64)
        self._wait_unless_told_twice([HANDED_BACK], BREAK_OFF_SECONDS)
        if not self._is_done:
            # Blocks while the main thread does it. Not in this thread, which waits for a second signal meanwhile.
            threading.Thread(target=self.hand_back, name="hand back", daemon=True).start()
            seconds = PATIENT_SECONDS if is_patient else HURRIED_SECONDS
            self._wait_unless_told_twice([HANDED_BACK], self._before_seconds + seconds)
        if self._is_done and self._main_thread_leaves:
            self._wait_unless_told_twice([], END_SECONDS)
        os._exit(0)

    def _wait_unless_told_twice(self, awaited: Sequence[int], seconds: float) -> None:
        """Wait for one of `awaited`; a second SIGINT or SIGQUIT ends the process."""
        if not self._is_done or not awaited:
            came = self._wait_for_signal((*AT_ONCE, *awaited), seconds)
            if came in AT_ONCE:
                self._at_once()
                os._exit(128 + came)

    def _wait_for_signal(self, awaited: Sequence[int], seconds: float | None) -> int:
        """Return the first of these signals to arrive; -1 if none came in time."""
        while select.select([self._received], [], [], seconds)[0]:
            (signum,) = os.read(self._received, 1)
            if signum in awaited:
                return int(signum)
        return -1


def heeded() -> list[signal.Signals]:
    """The signals that ask us to leave; without SIGHUP where it is ignored, as under nohup."""
    return [each for each in SIGNALS if each is not signal.SIGHUP or signal.getsignal(each) is not signal.SIG_IGN]


def leave_with_parent() -> None:
    """Leave when the process that started this one is gone: it holds the other end of standard input."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
