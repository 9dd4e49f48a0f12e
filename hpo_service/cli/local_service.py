"""A server and its workers as child processes: started, watched, restarted when they die, stopped in order."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from hpo_service.cli.exits import USAGE, CommandFailed, UsageError
from hpo_service.cli.held_database import holder, sqlite_path
from hpo_service.cli.parent_death_pipe import ParentDeathPipe
from hpo_service.domain.key import draw, hash_of

START_SECONDS = 60.0  # for a first start that makes the tables of a slow database
STOP_SECONDS = 15.0  # to hand trials back, or to answer the calls under way
MOST_DEATHS = 3  # of server and workers, without a trial finished in between
LOG_LINES = 8


class ServiceProcess:
    """One `hpo …` process in a session of its own: Ctrl-C on the terminal reaches it only through its parent."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        death_pipe: ParentDeathPipe,
        *,
        keep_open: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        answers: bool = False,
    ) -> None:
        """keep_open: other descriptors to inherit; answers: its stdout is read, not logged."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._log_began = log, log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: S603 - our own module, no shell
                # -P: a file in the current folder must not take the place of one of our modules
                [sys.executable, "-P", "-m", "hpo_service", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if answers else output,
                stderr=output,
                env={**os.environ, **death_pipe.environment(), **(environment or {})},
                pass_fds=(death_pipe.read_end, *keep_open),
                start_new_session=True,
            )

    @property
    def exit_code(self) -> int | None:
        return self.process.poll()

    def answer(self, seconds: float, given_up: Callable[[], bool]) -> str:
        """The next line of its stdout; "" if it ends, after so many seconds, or once given_up() is true."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not given_up():
            if select.select([self.process.stdout], [], [], 0.2)[0]:
                return self.process.stdout.readline().decode()
        return ""

    def last_words(self) -> list[str]:
        """The last lines of what it has logged."""
        with suppress(OSError), self._log.open("rb") as log:
            log.seek(self._log_began)
            return log.read().decode(errors="replace").strip().splitlines()[-LOG_LINES:]
        return []

    def stop(self) -> None:
        """Ask it to end; a process that does not is killed, with all it has started."""
        if self.exit_code is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class LocalService:
    """The server on loopback and one `hpo worker` with its processes; both log to files in `logs`."""

    def __init__(self, database: str, logs: Path, given_up: Callable[[], bool]) -> None:
        self.server_log, self.worker_log = logs / "hpo-server.log", logs / "hpo-worker.log"
        self.url = ""
        self.token = draw()  # known to these processes only, and in no database: it ends with them
        self._database, self._given_up = database, given_up
        self._server: ServiceProcess | None = None
        self._worker: ServiceProcess | None = None
        self._worker_arguments: Sequence[str] = ()
        self._worker_environment: Mapping[str, str] = {}
        self._deaths = 0
        # workers inherit the server's write end, so that the server ends last, after they have released their trials
        self._server_pipe, self._worker_pipe = ParentDeathPipe(), ParentDeathPipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_workers()
        if self._server is not None:
            self._server.stop()
        self._server_pipe.close()
        self._worker_pipe.close()

    def start_server(self, port: int = 0) -> bool:
        """Start the server and wait until it serves; False if given_up() became true meanwhile."""
        self._check_nobody_holds_it()
        self._server = ServiceProcess(
            ["serve", "--host", "127.0.0.1", "--port", str(port), "--json"],
            self.server_log,
            self._server_pipe,
            # not arguments: `ps` shows those to everybody
            environment={"HPO_DATABASE_URL": self._database, "HPO_PRIVATE_KEY_HASH": hash_of(self.token)},
            answers=True,
        )
        answer = self._server.answer(START_SECONDS, self._given_up)
        if answer:
            self.url = json.loads(answer)["url"]
            return True
        if self._given_up():
            return False
        self._server.stop()
        said = self._server.last_words() or ["it said nothing"]
        failure = UsageError if self._server.exit_code == USAGE else CommandFailed
        said[0] = f"the server could not start: {said[0].removeprefix('hpo: ')}"
        raise failure(*said, *_how_to_use_the_other(said))

    def _check_nobody_holds_it(self) -> None:
        """Raise CommandFailed if another server holds the file, without waiting for our server to find out."""
        file = sqlite_path(self._database)
        process = None if file is None else holder(file)
        if process is not None:
            said = f"the server could not start: another server (process {process}) is running on {file}"
            raise CommandFailed(
                f"{said}; SQLite takes one server at a time: stop it, use another file, or use PostgreSQL",
                *_how_to_use_the_other([said]),
            )

    def start_workers(self, command: Sequence[str], data: Path | None = None) -> None:
        """command: `worker` or `agent` with its arguments; --server is added. data: the folder with datasets."""
        self._worker_arguments = [command[0], "--server", self.url, *command[1:]]
        self._worker_environment = {} if data is None else {"HPO_DATA": str(data)}
        self._start_workers()

    def _start_workers(self) -> None:
        self._worker = ServiceProcess(
            self._worker_arguments,
            self.worker_log,
            self._worker_pipe,
            keep_open=[self._server_pipe.write_end],
            environment={**self._worker_environment, "HPO_TOKEN": self.token},
        )

    def stop_workers(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def progressed(self) -> None:
        """Called when a trial has finished: reset the number of deaths, so that restarts go on."""
        self._deaths = 0

    @property
    def server_died(self) -> bool:
        return self._server is not None and self._server.exit_code is not None

    @property
    def workers_died(self) -> bool:
        return self._worker is not None and self._worker.exit_code is not None

    def revive_server(self) -> str:
        """Start the server again on its port; return a message for the user."""
        assert self._server is not None
        code = self._count_death("server", self._server, self.server_log)
        self._server.stop()
        self.start_server(port=int(self.url.rpartition(":")[2]))
        return f"the server ended unexpectedly ({code}); it was started again"

    def revive_workers(self) -> str:
        assert self._worker is not None
        if self._worker.exit_code == USAGE:  # they cannot train this, however often they are started
            raise CommandFailed(f"the workers cannot train, from {self.worker_log}:", *self._worker.last_words())
        code = self._count_death("worker", self._worker, self.worker_log)
        self._worker.stop()
        self._start_workers()
        return f"the workers ended unexpectedly ({code}); they were started again"

    def _count_death(self, name: str, child: ServiceProcess, log: Path) -> str:
        self._deaths += 1
        code = child.exit_code or 0
        ending = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if self._deaths >= MOST_DEATHS:
            raise CommandFailed(
                f"the {name} ended {self._deaths} times without a trial finished ({ending}); its last words, "
                f"from {log}:",
                *(child.last_words() or ["(none)"]),
            )
        return ending


def _how_to_use_the_other(said: Sequence[str]) -> Iterator[str]:
    if any("another server" in line for line in said):
        yield (
            "to use the server that is running (http://127.0.0.1:8000 unless it was started otherwise): "
            "hpo study create STUDY_FILE, then hpo worker --study NAME --until-done, and hpo watch NAME; "
            "each takes --server URL"
        )
