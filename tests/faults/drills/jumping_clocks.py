"""A drill with a clock that jumps: a day forward, two back, while the server runs."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path

from drills.loaded_study import LoadedStudy, NotHere, Outcome, Place
from drills.nursery import Nursery

_JUMPS = ("+86400", "-86400")  # from where it was: a day forward, two days back, two forward, and so on


def clock_jumped(place: Place, size: int) -> Outcome:
    """Jump the clock of the database under load; before each jump a worker dies and leaves its trial with a lease."""
    times = place.folder / "clock"
    _turn(times, "+0")
    variables = {
        "LD_PRELOAD": str(faketime_library()),
        "FAKETIME_TIMESTAMP_FILE": str(times),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
    }
    place.nursery = Nursery(**variables)
    place.at_end(place.nursery.close)
    server = place.server(place.sqlite())
    with LoadedStudy(place, server, lease_seconds=2, clock_jumps=True) as study:
        before = _server_time(server)
        for index in range(size):
            study.work_on(40)
            study.crew.kill(place.random.randrange(study.crew.size))
            _turn(times, _JUMPS[index % len(_JUMPS)])
        study.work_on(40)
        moved = abs(_server_time(server) - before)
        outcome = study.drained(size)
        if moved < 80_000:
            outcome.violations.append(f"the drill: the clock has moved by {moved:.0f} s only")
        outcome.violations += _stolen_twice(server, jumps=size, kills=study.crew.killed, crew=study.crew.size)
    return outcome


def _turn(times: Path, to: str) -> None:
    # In one step: half of a number would be another time.
    new = times.with_suffix(".new")
    new.write_text(to + "\n")
    new.rename(times)


def _server_time(server) -> float:  # type: ignore[no-untyped-def]
    import datetime

    name = f"clock-{time.monotonic_ns()}"
    spec = {"name": name, "search_space": {"x": {"type": "float", "low": 0, "high": 1}}}
    made = server.patiently("POST", "/v1/studies", spec)
    server.patiently("DELETE", f"/v1/studies/{name}")
    return datetime.datetime.fromisoformat(made["created_at"]).timestamp()


def _stolen_twice(server, jumps: int, kills: int, crew: int) -> list[str]:  # type: ignore[no-untyped-def]
    """A jump may end each lease that is held, an ask for two holds two, and a killed worker's ends too; no more."""
    trials = server.patiently("GET", "/v1/studies/s/trials?page_size=1000")["items"]
    again = sum(max(0, trial["attempt"] - 1) for trial in trials)
    most = 2 * crew * jumps + 2 * kills
    return [] if again <= most else [f"nothing is stolen twice: {again} trials were given out again, at most {most} may"]


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
