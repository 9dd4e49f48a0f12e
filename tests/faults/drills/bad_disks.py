"""Drills with a disk that fails or is full: 503 meanwhile, nothing acknowledged lost, and all well again by itself."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

from drills.loaded_study import STUDY, LoadedStudy, NotHere, Outcome, Place
from drills.served import Server
from drills.traced import strace

RECOVERY_SECONDS = 30.0

# The calls that reach the disk, and how they fail: the device breaks, or it is full.
_FAULTS = (("fdatasync", "EIO"), ("pwrite64", "ENOSPC"), ("fdatasync", "ENOSPC"), ("pwrite64", "EIO"))


def calls_failed(place: Place, size: int) -> Outcome:
    """Writes and syncs of the database's files fail with EIO or ENOSPC, at the first to fifth call after a moment."""
    server = place.server(place.sqlite())
    violations = []
    with LoadedStudy(place, server) as study:
        for index in range(size):
            study.work_on(10)
            call, error = _FAULTS[index % len(_FAULTS)]
            first = place.random.randint(1, 5)
            log = place.folder / "injected.log"
            with strace(
                server,
                "-o",
                str(log),
                "-e",
                f"trace={call}",
                "-e",
                f"inject={call}:error={error}:when={first}..{first + 3}",
            ):
                deadline = time.monotonic() + RECOVERY_SECONDS
                while not (failed := "(INJECTED)" in log.read_text()) and time.monotonic() < deadline:
                    time.sleep(0.05)
                time.sleep(0.2)
            log.unlink()
            if not failed:
                violations.append(f"the drill: no {call} was seen to fail")
        violations += _recovered(server)
        outcome = study.drained(size)
    outcome.violations += violations
    return outcome


def disk_full(place: Place, size: int) -> Outcome:
    """The disk is full for a while, under load: 503 and not ready, alive, and readable; then there is room again."""
    disk = _small_disk(place)
    server = place.server(f"sqlite:///{disk.folder}/hpo.db")
    violations = []
    with LoadedStudy(place, server) as study:
        for _ in range(size):
            study.work_on(10)
            disk.fill(server)
            try:
                violations += _is_refused(server)
            finally:
                disk.make_room(server)
            violations += _recovered(server)
        outcome = study.drained(size)
    outcome.violations += violations
    outcome.notes.append(disk.what)
    return outcome


def disk_full_of_log(place: Place, size: int) -> Outcome:
    """The log lies on the disk that is full; afterwards a lease that runs out is taken back though nobody looks."""
    disk = _small_disk(place)
    if not isinstance(disk, Tmpfs):
        raise NotHere("no disk of its own may be mounted here")
    database = disk.folder / "hpo.db"
    server = place.unstarted(f"sqlite:///{database}")
    server.errors = disk.folder / "log"
    server.start()
    outcome = Outcome(size)
    server.patiently("POST", "/v1/studies", {**STUDY, "lease_seconds": 1, "limits": {"attempts": 100}})
    for index in range(size):
        # This lease runs out while the disk is full: the reaper cannot take it back, and says so.
        server.patiently("POST", "/v1/studies/s/trials:ask", {"worker_id": "w", "request_id": f"before-{index}"})
        disk.fill(server)
        try:
            outcome.violations += _is_refused(server)
            time.sleep(3.0)
        finally:
            disk.make_room(server)
        outcome.violations += _recovered(server)
        server.patiently("POST", "/v1/studies/s/trials:ask", {"worker_id": "w", "request_id": f"after-{index}"})
        time.sleep(1.0 + 5.0)
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            running = connection.execute("SELECT number FROM hpo_trials WHERE state = 'RUNNING'").fetchall()
        if running:
            outcome.violations.append(f"leases run out: {running} is RUNNING 5 s after its lease has run out")
    outcome.notes.append(disk.what)
    return outcome


def _is_refused(server: Server) -> list[str]:
    """Wait until the server says that it cannot write; check what else it says."""
    violations = []
    if not _becomes(server, 503):
        violations.append("readiness: /readyz did not become 503 while the disk was full")
    if server.call("GET", "/healthz")[0] != 200:
        violations.append("liveness: /healthz was not 200 while the disk was full")
    if server.call("GET", "/v1/studies/s")[0] not in (200, 503):
        violations.append("reads: a study could not be read while the disk was full")
    return violations


def _recovered(server: Server) -> list[str]:
    return [] if _becomes(server, 200) else [f"recovery: not ready {RECOVERY_SECONDS:.0f} s after the fault"]


def _becomes(server: Server, status: int) -> bool:
    deadline = time.monotonic() + RECOVERY_SECONDS
    while time.monotonic() < deadline:
        if server.call("GET", "/readyz")[0] == status:
            return True
        time.sleep(0.1)
    return False


class Tmpfs:
    """A small disk of its own, filled up by a large file."""

    def __init__(self, folder: Path, mebibytes: int) -> None:
        self.folder, self.what = folder, f"a tmpfs of {mebibytes} MiB, filled up"

    def fill(self, _server: Server) -> None:
        with open(self.folder / "ballast", "ab", buffering=0) as ballast:
            size = 2**20
            while size:
                try:
                    ballast.write(bytes(size))
                except OSError:
                    size //= 2

    def make_room(self, _server: Server) -> None:
        (self.folder / "ballast").unlink()


class _FileLimit:
    """No file of the server may grow any more: what a full disk looks like from inside."""

    what = "RLIMIT_FSIZE at the size of the log"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, server: Server) -> None:
        full = max(1, (self.folder / "hpo.db-wal").stat().st_size // 2)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))

    def make_room(self, server: Server) -> None:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _small_disk(place: Place) -> Tmpfs | _FileLimit:
    folder = place.folder / "disk"
    return disk_of_its_own(place, folder, 64) or _FileLimit(folder)


def disk_of_its_own(place: Place, folder: Path, mebibytes: int) -> Tmpfs | None:
    """Make the folder, with a disk of this size mounted there; None: nobody may do that here."""
    folder.mkdir()
    if os.geteuid() == 0:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=700", "hpo-drill", str(folder)]
        if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            place.at_end(lambda: subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False))
            return Tmpfs(folder, mebibytes)
    return None
