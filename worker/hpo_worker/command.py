"""Trains a trial by running a command, in any language: parameters go in by placeholders, values come out by lines.

{name} in an argument       the parameter; all forms stand in placeholders.py
HPO_PARAM_<NAME>            the same in the environment, beside HPO_STUDY, HPO_TRIAL and HPO_SEED; HPO_SERVER and
                            HPO_DATA as the agent has them, and nothing of what gives access to the service
{"step": 3, "value": 0.8}   a line on standard output reports
{"value": 0.9}              is the result
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from hpo_service.printable import printable
from hpo_worker.departure import Leaving
from hpo_worker.objective import FailedTrial, TrainingTrial
from hpo_worker.outbox import Outbox
from hpo_worker.placeholders import as_text, fill_in, variables
from hpo_worker.shared_variables import is_passed_on

GRACE_SECONDS = 5.0  # from SIGTERM to SIGKILL
KILL_SECONDS = 2.0  # for the watchdogs to end what is left
REST_SECONDS = 1.0  # for what is still in the pipes of a command that has ended, where something holds them open
WATCHDOG = Path(__file__).with_name("command_watchdog.py")
LONGEST_LINE = 1 << 16
LAST_WORDS = 300  # of the last line on standard error, in the reason of a failed trial


@dataclass(frozen=True)
class Reported:
    """A line that reports an intermediate value."""

    step: int
    value: float
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """A line with the trial's result: a value for each direction."""

    values: tuple[float, ...]
    metrics: Mapping[str, Any]


