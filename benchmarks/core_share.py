"""Holds a process to a share of a core, by a control group of Linux that is made for it and removed again."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PERIOD = 10_000  # µs; a process that has used up its share waits no longer than this
REMOVING_SECONDS = 5.0


class CannotBeHeld(Exception):
    """No control group can be made here."""


@contextlib.contextmanager
def held_to(share: float, pid: int) -> Iterator[None]:
    """The process and its threads get so much of one core, such as 0.2, in every 10 ms. Raise CannotBeHeld."""
    parent, limits = _controller(share)
    group = parent / f"hpo-benchmark-{os.getpid()}-{pid}"
    try:
        group.mkdir()
    except OSError as error:
        raise CannotBeHeld(f"{parent}: no control group can be made in it ({error.strerror}); run as root") from error
    try:
        _put(group, pid, limits)
        yield
    finally:
        _remove(group, parent)


def _controller(share: float) -> tuple[Path, dict[str, str]]:
    """Where groups are made, and what is written to one to limit it: cgroup v2, or v1 with its controller `cpu`."""
    quota = round(share * PERIOD)
    enabled = CGROUPS / "cgroup.subtree_control"
    if enabled.exists() and "cpu" in enabled.read_text().split():
        return CGROUPS, {"cpu.max": f"{quota} {PERIOD}"}
    if (CGROUPS / "cpu" / "cpu.cfs_quota_us").exists():
        return CGROUPS / "cpu", {"cpu.cfs_period_us": str(PERIOD), "cpu.cfs_quota_us": str(quota)}
    raise CannotBeHeld(
        f"{CGROUPS} offers no limit of CPU time: neither v2 with `cpu` in cgroup.subtree_control nor v1's cpu"
    )


def _put(group: Path, pid: int, limits: dict[str, str]) -> None:
    try:
        for name, value in limits.items():
            (group / name).write_text(value)
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        raise CannotBeHeld(f"{group}: process {pid} cannot be held to {limits} ({error.strerror})") from error


def _remove(group: Path, parent: Path) -> None:
    for pid in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(OSError):  # it may end meanwhile
            (parent / "cgroup.procs").write_text(pid)
    until = time.monotonic() + REMOVING_SECONDS
    while True:
        try:
            group.rmdir()
            return
        except OSError:  # a process that is just ending still counts
            if time.monotonic() > until:
                raise
        time.sleep(0.05)
