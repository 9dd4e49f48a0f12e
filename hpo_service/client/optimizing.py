"""The loop of `optimize`: ask for a trial, train it, tell the result and ask for the next one; in several threads."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from hpo_service.client.held_trial import FINISHED, HeldTrial, Objective
from hpo_service.client.measures import with_floats
from hpo_service.client.recorded_trial import RecordedTrial
from hpo_service.domain.errors import LeaseLost, TrialFinished
from hpo_service.domain.json_types import Json

WAIT_SECONDS = 5.0  # of one ask for a trial; a thread notices no later that the loop is to end
RETRY_SECONDS = 1.0  # after a Retry, before the next ask


class TrialSource(Protocol):
    """The part of RemoteStudy that Optimization calls."""

    @property
    def name(self) -> str: ...

    def ask_for(self, count: int, wait_seconds: float, worker_id: str) -> tuple[list[HeldTrial], str | None]: ...

    def held(self, answer: Json) -> list[HeldTrial]: ...

    def say_if_paused(self, state: str | None, said: bool) -> bool: ...


@dataclass
class Optimization:
    """One call of `optimize`. timeout: seconds, after which no trial is begun.

    catch: exceptions of an objective that do not end the loop.
    """

    study: TrialSource
    objective: Objective
    n_trials: int | None
    timeout: float | None
    catch: tuple[type[BaseException], ...]
    callbacks: Sequence[Callable[[RecordedTrial], object]]
    worker_id: str
    progress: ProgressLine | None = None
    _begun: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock)
    _ending: threading.Event = field(default_factory=threading.Event)
    _since: float = field(default_factory=time.monotonic)

    def run(self, n_jobs: int) -> None:
        jobs = n_jobs if n_jobs > 0 else os.cpu_count() or 1
        try:
            if jobs == 1:
                self._work(self.worker_id)
            else:
                self._run_side_by_side(jobs)
        finally:
            if self.progress is not None:
                self.progress.end()

    def _run_side_by_side(self, jobs: int) -> None:
        """One loop per thread. If one raises, raise its error once the others have finished their trials."""
        with ThreadPoolExecutor(jobs, thread_name_prefix=f"optimize-{self.study.name}") as threads:
            workers = [threads.submit(self._work, f"{self.worker_id}-{place}") for place in range(jobs)]
            try:
                for worker in workers:
                    worker.result()
            finally:
                self._ending.set()

    def _work(self, worker_id: str) -> None:
        held: list[HeldTrial] = []
        paused = False
        has_place = self._take_place()
        try:
            while has_place:
                if not held:
                    held, state = self.study.ask_for(1, self._wait_seconds(), worker_id)
                    if self._is_over() or (not held and state not in ("ACTIVE", "PAUSED")):
                        return
                    paused = self.study.say_if_paused(state, paused)
                if held:
                    has_place, held = self._train(held.pop(), worker_id)
        except BaseException:
            self._ending.set()
            raise
        finally:
            for trial in held:
                trial.release("optimize has ended")

    def _train(self, trial: HeldTrial, worker_id: str) -> tuple[bool, list[HeldTrial]]:
        """Train and tell a trial. Return whether to train another, and that one if it came with the tell's response."""
        try:
            ended = trial.train(self.objective)
            is_caught = ended.error is None or isinstance(ended.error, self.catch)
            if not is_caught:
                self._ending.set()
            retry = ended.result.get("retry", False)
            has_place = retry or self._take_place()
            # With callbacks, no next trial is requested along with the result: a callback may still stop the loop.
            then_ask_for = worker_id if has_place and not retry and not self.callbacks else None
            told = trial.conclude(ended.result, then_ask_for)
        except (LeaseLost, TrialFinished):
            return self._take_place(), []
        if ended.error is not None and not is_caught:
            raise ended.error
        self._follow(told)
        if told["state"] not in FINISHED:  # Retry: it is given out again, here or elsewhere
            time.sleep(RETRY_SECONDS)
            return True, []
        if retry:  # no attempt was left, so that it ended as FAIL
            has_place = self._take_place()
        return has_place and not self._ending.is_set(), self.study.held(told["next"]) if "next" in told else []

    def _follow(self, told: Json) -> None:
        trial = RecordedTrial(with_floats(told))
        for callback in self.callbacks:
            callback(trial)
        if self.progress is not None and trial.state.is_finished:
            self.progress.show(trial)

    def _take_place(self) -> bool:
        """Whether one more trial may be begun; if so, count it as begun."""
        with self._counting:
            if self._is_over() or (self.n_trials is not None and self._begun >= self.n_trials):
                return False
            self._begun += 1
            return True

    def _is_over(self) -> bool:
        return self._ending.is_set() or self._seconds_left() <= 0

    def _seconds_left(self) -> float:
        return float("inf") if self.timeout is None else self._since + self.timeout - time.monotonic()

    def _wait_seconds(self) -> float:
        return max(0.0, min(WAIT_SECONDS, self._seconds_left()))


class ProgressLine:
    """Progress of `optimize` on stderr: one line that is redrawn on a terminal, elsewhere one every EVERY_SECONDS."""

    EVERY_SECONDS = 10.0

    def __init__(self, n_trials: int | None, directions: Sequence[str], stream: Any = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._of = "" if n_trials is None else f"/{n_trials}"
        self._directions = directions
        self._writing = threading.Lock()
        self._done = self._failed = 0
        self._best: RecordedTrial | None = None
        self._since = time.monotonic()
        self._said_at = self._since
        self._is_terminal = self._stream.isatty()

    def show(self, trial: RecordedTrial) -> None:
        with self._writing:
            self._done += 1
            self._failed += trial.state.name == "FAIL"
            if self._is_better(trial):
                self._best = trial
            if self._is_terminal:
                self._stream.write(f"\r\x1b[K{self._line()}")
                self._stream.flush()
            elif time.monotonic() - self._said_at >= self.EVERY_SECONDS:
                self._said_at = time.monotonic()
                self._stream.write(self._line() + "\n")

    def end(self) -> None:
        with self._writing:
            self._stream.write("\n" if self._is_terminal else self._line() + "\n")
            self._stream.flush()

    def _is_better(self, trial: RecordedTrial) -> bool:
        if trial.state.name != "COMPLETE" or trial.value is None or len(self._directions) > 1:
            return False
        if self._best is None or self._best.value is None:
            return True
        return trial.value > self._best.value if self._directions[0] == "maximize" else trial.value < self._best.value

    def _line(self) -> str:
        parts = [f"{self._done}{self._of} trials" + (f" ({self._failed} failed)" if self._failed else "")]
        if self._best is not None:
            parts.append(f"best {self._best.value:.6g} (trial {self._best.number}, {self._directions[0]}d)")
        return ", ".join([*parts, f"{time.monotonic() - self._since:.0f} s"])
