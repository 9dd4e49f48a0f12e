"""The crew: worker processes under load, which can be killed, replaced, stopped and continued."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drills.load_worker import Orders

_PROGRAM = Path(__file__).with_name("load_worker.py")


class Crew:
    def __init__(
        self,
        folder: Path,
        size: int,
        ports: list[int],
        study: str = "s",
        inside: Sequence[str] = (),
        **orders: Any,
    ) -> None:
        """orders: what all workers have in common; see Orders. inside: a command that runs another one elsewhere."""
        self.folder = folder
        self.size = size
        self.killed = 0
        self._ports = ports
        self._inside = inside
        self._study = study
        self._orders = orders
        self._incarnations = [0] * size
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * size

    def __enter__(self) -> Crew:
        for index in range(self.size):
            self._start(index)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()

    def histories(self) -> list[Path]:
        return [self._history(index) for index in range(self.size)]

    def written(self) -> int:
        """Bytes of history: a measure of how much was done, some 150 a line, two lines a call."""
        return sum(path.stat().st_size for path in self.histories() if path.exists())

    def is_busy(self) -> bool:
        return any(process is not None and process.poll() is None for process in self._processes)

    def kill(self, index: int) -> None:
        """kill -9, and another in its place, which knows nothing of it."""
        process = self._process(index)
        process.kill()
        process.wait()
        self.killed += 1
        self._start(index)

    def pause(self, index: int) -> None:
        self._process(index).send_signal(signal.SIGSTOP)

    def go_on(self, index: int) -> None:
        self._process(index).send_signal(signal.SIGCONT)

    def drain(self, seconds: float) -> list[str]:
        """Wait until all have found the study done; say what went wrong."""
        deadline = time.monotonic() + seconds
        faults = []
        for index in range(self.size):
            process = self._process(index)
            try:
                code = process.wait(timeout=max(0.05, deadline - time.monotonic()))
                if code != 0:
                    faults.append(f"worker {index} ended with {code}")
            except subprocess.TimeoutExpired:
                faults.append(f"worker {index} still has not been told that the study is done")
        return faults

    def _process(self, index: int) -> subprocess.Popen[bytes]:
        process = self._processes[index]
        assert process is not None
        return process

    def _history(self, index: int) -> Path:
        return self.folder / f"history-{self._study}-{index}.jsonl"

    def _start(self, index: int) -> None:
        self._incarnations[index] += 1
        orders = Orders(
            worker_id=f"w{index}",
            incarnation=self._incarnations[index],
            ports=self._ports,
            study=self._study,
            history=str(self._history(index)),
            **self._orders,
        )
        # -I -S: no site packages, which take longer to find than all else
        self._processes[index] = subprocess.Popen(
            [*self._inside, sys.executable, "-I", "-S", str(_PROGRAM), json.dumps(asdict(orders))]
        )
