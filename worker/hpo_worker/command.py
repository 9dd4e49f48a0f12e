"""Trains a trial by running a command, in any language: parameters go in by placeholders, values come out by lines.

{name} in an argument       the parameter; all forms stand in placeholders.py
HPO_PARAM_<NAME>            the same in the environment, beside HPO_STUDY, HPO_TRIAL and HPO_SEED; HPO_SERVER and
                            HPO_DATA as the agent has them, and nothing of what gives access to the service
HPO_CHECKPOINTS             a folder: restored before a retry, kept after each report and at the end (`checkpoints`)
{"step": 3, "value": 0.8}   a line on standard output reports
{"value": 0.9}              is the result; which lines are understood: `output_lines`
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import structlog

from hpo_service.client import Retry, in_one_line
from hpo_worker.checkpoints import VARIABLE, Checkpoints
from hpo_worker.gpus import environment_for, least_used
from hpo_worker.objective import FailedTrial, TrainingTrial
from hpo_worker.outbox import Outbox
from hpo_worker.output_lines import NotUnderstood, Reported, ResultLine, Said, quoted, read_line
from hpo_worker.placeholders import as_text, fill_in, variables
from hpo_worker.shared_variables import is_passed_on
from hpo_worker.shutdown import Leaving

GRACE_SECONDS = 5.0  # from SIGTERM to SIGKILL
OURS_TOO_SECONDS = 1.0  # whoever ends a job may signal all its processes, and the command may end before us
KILL_SECONDS = 2.0  # for the watchdogs to end what is left
REST_SECONDS = 1.0  # for what is still in the pipes of a command that has ended, where something holds them open
WATCHDOG = Path(__file__).with_name("command_watchdog.py")
LONGEST_LINE = 1 << 20
LAST_WORDS = 300  # of the last line on standard error, in the reason of a failed trial

_NO_RESULT = 'the command has printed no result: a line such as {"value": 0.9} on standard output'

log = structlog.get_logger()


def environment_of(trial: TrainingTrial, around: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """The worker's environment with the trial's parameters, and without keys and passwords.

    The command needs no access to the service, and may log what it sees. names: all parameters of the study.
    """
    # Python buffers what it prints into a pipe: without this, reports would arrive only at the end.
    kept = {"PYTHONUNBUFFERED": "1", **{name: value for name, value in around.items() if is_passed_on(name)}}
    named = {
        variable: as_text(trial.params[name]) for name, variable in variables(names).items() if name in trial.params
    }
    return {**kept, **named, "HPO_STUDY": trial.study, "HPO_TRIAL": str(trial.number), "HPO_SEED": str(trial.seed)}


@dataclass
class RunningCommand:
    """One run of the command: its watchdog, the pipe that keeps it alive, and what it has printed so far.

    not_understood: a line that looked like a result, unless one was understood after it; misplaced: a result on
    standard error, which does not count. gpu: the one assigned to it, if any.
    """

    process: subprocess.Popen[str]
    death_pipe: IO[bytes]
    gpu: str | None = None
    result: ResultLine | None = None
    not_understood: NotUnderstood | None = None
    misplaced: str | None = None
    last_words: str = ""
    ended: bool = False

    def terminate(self) -> None:
        """Ask the command to end; its watchdog passes the signal on to its process group."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Close the pipe, as our own end would: the watchdog then ends the command and all it has started."""
        self.death_pipe.close()


