"""A drill with callers that never finish a request: they take every place, and the workers go on all the same."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from drills.loaded_study import LoadedStudy, Outcome, Place
from drills.nursery import Nursery
from drills.served import Server

_PROGRAM = Path(__file__).with_name("slow_callers.py")

DEADLINE_SECONDS = 1.5
# A connection is closed within its deadline and a sweep; a loaded machine is late.
CLOSED_WITHIN_SECONDS = DEADLINE_SECONDS + 3.0
SERVED_WITHIN_SECONDS = 5.0
ATTACK_SECONDS = 6.0
ATTACK_SECONDS_A_CONNECTION = 0.01
WINDOW_SECONDS = 2.0


def connections_slow(place: Place, size: int) -> Outcome:
    """`size` slow connections on a server with half as many places; workers die meanwhile, and others come in."""
    bounds = {
        "HPO_HEAD_SECONDS": DEADLINE_SECONDS,
        "HPO_BODY_SECONDS": DEADLINE_SECONDS,
        "HPO_CONNECTIONS": size // 2,
    }
    place.nursery = Nursery(**{name: str(value) for name, value in bounds.items()})
    place.at_end(place.nursery.close)
    server = place.server(place.sqlite())
    with LoadedStudy(place, server) as study:
        study.work_on()
        callers = _SlowCallers(place, server.port, size)
        found = _watch(place, server, study, ATTACK_SECONDS + ATTACK_SECONDS_A_CONNECTION * size)
        seen = callers.end()
        outcome = study.drained(size)
    if seen["longest"] > CLOSED_WITHIN_SECONDS:
        found.append(f"slow connections are closed: one was open for {seen['longest']:.1f} s")
    if seen["opened"] < size:
        found.append(f"the drill: {seen['opened']} slow connections only")
    outcome.violations += found
    ends = ", ".join(f"{times} × {end}" for end, times in sorted(seen["ends"].items()))
    outcome.notes.append(f"{seen['opened']} slow connections opened on {size // 2} places: {ends}")
    return outcome


def _watch(place: Place, server: Server, study: LoadedStudy, seconds: float) -> list[str]:
    """Kill workers, come in as a newcomer, and see that the crew goes on."""
    found = []
    end = time.monotonic() + seconds
    written, window_ends, dying = study.crew.written(), time.monotonic() + WINDOW_SECONDS, 0
    while time.monotonic() < end:
        study.crew.kill(dying % study.crew.size)
        dying += 1
        if not _is_served(server):
            found.append(f"a newcomer is served: not within {SERVED_WITHIN_SECONDS:.0f} s")
        if time.monotonic() > window_ends:
            if study.crew.written() == written:
                found.append(f"the workers go on: not one call in {WINDOW_SECONDS:.0f} s")
            written, window_ends = study.crew.written(), time.monotonic() + WINDOW_SECONDS
        place.pause(0.2, 0.6)
    return found


def _is_served(server: Server) -> bool:
    """Whether a new connection gets its answer in time; one that was told to come back does."""
    deadline = time.monotonic() + SERVED_WITHIN_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        try:
            status, _ = server.call("GET", "/v1/studies/s", timeout=left)
            if status == 200:
                return True
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.05)
    return False


class _SlowCallers:
    def __init__(self, place: Place, port: int, many: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_PROGRAM), str(port), str(many)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        place.at_end(self._process.kill)
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def end(self) -> dict[str, Any]:
        said, _ = self._process.communicate(timeout=30)
        seen: dict[str, Any] = json.loads(said)
        return seen