def environment_of(trial: TrainingTrial, around: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """The environment around the worker with the trial's parameters, and without its keys and passwords.

    The command talks to the worker alone; what it runs and logs is somebody else's. names: all parameters of the study.
    """
    kept = {name: value for name, value in around.items() if is_passed_on(name)}
    named = {
        variable: as_text(trial.params[name]) for name, variable in variables(names).items() if name in trial.params
    }
    return {**kept, **named, "HPO_STUDY": trial.study, "HPO_TRIAL": str(trial.number), "HPO_SEED": str(trial.seed)}


def read_line(line: str) -> Reported | Result | None:
    """What a line on standard output says; None: it is not for us."""
    said = _object(line)
    metrics = said.pop("metrics", {})
    if not isinstance(metrics, dict):
        return None
    values = _numbers(said.get("values", [said.get("value")]))
    if said.keys() == {"step", "value"} and values and _is_step(said["step"]):
        return Reported(int(said["step"]), values[0], metrics)
    if said.keys() in ({"value"}, {"values"}) and values:
        return Result(values, metrics)
    return None


def _object(line: str) -> dict[str, Any]:
    if line.lstrip().startswith("{"):
        with suppress(ValueError, RecursionError):
            said: dict[str, Any] = json.loads(line)
            return said
    return {}


def _is_step(step: Any) -> bool:
    return isinstance(step, int | float) and not isinstance(step, bool) and step >= 0 and step % 1 == 0


def _numbers(values: Any) -> tuple[float, ...]:
    """The values as numbers; none at all if one of them is not."""
    if not isinstance(values, list):
        return ()
    with suppress(TypeError, OverflowError):
        return tuple(_number(value) for value in values)
    return ()


def _number(value: Any) -> float:
    if isinstance(value, bool) or (isinstance(value, str) and value not in ("NaN", "Infinity", "-Infinity")):
        raise TypeError(f"{value!r} is no number")
    return float(value)


@dataclass
class RunningCommand:
    """One run of the command: its watchdog, the pipe that keeps it alive, and what it has said so far."""

    process: subprocess.Popen[str]
    lifeline: IO[bytes]
    result: Result | None = None
    last_words: str = ""
    ended: bool = False

    def terminate(self) -> None:
        """Ask the command to end; its watchdog passes the signal on to its process group."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Have its watchdog end it and all it has started, as when we are gone."""
        self.lifeline.close()


@dataclass
class CommandObjective:
    """An objective that runs a command a trial, for several trials at the same time."""

    command: Sequence[str]
    names: Sequence[str]
    outbox: Outbox
    running: list[RunningCommand] = field(default_factory=list)
    leaving: bool = False

    def __call__(self, trial: TrainingTrial) -> list[float] | None:
        run = self._start(trial)
        try:
            readers = [
                _thread(self._read_output, run, trial),
                _thread(self._read_errors, run),
                _thread(self._wait, run),
            ]
            self._follow(run, trial)
            for reader in readers:
                reader.join(REST_SECONDS)
        finally:
            run.kill()
            self.running.remove(run)
        if self.leaving:
            raise Leaving
        if trial.obeyed is not None:
            return None
        if run.process.returncode != 0:
            raise FailedTrial(_how_it_ended(run))
        if run.result is None:
            return None
        trial.metrics = dict(run.result.metrics)
        return list(run.result.values)

    def leave(self) -> None:
        """End all commands: SIGTERM, and SIGKILL to those that are still there after the grace."""
        with self.outbox.changed:
            self.leaving = True
            for run in self.running:
                run.terminate()
            if not self.outbox.changed.wait_for(self._all_ended, GRACE_SECONDS):
                self.kill()
                self.outbox.changed.wait_for(self._all_ended, KILL_SECONDS)

    def _all_ended(self) -> bool:
        return all(run.ended for run in self.running)

    def kill(self) -> None:
        for run in list(self.running):
            run.kill()

    def _start(self, trial: TrainingTrial) -> RunningCommand:
        with self.outbox.changed:
            if self.leaving:
                raise Leaving
            run = _run(fill_in(self.command, trial.params, self.names), environment_of(trial, os.environ, self.names))
            self.running.append(run)
            return run

    def _follow(self, run: RunningCommand, trial: TrainingTrial) -> None:
        """Wait until the command has ended; end it when the trial is to stop."""
        with self.outbox.changed:
            self.outbox.changed.wait_for(lambda: run.ended or self.leaving or trial.should_stop)
            if not run.ended and not self.leaving:
                run.terminate()
            if not self.outbox.changed.wait_for(lambda: run.ended, GRACE_SECONDS):
                run.kill()
                self.outbox.changed.wait_for(lambda: run.ended)

    def _read_output(self, run: RunningCommand, trial: TrainingTrial) -> None:
        for line in _lines(run.process.stdout):
            said = read_line(line)
            if isinstance(said, Reported):
                try:
                    trial.report(said.step, said.value, said.metrics)
                except ValueError as error:
                    _pass_on(f"hpo: {printable(str(error))}\n")
            elif isinstance(said, Result):
                run.result = said
            else:
                _pass_on(line)

    def _read_errors(self, run: RunningCommand) -> None:
        for line in _lines(run.process.stderr):
            _pass_on(line)
            run.last_words = line.strip() or run.last_words

    def _wait(self, run: RunningCommand) -> None:
        run.process.wait()
        with self.outbox.changed:
            run.ended = True
            self.outbox.changed.notify_all()


def _run(arguments: Sequence[str], environment: Mapping[str, str]) -> RunningCommand:
    ends_with_us, ours = os.pipe()
    lifeline = os.fdopen(ours, "wb")
    try:
        process = subprocess.Popen(  # noqa: S603 (the user's own command, and no shell)
            [sys.executable, "-I", "-S", str(WATCHDOG), str(ends_with_us), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
            pass_fds=(ends_with_us,),
            start_new_session=True,
        )
    except BaseException:
        lifeline.close()
        raise
    finally:
        os.close(ends_with_us)
    return RunningCommand(process, lifeline)


def _pass_on(line: str) -> None:
    """What the command writes, as it writes it: it is the user's own. A terminal that is gone holds nothing up."""
    with suppress(OSError, ValueError):
        print(line, end="", file=sys.stderr, flush=True)


def _thread(target: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def _lines(stream: IO[str] | None) -> Iterable[str]:
    assert stream is not None
    with stream:
        while line := stream.readline(LONGEST_LINE):
            yield line


def _how_it_ended(run: RunningCommand) -> str:
    code = run.process.returncode
    ended = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
    return f"{ended}: {run.last_words[:LAST_WORDS]}" if run.last_words else ended
