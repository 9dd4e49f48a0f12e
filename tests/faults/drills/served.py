"""`hpo serve` as a process on one port and one database: to be killed, stopped, started again, and called."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import socket
import time
from pathlib import Path
from typing import Any

from drills.nursery import Nursery

_numbers = itertools.count()

# A loaded machine may take long for anything; what is slower than this is broken.
PATIENCE_SECONDS = 60.0


class DidNotStart(Exception):
    """The server ended before it served; the message is what it printed."""


def free_port() -> int:
    """A port below those that the kernel gives to outgoing connections: while a server is down it stays free."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


class Server:
    def __init__(
        self,
        nursery: Nursery,
        folder: Path,
        database: str,
        sabotage: str | None = None,
        token: str | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        """token: of a key, which is shown with every call; without one the server asks nobody.

        host: where it is called from here; it then listens on all addresses.
        """
        self.token = token
        self.host = host
        self.port = free_port()
        self.database = database
        self.sabotage = sabotage
        self.errors = folder / f"server-{self.port}.log"
        self.pid = 0
        self._nursery = nursery
        self._output = folder / f"server-{self.port}.out"

    def begin(self) -> None:
        """Start the process without waiting until it serves."""
        self._output = self._output.with_name(f"{self._output.stem.split('+')[0]}+{next(_numbers)}.out")
        options = [] if self.token else ["--no-auth"]
        if self.host != "127.0.0.1":
            options += ["--host", "0.0.0.0"]
        arguments = ["serve", *options, "--port", str(self.port), "--json", "--database", self.database]
        self.pid = self._nursery.start(arguments, self._output, self.errors, self.sabotage)

    def wait_until_serving(self) -> None:
        """Raise DidNotStart when the process ends instead."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            code = self.exit_code()
            if self._output.exists() and self._output.read_text().endswith("\n"):
                return
            if code is not None:
                raise DidNotStart(f"exit code {code}: {self.errors.read_text()[-2000:]}")
            if time.monotonic() > deadline:
                raise DidNotStart(f"not serving after {PATIENCE_SECONDS:.0f} s: {self.errors.read_text()[-2000:]}")
            time.sleep(0.02)

    def start(self) -> None:
        self.begin()
        self.wait_until_serving()

    def exit_code(self) -> int | None:
        return self._nursery.exit_code(self.pid)

    def signal(self, number: int) -> None:
        if self.pid and self.exit_code() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait_until_gone(self, seconds: float = PATIENCE_SECONDS) -> int | None:
        """The exit code, or None if it is still there then."""
        deadline = time.monotonic() + seconds
        while (code := self.exit_code()) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return code

    @classmethod
    def key(cls, nursery: Nursery, folder: Path, database: str) -> str:
        """A key for everything, made on that database before any server is there."""
        said = folder / "key.json"
        command = ["token", "create", "--scope", "admin", "--json", "--database", database]
        cls.run(nursery, command, said, folder / "key.log")
        token: str = json.loads(said.read_text())["token"]
        return token

    @staticmethod
    def run(nursery: Nursery, command: list[str], output: Path, errors: Path) -> None:
        """Run another command of `hpo` to its end; raise DidNotStart when it fails."""
        pid = nursery.start(command, output, errors, None)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (code := nursery.exit_code(pid)) is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if code != 0:
            raise DidNotStart(f"hpo {command[0]}: exit code {code}: {errors.read_text()[-2000:]}")

    def kill(self) -> None:
        if self.pid:
            self.signal(signal.SIGKILL)
            self.wait_until_gone()

    def headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.token}"} if self.token else {})

    def call(self, method: str, path: str, body: Any = None, timeout: float = 30.0) -> tuple[int, Any]:
        """Return the status and the parsed answer; raise OSError or HTTPException when there is none."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            sent = None if body is None else json.dumps(body)
            connection.request(method, path, sent, self.headers())
            answer = connection.getresponse()
            read = answer.read()
            return answer.status, json.loads(read) if read else None
        finally:
            connection.close()

    def patiently(self, method: str, path: str, body: Any = None) -> Any:
        """Call until there is an answer other than 503; raise when it is no success."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                status, answer = self.call(method, path, body)
                if status < 300:
                    return answer
                if status != 503 or time.monotonic() > deadline:
                    raise RuntimeError(f"{method} {path}: {status} {answer}")
            except (OSError, http.client.HTTPException):
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)
