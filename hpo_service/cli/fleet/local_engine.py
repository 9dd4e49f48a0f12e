"""Workers as processes of this machine, with a keeper that outlives the command."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

from hpo_service.cli.exits import CommandFailed
from hpo_service.cli.fleet.fleet_record import Fleet, FleetWorker
from hpo_service.cli.fleet.kept_process import KeptProcess, read_processes

START_SECONDS, STOP_SECONDS = 30.0, 120.0


class LocalEngine:
    def up(self, fleet: Fleet) -> tuple[str, ...]:
        with (fleet.folder / "keeper.log").open("ab") as log:
            keeper = subprocess.Popen(  # noqa: S603 - our own module, no shell
                [sys.executable, "-P", "-m", "hpo_service.cli.fleet.keeper", str(fleet.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while len(read_processes(fleet.folder)) < fleet.count:
            if keeper.poll() is not None or time.monotonic() > deadline:
                raise CommandFailed(f"the workers could not be started; {fleet.folder / 'keeper.log'} says why")
            time.sleep(0.05)
        return (str(KeptProcess.of(keeper.pid)),)

    def workers(self, fleet: Fleet) -> list[FleetWorker]:
        found = read_processes(fleet.folder).values()
        return [FleetWorker(str(each.pid), "RUNNING", socket.gethostname()) for each in found if each.is_there()]

    def logs(self, fleet: Fleet) -> str:
        return str(fleet.folder)

    def down(self, fleet: Fleet) -> None:
        """End the keeper first: else it would restart the workers."""
        keepers = [KeptProcess.read(text) for text in fleet.ids]
        deadline = time.monotonic() + STOP_SECONDS
        _end(keepers, deadline)
        _end(list(read_processes(fleet.folder).values()), deadline)  # left by a keeper that was killed


def _end(processes: list[KeptProcess], deadline: float) -> None:
    for each in processes:
        if each.is_there():
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGTERM)
    while left := [each for each in processes if each.is_there()]:
        if time.monotonic() > deadline:
            raise CommandFailed(f"process {left[0].pid} has not ended within {STOP_SECONDS:.0f} s")
        time.sleep(0.05)
