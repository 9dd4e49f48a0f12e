"""A drill with agents that are killed or lose their terminal: no command runs beside the next holder's of its trial."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from drills.loaded_study import Outcome, Place
from drills.served import PATIENCE_SECONDS, Server

_PROGRAM = Path(__file__).with_name("stubborn_command.py")
_SABOTEUR = Path(__file__).with_name("saboteur.py")

LEASE_SECONDS = 2.0
ENDS = (signal.SIGKILL, signal.SIGKILL, signal.SIGHUP, signal.SIGTERM)


def commands_orphaned(place: Place, size: int) -> Outcome:
    """`size` agents train the one trial after one another; each is ended while its command and a daemon of it run."""
    server = place.server(place.sqlite())
    server.patiently("POST", "/v1/studies", _study(size))
    outcome, left, most = Outcome(count=size), list[int](), 0
    for attempt in range(1, size + 2):
        agent = _start_agent(place, server)
        begun = _wait_for_command(place.folder, attempt)
        beside = [pid for pid in left if _is_there(pid)]
        most = max(most, len(beside))
        if beside:
            outcome.violations.append(
                f"one command a trial: {len(beside)} processes of earlier holders beside {attempt}'s"
            )
        left += begun
        agent.send_signal(ENDS[attempt % len(ENDS)] if attempt <= size else signal.SIGKILL)
        agent.wait(PATIENCE_SECONDS)
    still = [pid for pid in left if not _is_gone_soon(pid)]
    if still:
        outcome.violations.append(f"nothing is left: {len(still)} of {len(left)} processes run on")
    outcome.measured = f"{most} processes of earlier holders beside the next one's, {len(still)} left at the end"
    return outcome


def _study(size: int) -> dict[str, Any]:
    limits = {"trials": 1, "attempts": size + 10}
    space = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
    return {"name": "s", "search_space": space, "limits": limits, "lease_seconds": LEASE_SECONDS}


def _start_agent(place: Place, server: Server) -> subprocess.Popen[bytes]:
    sabotage = "" if place.sabotage is None else f"import saboteur; saboteur.put_in({place.sabotage!r}); "
    program = (
        f"import sys; sys.path.append({str(_SABOTEUR.parent)!r}); {sabotage}from hpo_service.cli import main; main()"
    )
    command = [sys.executable, str(_PROGRAM), str(place.folder)]
    with (place.folder / "agents.log").open("ab") as log:
        agent = subprocess.Popen(
            [
                sys.executable,
                "-c",
                program,
                "agent",
                "s",
                "--server",
                f"http://127.0.0.1:{server.port}",
                "--",
                *command,
            ],
            stderr=log,
        )
    place.at_end(agent.kill)
    return agent


def _wait_for_command(folder: Path, attempt: int) -> Sequence[int]:
    """The processes of the next command, when all of them run: their pids stand in a file for each command."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(files := list(folder.glob("*.pids"))) < attempt:
        if time.monotonic() > deadline:
            raise TimeoutError(f"attempt {attempt} did not begin: {(folder / 'agents.log').read_text()[-500:]}")
        time.sleep(0.02)
    newest = max(files, key=lambda file: file.stat().st_mtime_ns)
    return [int(pid) for pid in newest.read_text().split()]


def _is_there(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _is_gone_soon(pid: int) -> bool:
    """End what is left of a sabotaged run, too."""
    deadline = time.monotonic() + 3.0
    while time.monotonic() < deadline:
        if not _is_there(pid):
            return True
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return False
