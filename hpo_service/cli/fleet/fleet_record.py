"""The record of a fleet that was started on this machine: a folder for each, below the user's state folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpo_service.cli.exits import CommandFailed, UsageError

HPO = (sys.executable, "-P", "-m", "hpo_service")  # what every argv begins with
_FILE = "fleet.json"
POLL_SECONDS = 0.5
STOP_SECONDS = 300.0  # Slurm and Kubernetes notice late that a node is lost


@dataclass(frozen=True)
class Fleet:
    """argv, cpus, gpus: of each worker; options: for the engine; ids: what the engine calls the fleet."""

    study: str
    server: str
    engine: str
    count: int
    argv: tuple[str, ...]
    cpus: int = 1
    gpus: int = 0
    options: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        of_server = hashlib.sha256(self.server.encode()).hexdigest()[:8]
        return _fleets() / f"{self.study}@{of_server}"

    def save(self) -> None:
        self.folder.mkdir(0o700, parents=True, exist_ok=True)
        write_json(self.folder / _FILE, asdict(self))

    def forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class FleetWorker:
    """state: the engine's word, in capitals; host: None until it is placed."""

    id: str
    state: str
    host: str | None = None


def read_fleet(folder: Path) -> Fleet | None:
    """The fleet that is recorded in the folder; None if there is no readable record."""
    try:
        fields = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        for name in ("argv", "options", "ids"):
            fields[name] = tuple(fields[name])
        return Fleet(**fields)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def all_fleets() -> Iterator[Fleet]:
    for folder in sorted(_fleets().glob("*@*")):
        if (fleet := read_fleet(folder)) is not None:
            yield fleet


def write_json(path: Path, document: Any) -> None:
    """Write the file atomically, readable by its owner only."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(document), encoding="utf-8")
    unfinished.chmod(0o600)
    unfinished.replace(path)


def _fleets() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "hpo" / "fleets"


def options_of(fleet: Fleet, known: Mapping[str, str]) -> Mapping[str, str]:
    """The engine's options, from --option NAME=TEXT. known: the allowed names, with their defaults."""
    given = {}
    for each in fleet.options:
        name, _, text = each.partition("=")
        if name not in known or not text:
            raise UsageError(f"--option {each!r}: on {fleet.engine} it is one of {', '.join(known)}, as NAME=TEXT")
        given[name] = text
    return {**known, **given}


def output_of(program: str, *arguments: str, given: str | None = None) -> str:
    if shutil.which(program) is None:
        raise CommandFailed(f"{program} is not on the PATH")
    command = [program, *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
    if done.returncode != 0:
        raise CommandFailed(f"{program}: {' '.join(done.stderr.split())[:300]}")
    return done.stdout


def wait_until_ended(noun: str, workers: Callable[[], list[FleetWorker]]) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    while left := workers():
        if time.monotonic() > deadline:
            raise CommandFailed(f"{noun} {left[0].id} is still {left[0].state} after {STOP_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
