"""A drill with a clock that jumps: a day forward, two back, while the server runs."""

from __future__ import annotations

import datetime
import importlib.util
import os
import shutil
import tempfile
import time
from pathlib import Path

from drills.loaded_study import LoadedStudy, NotHere, Outcome, Place
from drills.nursery import Nursery
from drills.served import Server

# From the machine's own clock, in turn: a day forward, then two back, two forward, and so on.
_JUMPS = ("+86400", "-86400")

CREW = 8
NOTICED_AFTER_SECONDS = 1.2  # libfaketime looks at its file once a second


def clock_jumped(place: Place, size: int) -> Outcome:
    """SQLite, where the server's clock is the database's; before each jump half the workers die and leave a lease."""
    times = _clock_file(place)
    place.nursery = Nursery(**_faked(times))
    place.at_end(place.nursery.close)
    return _jumped(place, place.server(place.sqlite()), times, size)


def clock_of_postgres_jumped(place: Place, size: int) -> Outcome:
    """PostgreSQL's clock jumps, the server's does not."""
    times = _clock_file(place)
    kind = type(place.postgres)
    folder = Path(tempfile.mkdtemp(prefix="hpo-pg-"))
    place.at_end(shutil.rmtree, folder, True)
    cluster = kind(folder)
    cluster.stop()
    # Faked only once the process runs as the database's user: libfaketime shares memory that no other may open.
    cluster._prefix = [*cluster._prefix, "env", *(f"{name}={value}" for name, value in _faked(times).items())]
    cluster.start()
    place.at_end(cluster.stop, "immediate")
    server = place.server(cluster.url("postgres"))
    return _jumped(place, server, times, size)


def _jumped(place: Place, server: Server, times: Path, size: int) -> Outcome:
    # Nothing is stolen twice: a jump may end each lease that is held, and an ask for two holds two; no more.
    early_ends = 2 * CREW * size
    with LoadedStudy(place, server, CREW, lease_seconds=2, early_ends=early_ends) as study:
        before = _database_time(server)
        for index in range(size):
            study.work_on(40)
            for dying in place.random.sample(range(CREW), CREW // 2):
                study.crew.kill(dying)
            _turn(times, _JUMPS[index % len(_JUMPS)])
            time.sleep(NOTICED_AFTER_SECONDS)
        study.work_on(40)
        moved = abs(_database_time(server) - before)
        outcome = study.drained(size)
    if moved < 80_000:
        outcome.violations.append(f"the drill: the clock has moved by {moved:.0f} s only")
    return outcome


def _clock_file(place: Place) -> Path:
    """A file that says how far the clock is off; another user may read it, PostgreSQL's."""
    folder = Path(tempfile.mkdtemp(prefix="hpo-clock-"))
    place.at_end(shutil.rmtree, folder, True)
    folder.chmod(0o755)
    _turn(folder / "clock", "+0")
    return folder / "clock"


def _faked(times: Path) -> dict[str, str]:
    return {
        "LD_PRELOAD": str(faketime_library()),
        "FAKETIME_TIMESTAMP_FILE": str(times),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_CACHE_DURATION": "1",
        # For a fault of old C libraries; where it is taken for needed, threads that wait for each other spin.
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }


def _turn(times: Path, to: str) -> None:
    # In one step: half of a number would be another time.
    new = times.with_suffix(".new")
    new.write_text(to + "\n")
    new.chmod(0o644)
    new.rename(times)


def _database_time(server: Server) -> float:
    name = f"clock-{time.monotonic_ns()}"
    spec = {"name": name, "search_space": {"x": {"type": "float", "low": 0, "high": 1}}}
    made = server.patiently("POST", "/v1/studies", spec)
    server.patiently("DELETE", f"/v1/studies/{name}")
    return datetime.datetime.fromisoformat(made["created_at"]).timestamp()


def faketime_library() -> Path:
    """libfaketime, from pip's package, Debian's, or where HPO_DRILL_FAKETIME says."""
    if (named := os.environ.get("HPO_DRILL_FAKETIME")) is not None:
        return Path(named)
    found = importlib.util.find_spec("libfaketime")
    places = [Path(found.origin).parent] if found is not None and found.origin else []
    places += [Path("/usr/lib")]
    for place in places:
        if " " in str(place):
            raise NotHere("the loader takes no library from a path with spaces, as that of this checkout is")
        for library in sorted(place.glob("**/libfaketime.so.1")):
            return library
    raise NotHere("libfaketime is not installed (pip install libfaketime, or Debian's faketime)")
