"""Identifies a process by its pid and its start time, since pids are reused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PROCESSES = "processes.json"


@dataclass(frozen=True)
class KeptProcess:
    """began: the start time in clock ticks since boot, from /proc; "" if it is unknown."""

    pid: int
    began: str

    @classmethod
    def of(cls, pid: int) -> Self:
        return cls(pid, _began(pid) or "")

    @classmethod
    def read(cls, text: str) -> Self:
        pid, _, began = text.partition(" ")
        return cls(int(pid), began)

    def __str__(self) -> str:
        return f"{self.pid} {self.began}"

    def is_there(self) -> bool:
        return _began(self.pid) == self.began


def read_processes(folder: Path) -> Mapping[str, KeptProcess]:
    """The workers of a local fleet, by their places in it."""
    try:
        written = json.loads((folder / PROCESSES).read_text(encoding="utf-8"))
        return {place: KeptProcess.read(text) for place, text in written.items()}
    except (OSError, ValueError):
        return {}


def _began(pid: int) -> str | None:
    """The start time of a process; None if there is none of this pid, or if it is a zombie."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in ("Z", "X") else fields[18]
