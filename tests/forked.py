"""`hpo` commands without the imports that a new interpreter begins with: forked from a process that has them."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from drills.nursery import Nursery

from tests.patience import PATIENCE_SECONDS

Fork = Callable[..., "Forked"]


class Forked:
    """A running command, spoken to as a subprocess.Popen is; its standard output is a pipe.

    It is a process of its own that runs the very code of `hpo`, in a session of its own. errors: the file that its
    standard error is appended to. What the environment of this process has, it has, and the variables given.
    """

    def __init__(
        self, nursery: Nursery, *arguments: str, errors: Path | None = None, cwd: Path | None = None, **variables: str
    ) -> None:
        self.returncode: int | None = None
        self._nursery = nursery
        errors = errors or Path(os.devnull)
        with tempfile.TemporaryDirectory(prefix="hpo-forked-") as folder:
            pipe = Path(folder) / "output"
            os.mkfifo(pipe)
            environment = {**os.environ, **variables}
            self.pid = nursery.start([*arguments], pipe, errors, folder=cwd or Path.cwd(), environment=environment)
            self.stdout = pipe.open(encoding="utf-8")  # it is there when the command has opened it, too

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._nursery.exit_code(self.pid)
        return self.returncode

    def wait(self, timeout: float = PATIENCE_SECONDS) -> int:
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.01)
        return code

    def communicate(self, timeout: float = PATIENCE_SECONDS) -> tuple[str, None]:
        """What is left of its output, once it has ended."""
        output = "" if self.stdout.closed else self.stdout.read()
        self.stdout.close()
        self.wait(timeout)
        return output, None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)  # it is not reaped before it is asked for again: its number is still its own

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
