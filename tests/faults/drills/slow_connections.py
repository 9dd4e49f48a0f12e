"""A drill with callers that never finish a request: they take every place, and the workers go on all the same."""

from __future__ import annotations

import http.client
import itertools
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
ATTACK_SECONDS = 6.0
ATTACK_SECONDS_A_CONNECTION = 0.01
# For an answer to a newcomer, a call of the crew, and the end of the last slow connection: how long each takes says
# more about the machine, so that only what never comes is missed.
PATIENCE_SECONDS = 60.0
# With a broken guarantee none of it comes; and that is a finding too.
PATIENCE_SECONDS_SABOTAGED = 6.0


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
    patience = PATIENCE_SECONDS_SABOTAGED if place.sabotage else PATIENCE_SECONDS
    with LoadedStudy(place, server) as study:
        study.work_on()
        callers = _SlowCallers(place, server.port, size, patience)
        found = _watch(place, server, study, ATTACK_SECONDS + ATTACK_SECONDS_A_CONNECTION * size, patience)
        seen = callers.end(2 * PATIENCE_SECONDS)
        outcome = study.drained(size)
    if seen["open"]:
        found.append(f"slow connections are closed: {seen['open']} are open {patience:.0f} s after the last began")
    if seen["opened"] < size:
        found.append(f"the drill: {seen['opened']} slow connections only")
    outcome.violations += found
    ends = ", ".join(f"{times} × {end}" for end, times in sorted(seen["ends"].items()))
    longest = f"the longest for {seen['longest']:.1f} s"
    outcome.notes.append(f"{seen['opened']} slow connections opened on {size // 2} places, {longest}: {ends}")
    return outcome


def _watch(place: Place, server: Server, study: LoadedStudy, seconds: float, patience: float) -> list[str]:
    """Kill workers, come in as a newcomer, and see that the crew goes on."""
    end = time.monotonic() + seconds
    for dying in itertools.count():
        written = study.crew.written()
        study.crew.kill(dying % study.crew.size)
        if not _is_served(server, patience):
            return [f"a newcomer is served: not within {patience:.0f} s"]
        if not _goes_on(study, written, patience):
            return [f"the workers go on: not one call in {patience:.0f} s"]
        if time.monotonic() > end:
            break
        place.pause(0.2, 0.6)
    return []


def _goes_on(study: LoadedStudy, written: int, patience: float) -> bool:
    """Whether the crew has written more than that, or comes to it."""
    deadline = time.monotonic() + patience
    while study.crew.written() == written and time.monotonic() < deadline:
        time.sleep(0.05)
    return study.crew.written() != written


def _is_served(server: Server, patience: float) -> bool:
    """Whether a new connection gets its answer; one that was told to come back does."""
    deadline = time.monotonic() + patience
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
    def __init__(self, place: Place, port: int, many: int, patience: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_PROGRAM), str(port), str(many), str(patience)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        place.at_end(self._process.kill)
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def end(self, within: float) -> dict[str, Any]:
        """Have no more opened; what was seen, when all are closed or its patience is at an end."""
        said, _ = self._process.communicate(timeout=within)
        seen: dict[str, Any] = json.loads(said)
        return seen
