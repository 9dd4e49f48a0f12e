"""Drills with the SQLite file itself: reached by other names, and moved, removed or replaced under the server."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from drills.histories import History, read_histories
from drills.histories import Outcome as Ended
from drills.loaded_study import LoadedStudy, Outcome, Place
from drills.served import DidNotStart, Server

RECOVERY_SECONDS = 30.0


def second_servers_by_other_names(place: Place, size: int) -> Outcome:
    """Beside a server that runs another one on the same file: by a symlink, a hard link, after its lock was deleted."""
    outcome = Outcome(size)
    started = 0
    for index in range(size):
        file = place.folder / str(index) / "hpo.db"
        first = place.server(f"sqlite:///{file}")
        second = place.unstarted(f"sqlite:///{_other_names[index % len(_other_names)](file)}")
        try:
            second.start()
            started += 1
            outcome.violations.append(f"a second server is refused: it serves, by {second.database}")
        except DidNotStart as error:
            if "another server" not in str(error) or "Traceback" in str(error):
                outcome.violations.append(f"the second says why: {str(error)[-300:]}")
        if first.call("GET", "/readyz")[0] != 200:
            outcome.violations.append("the first goes on: it is not ready")
        second.kill()
        first.kill()
    outcome.measured = f"{started} of {size} second servers served"
    return outcome


def _symlink(file: Path) -> Path:
    (file.parent / "symlink.db").symlink_to(file)
    return file.parent / "symlink.db"


def _hard_link(file: Path) -> Path:
    (file.parent / "hardlink.db").hardlink_to(file)
    return file.parent / "hardlink.db"


def _lock_deleted(file: Path) -> Path:
    Path(f"{file}.lock").unlink()
    return file


_other_names: tuple[Callable[[Path], Path], ...] = (_symlink, _hard_link, _lock_deleted)


def database_moved(place: Place, size: int) -> Outcome:
    """The file is moved, removed or replaced, or its log is, under load; then the server is killed.

    What was acknowledged has to be in the file that was moved; where none is left, nothing may have been acknowledged.
    """
    outcome = Outcome(size)
    lost = 0
    for index in range(size):
        how = _ways[index % len(_ways)]
        one = Place(place.nursery, lambda: place.postgres, place.random.randrange(2**31), place.sabotage)
        with one:
            found = _moved_once(one, how)
        outcome.violations += found.violations
        outcome.acknowledged += found.acknowledged
        outcome.unknown += found.unknown
        lost += found.count
    outcome.measured = f"{lost} acknowledged results lost"
    return outcome


def _moved_once(place: Place, how: Callable[[Path], Path | None]) -> Outcome:
    """count: of the results that were acknowledged, and that the file that is left has not."""
    file = place.folder / "record" / "hpo.db"
    server = place.server(f"sqlite:///{file}")
    with LoadedStudy(place, server) as study:
        study.work_on(40)
        left = how(file)
        time.sleep(0.7)
        ready = _readiness(server)
        server.kill()
    history = read_histories(study.crew.histories())
    told = _acknowledged_results(history)
    recorded = _results(left) if left is not None else told
    lost = {number for number in told if number not in recorded} if left is not None else _told_after(history, how)
    violations = [f"acknowledged results are recorded: {how.__name__}: {len(lost)} of {len(told)} are not"] * bool(lost)
    if ready != 503:
        violations.append(f"readiness: {how.__name__}: /readyz was {ready}")
    return Outcome(len(lost), history.acknowledged, history.unknown, violations)


def _acknowledged_results(history: History) -> set[int]:
    return {call.number for call in history.of("tell") if call.outcome is Ended.OK and call.number is not None}


def _told_after(history: History, how: Callable[[Path], Path | None]) -> set[int]:
    """Results that were sent when nothing was there any more, and acknowledged."""
    since = _moments[how.__name__]
    return {
        call.number
        for call in history.of("tell")
        if call.number is not None and any(one.began > since and call.succeeded(one) for one in call.tries)
    }


def _results(file: Path) -> set[int]:
    """The numbers of the trials with a result, as whoever opens the file finds them."""
    with closing(sqlite3.connect(file)) as connection:
        return {
            number
            for (number,) in connection.execute(
                "SELECT number FROM hpo_trials WHERE state IN ('COMPLETE', 'PRUNED', 'FAIL')"
            )
        }


_moments: dict[str, float] = {}  # when something was removed for good


def moved(file: Path) -> Path:
    """As `mv hpo.db elsewhere`: what a restart on it finds is in it alone."""
    return file.rename(file.parent.parent / "moved.db")


def folder_renamed(file: Path) -> Path:
    return file.parent.rename(file.parent.parent / "renamed") / file.name


def log_removed(file: Path) -> Path:
    Path(f"{file}-wal").unlink()
    return file


def removed(file: Path) -> None:
    file.unlink()
    _moments["removed"] = time.monotonic()


def replaced(file: Path) -> None:
    """By a backup, as whoever does not stop the server first restores it."""
    backup = file.parent.parent / "backup.db"
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    shutil.move(backup, file)
    _moments["replaced"] = time.monotonic()


_ways: tuple[Callable[[Path], Path | None], ...] = (moved, removed, replaced, log_removed, folder_renamed)


def database_back(place: Place, size: int) -> Outcome:
    """The file is moved away under load and back: nothing is acknowledged meanwhile, all goes on, nothing is lost."""
    file = place.folder / "record" / "hpo.db"
    server = place.server(f"sqlite:///{file}")
    away = place.folder / "away.db"
    violations: list[str] = []
    with LoadedStudy(place, server) as study:
        for index in range(size):
            study.work_on(20)
            there, back = (file, away) if index % 2 else (file.parent, place.folder / "away")
            there.rename(back)
            time.sleep(place.random.uniform(0.05, 0.5))
            if _readiness(server) != 503:
                violations.append("readiness: /readyz was not 503 while the file was away")
            back.rename(there)
            violations += _ready_again(server)
        outcome = study.drained(size)
    outcome.violations += violations
    return outcome


def _readiness(server: Server) -> int:
    """The answer of /readyz, which may be a second old: 503 as soon as it is that."""
    deadline = time.monotonic() + 3.0
    while (status := server.call("GET", "/readyz")[0]) != 503 and time.monotonic() < deadline:
        time.sleep(0.1)
    return int(status)


def _ready_again(server: Server) -> list[str]:
    deadline = time.monotonic() + RECOVERY_SECONDS
    while time.monotonic() < deadline:
        if server.call("GET", "/readyz")[0] == 200:
            return []
        time.sleep(0.05)
    return [f"recovery: not ready {RECOVERY_SECONDS:.0f} s after the file was back"]
