"""Runs one command, and ends it with all it has started when the agent is gone, however the agent ended.

`python -I -S command_watchdog.py DESCRIPTOR COMMAND…`: the agent holds the other end of the pipe DESCRIPTOR. Even a
kill -9 closes that, and the watchdog then sends SIGTERM, and SIGKILL after a grace. SIGTERM to the watchdog goes on to
the command. It ends as the command did: with its exit code, or by its signal.

On Linux processes that have left the command's process group (setsid, daemons) become the watchdog's children when
their parents end (PR_SET_CHILD_SUBREAPER), so it finds these as well; elsewhere it ends the process group. Should the
watchdog itself be killed, the kernel ends the command (PR_SET_PDEATHSIG).
A file of its own that imports next to nothing: it is started once a trial.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import sys
import time
from contextlib import suppress
from typing import NoReturn

GRACE_SECONDS = 0.5  # from SIGTERM to SIGKILL when the agent is gone: soon another one holds the trial
REST_SECONDS = 1.0  # for what a command that has ended has left running
GIVE_UP_SECONDS = 10.0  # on processes that cannot be ended: another user's, or stuck in the kernel
CANNOT_BE_RUN = 127  # as shells say it
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)  # the command gets the default action back
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class Watchdog:
    """`ended`: how the command ended, as os.waitpid says it; None while it runs."""

    def __init__(self, death_pipe: int, command: list[str]) -> None:
        os.set_inheritable(death_pipe, False)
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        received, wakeup = os.pipe()
        os.set_blocking(received, False)
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup)
        for each in (signal.SIGCHLD, *PASSED_ON):
            signal.signal(each, lambda number, frame: None)  # the command does not inherit a handler
        self.death_pipe, self.received = death_pipe, received
        self.ended: int | None = None
        self.command = _start(command)

    def run(self) -> int:
        """Wait until the command and all it has started have ended; return its status, as os.waitpid has it."""
        agent_is_there = True
        while agent_is_there and self.ended is None:
            agent_is_there = self._wait(None)
        if self.ended is None:
            self._signal(signal.SIGTERM)
            self._wait_for_all(GRACE_SECONDS, agent_is_there)
        else:
            self._wait_for_all(REST_SECONDS, agent_is_there)
        self._kill_all()
        return self.ended if self.ended is not None else signal.SIGKILL

    def _wait(self, seconds: float | None) -> bool:
        """Wait for a signal or for the agent's end; return whether the agent is still there."""
        ready, _, _ = select.select([self.death_pipe, self.received], [], [], seconds)
        if self.received in ready:
            for number in os.read(self.received, 64):
                if number in PASSED_ON:
                    self._signal(signal.Signals(number))
        self._reap()
        return self.death_pipe not in ready

    def _wait_for_all(self, seconds: float, agent_is_there: bool) -> None:
        deadline = time.monotonic() + seconds
        while self._reap() and (left := deadline - time.monotonic()) > 0:
            if agent_is_there:
                agent_is_there = self._wait(left)
            else:
                time.sleep(min(left, 0.01))

    def _reap(self) -> bool:
        """Reap the children that have ended; return whether others are left."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                if pid == self.command:
                    self.ended = status
        return False

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.command, number)

    def _kill_all(self) -> None:
        """SIGKILL our children until none is left: the children of one that is killed become ours."""
        give_up = time.monotonic() + GIVE_UP_SECONDS
        self._signal(signal.SIGKILL)
        while self._reap() and time.monotonic() < give_up:
            for pid in _children() or [self.command]:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)


def _children() -> list[int]:
    """The pids of our children, by /proc; none where there is no /proc, and the process group has to do."""
    found = []
    with suppress(FileNotFoundError):
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as stat:
                # pid (name) state parent; a name may hold anything, brackets too
                if int(stat.read().rpartition(b")")[2].split()[1]) == os.getpid():
                    found.append(int(pid))
    return found


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _start(command: list[str]) -> int:
    """Start the command as leader of its own process group; return its pid. Raise OSError if it cannot be run."""
    failed, say = os.pipe()  # closed by a successful exec
    pid = os.fork()
    if pid == 0:
        _become(command, say)
    os.close(say)
    with os.fdopen(failed, "rb") as failure:
        if number := failure.read():
            raise OSError(int(number), os.strerror(int(number)))
    return pid


def _become(command: list[str], say: int) -> NoReturn:
    try:
        os.setpgid(0, 0)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for each in IGNORED_BY_PYTHON:
            signal.signal(each, signal.SIG_DFL)
        os.execvp(command[0], command)  # noqa: S606 (the user's own command, and no shell)
    except OSError as error:
        os.write(say, str(error.errno).encode())
    os._exit(CANNOT_BE_RUN)


def _end_like(status: int) -> None:
    """End this process with the command's exit code, or by its signal, without a second core file."""
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        with suppress(OSError):  # SIGKILL has no handler to set
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


def main() -> None:
    try:
        watchdog = Watchdog(int(sys.argv[1]), sys.argv[2:])
    except OSError as error:
        print(f"hpo: {sys.argv[2]} cannot be run: {error.strerror}", file=sys.stderr)
        os._exit(CANNOT_BE_RUN)
    _end_like(watchdog.run())


if __name__ == "__main__":
    main()
