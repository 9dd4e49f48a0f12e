"""Starts `hpo serve` fast: a process that has imported everything already forks, and the child runs the command.

A server is started hundreds of times in the drills and the other tests, and importing takes longer than all else. The
child is a process of its own that runs the very code of `hpo serve`; only here, between fork and command, can a
sabotage be put in.

Run as a program it reads one JSON request a line and answers each with one line.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

IMPORTS = (
    "hpo_service.cli",
    "hpo_service.cli.serve",
    "hpo_service.api.app",
    "hpo_service.store",
    "hpo_service.tuning.auto",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "uvicorn",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
    "uvicorn.lifespan.off",
    "alembic.command",
)


class Nursery:
    """Handle on the forking process. One for a whole run; any thread may use it."""

    def __init__(self, inside: Sequence[str] = (), **variables: str) -> None:
        """inside: a command that runs another one elsewhere; variables: of the environment, for all servers."""
        # One thread, since a fork takes only the one along that forks.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **variables}
        self._process = subprocess.Popen(
            [*inside, sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._lock = threading.Lock()
        self._ended: dict[int, int] = {}

    def start(
        self,
        arguments: list[str],
        output: Path,
        errors: Path,
        sabotage: str | None = None,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Fork a child that runs `hpo` with these arguments; return its process id.

        folder, environment: what it has for those; without them the nursery's own.
        """
        request: dict[str, Any] = {"start": arguments, "output": str(output), "errors": str(errors)}
        request |= {"sabotage": sabotage, "folder": None if folder is None else str(folder)}
        request |= {"environment": None if environment is None else dict(environment)}
        pid = int(self._ask(request)["pid"])
        self._ended.pop(pid, None)  # of a child before, whose number it has been given
        return pid

    def exit_code(self, pid: int) -> int | None:
        """How the child ended (a negative number: by that signal), or None while it runs."""
        if pid not in self._ended:
            code = self._ask({"poll": pid})["code"]
            if code is None:
                return None
            self._ended[pid] = code
        return self._ended[pid]

    def close(self) -> None:
        """The children that still run end with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the nursery has ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(answer)
        return found


def _run(request: dict[str, Any]) -> None:
    """In the child: become the server. Never returns."""
    code = 1
    try:
        # Signals typed at the terminal are meant for the run, and a child must not outlive it for long.
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 1)
        os.dup2(os.open(request["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 2)
        if request["environment"] is not None:
            os.environ.clear()
            os.environ.update(request["environment"])
        if request["folder"] is not None:
            os.chdir(request["folder"])
        if request["sabotage"] is not None:
            from saboteur import put_in  # type: ignore[import-not-found]  # from the folder of this program

            put_in(request["sabotage"])
        from hpo_service.cli import main

        sys.argv = ["hpo", *request["start"]]
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve_requests() -> None:
    for name in IMPORTS:
        importlib.import_module(name)
    children: set[int] = set()
    pending = b""
    while True:
        select.select([0], [], [])
        read = os.read(0, 65536)
        if not read:
            break
        pending += read
        while b"\n" in pending:
            line, pending = pending.split(b"\n", 1)
            request = json.loads(line)
            answer: dict[str, int | None]
            if "start" in request:
                pid = os.fork()
                if pid == 0:
                    _run(request)
                children.add(pid)
                answer = {"pid": pid}
            else:
                pid, status = os.waitpid(request["poll"], os.WNOHANG)
                children.discard(pid)
                answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
            os.write(1, json.dumps(answer).encode() + b"\n")
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    _serve_requests()
