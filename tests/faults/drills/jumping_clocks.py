"""A drill with a clock that jumps: a day forward, two back, while the server runs."""

from __future__ import annotations

import datetime
import importlib.util
import os
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
    """Jump the clock of the database under load; before each jump a worker dies and leaves its trial with a lease."""
    times = place.folder / "clock"
    _turn(times, "+0")
    variables = {
        "LD_PRELOAD": str(faketime_library()),
        "FAKETIME_TIMESTAMP_FILE": str(times),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_CACHE_DURATION": "1",
    }
    place.nursery = Nursery(**variables)
    place.at_end(place.nursery.close)
    server = place.server(place.sqlite())
    # Nothing is stolen twice: a jump may end each lease that is held, and an ask for two holds two; no more.
    early_ends = 2 * CREW * size
    with LoadedStudy(place, server, CREW, lease_seconds=2, early_ends=early_ends) as study:
        before = _server_time(server)
        for index in range(size):
            study.work_on(40)
            study.crew.kill(place.random.randrange(study.crew.size))
            _turn(times, _JUMPS[index % len(_JUMPS)])
            time.sleep(NOTICED_AFTER_SECONDS)
        study.work_on(40)
        moved = abs(_server_time(server) - before)
        outcome = study.drained(size)
    if moved < 80_000:
        outcome.violations.append(f"the drill: the clock has moved by {moved:.0f} s only")
    return outcome


def _turn(times: Path, to: str) -> None:
    # In one step: half of a number would be another time.
    new = times.with_suffix(".new")
    new.write_text(to + "\n")
    new.rename(times)


def _server_time(server: Server) -> float:
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
        for library in sorted(place.glob("**/libfaketime.so.1")):
            return library
    raise NotHere("libfaketime is not installed (pip install libfaketime, or Debian's faketime)")