@dataclass
class CommandObjective:
    """An objective that runs a command a trial, for several trials at the same time."""

    command: Sequence[str]
    names: Sequence[str]
    outbox: Outbox
    gpus: Sequence[str] = ()
    running: list[RunningCommand] = field(default_factory=list)
    leaving: bool = False

    def __call__(self, trial: TrainingTrial) -> list[float] | None:
        checkpoints = Checkpoints(trial)
        try:
            return self._run(trial, checkpoints)
        finally:
            checkpoints.remove()

    def _run(self, trial: TrainingTrial, checkpoints: Checkpoints) -> list[float] | None:
        run = self._start(trial, checkpoints)
        try:
            readers = [
                _thread(self._read_output, run, trial, checkpoints),
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
        checkpoints.keep()
        return _outcome(run, trial)

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

    def _start(self, trial: TrainingTrial, checkpoints: Checkpoints) -> RunningCommand:
        environment = environment_of(trial, os.environ, self.names) | {VARIABLE: str(checkpoints.folder)}
        with self.outbox.changed:
            if self.leaving:
                raise Leaving
            gpu = least_used(self.gpus, [run.gpu for run in self.running])
            run = _run(fill_in(self.command, trial.params, self.names), environment | environment_for(gpu))
            run.gpu = gpu
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

    def _read_output(self, run: RunningCommand, trial: TrainingTrial, checkpoints: Checkpoints) -> None:
        for line in _lines(run.process.stdout):
            said = read_line(line)
            for each in said:
                _take(each, line, run, trial)
            if any(isinstance(each, Reported) for each in said):
                checkpoints.keep()
            if not said or any(isinstance(each, NotUnderstood) for each in said):
                _pass_on(line)

    def _read_errors(self, run: RunningCommand) -> None:
        for line in _lines(run.process.stderr):
            _pass_on(line)
            run.last_words = line.strip() or run.last_words
            if any(isinstance(each, ResultLine) for each in read_line(line)):
                run.misplaced = quoted(line)

    def _wait(self, run: RunningCommand) -> None:
        run.process.wait()
        with self.outbox.changed:
            run.ended = True
            self.outbox.changed.notify_all()


def _take(said: Said, line: str, run: RunningCommand, trial: TrainingTrial) -> None:
    """Report the value, or keep the result. A line that was understood cancels one before it that was not."""
    if isinstance(said, Reported):
        try:
            trial.report(said.value, said.step, said.metrics)
        except (TypeError, ValueError) as error:
            said = NotUnderstood(quoted(line), in_one_line(error))
    elif isinstance(said, ResultLine):
        run.result = said
    run.not_understood = said if isinstance(said, NotUnderstood) else None
    if run.not_understood is not None:
        log.warning("a line was not understood", study=trial.study, trial=trial.number, **vars(run.not_understood))


def _outcome(run: RunningCommand, trial: TrainingTrial) -> list[float] | None:
    """The values, or None for the last report; raise FailedTrial or Retry."""
    if run.process.returncode == os.EX_TEMPFAIL:
        raise Retry(_how_it_ended(run))
    if run.process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM):
        time.sleep(OURS_TOO_SECONDS)  # interrupted, and the trial handed back, if the signal was for us as well
    if run.process.returncode != 0:
        raise FailedTrial(_how_it_ended(run))
    if run.not_understood is not None:
        raise FailedTrial(str(run.not_understood))
    if run.result is not None:
        trial.metrics = dict(run.result.metrics)
        return list(run.result.values)
    if run.misplaced is not None:
        raise FailedTrial(f"a result stands on standard error, not on standard output: {run.misplaced}")
    if trial.last_value is None:
        raise FailedTrial(_NO_RESULT)
    return None


def _run(arguments: Sequence[str], environment: Mapping[str, str]) -> RunningCommand:
    ends_with_us, ours = os.pipe()
    death_pipe = os.fdopen(ours, "wb")
    try:
        process = subprocess.Popen(  # noqa: S603 (the user's own command, and no shell)
            [sys.executable, "-I", "-S", str(WATCHDOG), str(ends_with_us), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=environment,
            pass_fds=(ends_with_us,),
            start_new_session=True,
        )
    except BaseException:
        death_pipe.close()
        raise
    finally:
        os.close(ends_with_us)
    return RunningCommand(process, death_pipe)


def _pass_on(line: str) -> None:
    """Print the command's line unchanged on our standard error; ignore a terminal that is gone."""
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
    return f"{ended}: {quoted(run.last_words)[:LAST_WORDS]}" if run.last_words else ended
