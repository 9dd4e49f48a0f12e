"""Processes of the service's benchmark: started, watched and ended, none of them waited for without an end."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn, TypeVar

STARTING_SECONDS = 120.0  # a server that finds 100,000 trials
ENDING_SECONDS = 20.0
TICKS = os.sysconf("SC_CLK_TCK")
NAN = float("nan")

T = TypeVar("T")


class TookTooLong(Exception):
    """Something that has a time limit went over it."""


class WorkerFailed(Exception):
    """What went wrong in another process, as it was printed there."""


@contextlib.contextmanager
def serving(database: str) -> Iterator[tuple[str, int]]:
    """An `hpo serve`, ready: its URL and its process."""
    options = ("--no-auth", "--port", "0", "--json", "--database", database)
    with announced([sys.executable, "-m", "hpo_service", "serve", *options]) as (line, pid):
        yield json.loads(line)["url"], pid


@contextlib.contextmanager
def announced(command: list[str]) -> Iterator[tuple[str, int]]:
    """A process that prints a line when it is ready: the line, and its number. Ended at the end."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        yield _first_line(process, command), process.pid
    finally:
        _end(process)


def _first_line(process: subprocess.Popen[bytes], command: list[str]) -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], STARTING_SECONDS)
    if not readable:
        raise TookTooLong(f"{' '.join(command)} did not say within {STARTING_SECONDS:.0f} s that it is ready")
    if not (line := process.stdout.readline().decode()):
        raise WorkerFailed(f"{' '.join(command)} ended before it was ready; what it said is above")
    return line


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def in_child(work: Callable[[], T], seconds: float) -> T:
    """What `work` gives in a forked process: neither its memory nor its threads stay behind here."""
    with ended(lambda pipe: pipe.send(tried(work))) as pipe:
        answer: T = received(pipe, seconds, work.__qualname__)
        return answer


@contextlib.contextmanager
def ended(target: Callable[[Connection], object]) -> Iterator[Connection]:
    """A forked process at the other end of a pipe; killed at the end if it has not gone by then."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=target, args=(there,), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.join(0.2)
        process.kill()
        process.join()


def tried(work: Callable[[], Any]) -> Any:
    """What `work` gives, or what went wrong, to be sent to another process."""
    try:
        return work()
    except Exception as error:
        import traceback

        return WorkerFailed("".join(traceback.format_exception(error)))


def received(pipe: Connection, seconds: float, what: object) -> Any:
    """The next answer; raise TookTooLong, or the WorkerFailed that was sent."""
    if not pipe.poll(seconds):
        raise TookTooLong(f"{what} took more than {seconds:.0f} s")
    try:
        answer = pipe.recv()
    except EOFError:
        raise WorkerFailed(f"{what}: the process ended without an answer") from None
    if isinstance(answer, WorkerFailed):
        raise answer
    return answer


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process, by its own clock: /proc counts in hundredths."""
    return time.clock_gettime((~pid << 3) | 2)  # what clock_getcpuclockid(3) gives


def family_cpu_seconds(pid: int) -> float:
    """The same with its children, those that live and those that have ended."""
    used = cpu_seconds(pid) + sum(map(int, _stat(pid)[13:15])) / TICKS
    for child in _children(pid):
        with contextlib.suppress(OSError):  # it may end while it is looked at
            used += cpu_seconds(child)
    return used


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def parent(pid: int) -> int:
    return int(_stat(pid)[1])


def _children(pid: int) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if parent(int(folder.name)) == pid:
                yield int(folder.name)


def resident_bytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024.0 for line in status.splitlines() if line.startswith("VmRSS"))


def machine_seconds() -> tuple[float, float]:
    """CPU seconds of the whole machine since it started: given out, and idle."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / TICKS, idle / TICKS


def calm(pid: int, patience: float = 60.0) -> None:
    """Wait until a server and its reading process have nothing more to do, such as an export whose reader has gone."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        before = family_cpu_seconds(pid)
        time.sleep(0.5)
        if family_cpu_seconds(pid) - before <= 0.05:
            return


def end_on_sigterm() -> None:
    """End as by Ctrl-C, so that what was started is ended too."""

    def end(signal_number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + signal_number)

    signal.signal(signal.SIGTERM, end)
