"""`python -m hpo_service.cli.fleet.keeper FOLDER`: keeps the workers of a local fleet alive until they are done.

A worker that was killed is restarted, after a pause that doubles each time; one that ends by itself is not. On SIGTERM
the keeper has each worker release its trials, and then ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpo_service.cli.fleet.fleet_record import Fleet, read_fleet, write_json
from hpo_service.cli.fleet.kept_process import PROCESSES, KeptProcess

POLL_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 60.0
GRACE_SECONDS = 60.0  # from SIGTERM to SIGKILL
KILLED = 128  # an exit code from here on means a signal, as in shells


class Keeper:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._running: dict[int, subprocess.Popen[bytes]] = {}  # by place: a number from 0
        self._due = dict.fromkeys(range(fleet.count), 0.0)  # by place: when to start it, monotonic
        self._deaths = dict.fromkeys(range(fleet.count), 0)
        self._leaving = False

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._leave)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        while not self._leaving and (self._running or self._due):
            now = time.monotonic()
            due = [place for place, at in self._due.items() if at <= now]
            for place in due:
                self._start(place)
            ended = [place for place, process in self._running.items() if process.poll() is not None]
            for place in ended:
                self._reap_child(place)
            if due or ended:
                self._write()
            time.sleep(POLL_SECONDS)
        self._end_all()

    def _start(self, place: int) -> None:
        del self._due[place]
        with (self._fleet.folder / f"worker-{place}.log").open("ab") as log:
            self._running[place] = subprocess.Popen(  # noqa: S603 - no shell
                self._fleet.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment(place)},
                start_new_session=True,
            )

    def _environment(self, place: int) -> dict[str, str]:
        gpus, first = self._fleet.gpus, place * self._fleet.gpus
        own = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(first, first + gpus)))} if gpus else {}
        return {"OMP_NUM_THREADS": str(self._fleet.cpus), **own}

    def _reap_child(self, place: int) -> None:
        code = self._running.pop(place).returncode
        if code < 0 or code >= KILLED:
            self._deaths[place] += 1
            self._due[place] = time.monotonic() + min(LONGEST_PAUSE_SECONDS, 2.0 ** (self._deaths[place] - 1))

    def _write(self) -> None:
        kept = {str(place): str(KeptProcess.of(process.pid)) for place, process in self._running.items()}
        write_json(self._fleet.folder / PROCESSES, kept)

    def _leave(self, *_: Any) -> None:
        self._leaving = True

    def _end_all(self) -> None:
        for process in self._running.values():
            process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for process in self._running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    fleet = read_fleet(Path(sys.argv[1]))
    if fleet is None:
        sys.exit(f"there is no fleet in {sys.argv[1]}")
    Keeper(fleet).run()


if __name__ == "__main__":
    main()
