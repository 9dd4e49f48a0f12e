"""Starts the training processes, one per core, replaces those that crash, and ends them when it is told to leave."""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

import structlog

from hpo_worker.gpus import environment_for, least_used
from hpo_worker.shutdown import AT_ONCE, SAME_MOMENT_SECONDS, heeded
from hpo_worker.worker_options import Options

HURRIED_SECONDS = 1.5  # from a Ctrl-C until the processes are forced to stop: they release their trials
LONGEST_PAUSE_SECONDS = 60.0  # before a process that crashed again and again is replaced
LONG_LIFE_SECONDS = 600.0  # after so long a process's crash counts as the first

# Before NumPy is imported: a second BLAS thread gains nothing on networks this small, a second process does.
ONE_BLAS_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "BLIS_NUM_THREADS",
    ),
    "1",
)

log = structlog.get_logger()


def pause_after(crashes: int) -> float:
    """Seconds until a process is started again: 1, 2, 4, … up to LONGEST_PAUSE_SECONDS."""
    return min(LONGEST_PAUSE_SECONDS, 2.0 ** min(crashes, 16))


@dataclass(eq=False)
class TrainingProcess:
    """A training process. crashes: predecessors that crashed in a row, each soon after its start; gpu: its own."""

    process: subprocess.Popen[str]
    crashes: int = 0
    gpu: str | None = None
    started_at: float = field(default_factory=time.monotonic)

    @property
    def output(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout


@dataclass
class Supervisor:
    options: Options
    environment: Mapping[str, str]
    gpus: Sequence[str] = ()
    outcome_counts: Counter[str] = field(default_factory=Counter)
    children: list[TrainingProcess] = field(default_factory=list)
    to_start: list[tuple[float, int]] = field(default_factory=list)
    exit_code: int = 0
    signals: int = 0
    first_signal_at: float = 0.0
    force_stop_at: float = math.inf

    def run(self, processes: int) -> int:
        """Run that many processes until they are done, told to leave, or one fails; return the exit code."""
        received, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        os.set_blocking(received, False)
        signal.set_wakeup_fd(wakeup)
        for each in heeded():
            signal.signal(each, lambda signum, frame: None)
        with selectors.DefaultSelector() as selector:
            selector.register(received, selectors.EVENT_READ)
            self.to_start = [(0.0, 0)] * processes
            while self.children or self.to_start:
                self._start_due(selector)
                if time.monotonic() >= self.force_stop_at:
                    self.force_stop_at = math.inf
                    self._tell_all(signal.SIGINT)
                for key, _ in selector.select(self._pause()):
                    if key.data is None:
                        self._leave(os.read(received, 64))
                    else:
                        selector.unregister(key.fileobj)
                        self._reap_child(key.data)
        return self.exit_code

    def _start_due(self, selector: selectors.BaseSelector) -> None:
        due = [(at, crashes) for at, crashes in self.to_start if at <= time.monotonic()]
        for start in due:
            self.to_start.remove(start)
            gpu = least_used(self.gpus, [child.gpu for child in self.children])
            environment = {**self.environment, **environment_for(gpu)}
            child = TrainingProcess(start_child(self.options, environment), crashes=start[1], gpu=gpu)
            self.children.append(child)
            selector.register(child.output, selectors.EVENT_READ, child)

    def _pause(self) -> float | None:
        next_at = min((at for at, _ in self.to_start), default=math.inf)
        next_at = min(next_at, self.force_stop_at)
        return None if next_at == math.inf else max(0.0, next_at - time.monotonic())

    def _reap_child(self, child: TrainingProcess) -> None:
        """Called when a child's stdout is readable: wait for its end, add its counts, and restart it if it crashed.

        A child that ended without printing its counts has crashed: killed, or by os._exit, whatever its exit code.
        """
        said = child.output.read()
        code = child.process.wait()
        self.children.remove(child)
        if said:
            self.outcome_counts.update(json.loads(said))
        if (code < 0 or not said) and not self.signals and not self.exit_code:
            crashes = 0 if time.monotonic() - child.started_at > LONG_LIFE_SECONDS else child.crashes
            pause = pause_after(crashes)
            how = {"signal": -code} if code < 0 else {"exit_code": code}
            log.error("a process crashed", pid=child.process.pid, **how, next_in_seconds=pause)
            self.to_start.append((time.monotonic() + pause, crashes + 1))
        elif code > 0 and not self.exit_code and not self.signals:
            self.exit_code = code
            self._tell_all(signal.SIGTERM)

    def _leave(self, signums: bytes) -> None:
        for signum in signums:
            now = time.monotonic()
            if self.signals and (signum not in AT_ONCE or now < self.first_signal_at + SAME_MOMENT_SECONDS):
                continue
            self.first_signal_at = now
            self.signals += 1
            if self.signals == 2:
                self.exit_code = 128 + signum
            elif signum in AT_ONCE:
                self.force_stop_at = now + HURRIED_SECONDS
            self._tell_all(signal.SIGTERM if self.signals == 1 else signal.SIGINT)  # children ignore a second SIGTERM

    def _tell_all(self, signum: signal.Signals) -> None:
        self.to_start.clear()
        for child in self.children:
            if child.process.poll() is None:
                child.process.send_signal(signum)


def start_child(options: Options, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a training process, in its own session: a Ctrl-C reaches it only through the supervisor."""
    return subprocess.Popen(  # noqa: S603 (our own module, no shell)
        # -P: a worker.py in the current folder must not take the place of ours
        [sys.executable, "-P", "-m", "hpo_worker.child", options.to_argument()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, **ONE_BLAS_THREAD},
        start_new_session=True,
    )
