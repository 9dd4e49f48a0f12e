"""Drills with many who wait, and with draws that take long: the others go on as if nobody did."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from drills.loaded_study import Outcome, Place
from drills.served import Server

_PROGRAM = Path(__file__).with_name("waiting_callers.py")
_requests = itertools.count()

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
MEASURED_TRIALS_A_CALLER = 1.5
LEAST_TRIALS = 60
LONGEST_SECONDS = 12.0
# Time of the processor, since how long anything takes says more about the machine. A stream of the study in which
# the trials are has its share of each: every event is sent to everybody.
MOST_TIMES_THE_WORK = 4.0
MEASURED_AGAIN = 2  # where it was more: on a busy machine the same work takes more of a processor now and then
GIVEN_WITHIN_SECONDS = 40.0

CROWDS = (
    # what waits, for which study, and what part of the callers that are asked for
    ("polls", "paused", "long polls of a paused study", 1.0),
    ("polls", "full", "long polls of one with nothing to give", 1.0),
    ("streams", "quiet", "streams of a quiet one", 1.0),
    ("streams", "busy", "streams of the busy one", 0.25),
)


class Speed(NamedTuple):
    trials_a_second: float
    work: float  # seconds of the server's processor a trial


def crowd_waits(place: Place, size: int) -> Outcome:
    """Two workers beside `size` calls that wait: a trial stays as much work as it is; then these are given theirs."""
    server = place.server(place.sqlite())
    _create_studies(server)
    trials = max(LEAST_TRIALS, int(size * MEASURED_TRIALS_A_CALLER))
    _measured(server, LEAST_TRIALS)  # everything has been there once
    alone = _measured(server, trials)
    outcome, measured = Outcome(), [f"{alone.trials_a_second:.0f} trials/s alone"]
    for kind, study, words, part in CROWDS:
        count = max(1, int(size * part))
        with _crowd(place, server, kind, study, count) as crowd:
            beside = _measured(server, trials)
            for _ in range(MEASURED_AGAIN):
                if beside.work > MOST_TIMES_THE_WORK * alone.work:
                    beside = min(beside, _measured(server, trials), key=lambda speed: speed.work)
            if study == "paused":
                server.patiently("POST", "/v1/studies/paused:resume")
                _until_given(server, count)
        outcome.count += count
        measured.append(f"{beside.trials_a_second:.0f} beside {count} {words}")
        times = beside.work / alone.work
        outcome.notes.append(f"beside {count} {words} a trial costs {times:.1f} times the work")
        if times > MOST_TIMES_THE_WORK:
            outcome.violations.append(f"waiting costs those who work nothing: {times:.1f} times the work, {words}")
        if study == "paused" and crowd["given"] < count:
            outcome.violations.append(f"who waits is given a trial: {crowd['given']} of {count}")
    outcome.measured = ", ".join(measured)
    return outcome


def _create_studies(server: Server) -> None:
    for name in ("busy", "paused", "full", "quiet"):
        spec: dict[str, Any] = {"name": name, "search_space": SPACE, "sampler": {"name": "random", "seed": 1}}
        if name == "full":
            spec["limits"] = {"running": 1}
        server.patiently("POST", "/v1/studies", spec)
    server.patiently("POST", "/v1/studies/paused:pause")
    server.patiently("POST", "/v1/studies/full/trials:ask", _ask())


def _ask(**fields: Any) -> dict[str, Any]:
    return {"worker_id": "w", "request_id": f"crowd-{next(_requests)}", **fields}


def _measured(server: Server, trials: int) -> Speed:
    """Two workers ask and tell, so many trials, but not for longer than some seconds."""
    left = itertools.count()
    end = time.monotonic() + LONGEST_SECONDS
    done: list[int] = []

    def work() -> None:
        connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
        with contextlib.closing(connection):
            while next(left) < trials and time.monotonic() < end:
                for trial in _call(connection, "trials:ask", _ask())["trials"]:
                    told = {"attempt": 1, "state": "COMPLETE", "values": [0.5]}
                    _call(connection, f"trials/{trial['number']}:tell", told)
                    done.append(trial["number"])

    began, worked = time.monotonic(), _processor_seconds(server.pid)
    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds, worked = time.monotonic() - began, _processor_seconds(server.pid) - worked
    return Speed(len(done) / seconds, worked / max(len(done), 1))


def _call(connection: http.client.HTTPConnection, path: str, body: Any) -> Any:
    connection.request("POST", f"/v1/studies/busy/{path}", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    read = json.loads(answer.read())
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status} {read}")
    return read


def _processor_seconds(pid: int) -> float:
    """By its own clock: /proc counts in hundredths, which are a good part of what few trials take."""
    return time.clock_gettime((~pid << 3) | 2)  # what clock_getcpuclockid(3) gives


@contextlib.contextmanager
def _crowd(place: Place, server: Server, kind: str, study: str, count: int) -> Iterator[dict[str, Any]]:
    """Callers that wait; afterwards what they have seen stands in what is yielded."""
    seen: dict[str, Any] = {}
    process = subprocess.Popen(
        [sys.executable, str(_PROGRAM), str(server.port), kind, study, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    place.at_end(process.kill)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(2.0)  # they are connected by now, and have looked once
    yield seen
    process.stdin.write("\n")
    process.stdin.flush()
    seen.update(json.loads(process.stdout.readline()))
    process.wait(30)


def _until_given(server: Server, count: int) -> None:
    deadline = time.monotonic() + GIVEN_WITHIN_SECONDS
    while server.patiently("GET", "/v1/studies/paused")["counts"]["RUNNING"] < count and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(0.5)  # the answers are on their way


# -- draws that take long ---------------------------------------------------------------------------------

# Nearly as long as is admitted: Optuna's sampler on the product of all parameters.
LONG_DRAWS = {
    "name": "long",
    "directions": ["minimize"],
    "search_space": {f"p{number}": {"type": "float", "low": 0.0, "high": 1.0} for number in range(24)},
    "sampler": {"name": "tpe", "seed": 1, "params": {"n_ei_candidates": 10_000, "group": True, "n_startup_trials": 0}},
}
PAST_TRIALS = 300
# Sent and answered while a draw is under way. Without a draw it would be a hundred in its time, on a busy machine too,
# where both take longer; one that has to wait for the draw has its answer after it, and all but the first few do.
LEAST_HEARTBEATS_BESIDE_A_DRAW = 10


def draws_long(place: Place, size: int) -> Outcome:
    """`size` draws of seconds each, while a worker of another study sends one heartbeat after the other."""
    server = place.server(place.sqlite())
    server.patiently("POST", "/v1/studies", {"name": "busy", "search_space": SPACE, "sampler": {"name": "random"}})
    server.patiently("POST", "/v1/studies/busy/trials:ask", _ask())
    server.patiently("POST", "/v1/studies", LONG_DRAWS)
    past = [
        {
            "params": {f"p{n}": (number * (n + 1) % 97) / 97 for n in range(24)},
            "state": "COMPLETE",
            "values": [number % 7],
        }
        for number in range(PAST_TRIALS)
    ]
    server.patiently("POST", "/v1/studies/long/trials:import", {"trials": past})
    server.patiently("POST", "/v1/studies/long/trials:ask", _ask())  # what draws has been started
    over, beats = threading.Event(), list[Span]()
    heart = threading.Thread(target=_beat, args=(server, over, beats))
    heart.start()
    draws = []
    for _ in range(size):
        began = time.monotonic()
        server.patiently("POST", "/v1/studies/long/trials:ask", _ask())
        draws.append(Span(began, time.monotonic()))
    over.set()
    heart.join()
    fewest = min(sum(draw.holds(beat) for beat in beats) for draw in draws)
    outcome = Outcome(count=size, acknowledged=len(beats) + size)
    lengths = [draw.seconds for draw in draws]
    outcome.measured = (
        f"draws of {min(lengths):.1f} to {max(lengths):.1f} s, no heartbeat answered for "
        f"{max(beat.seconds for beat in beats):.2f} s, at least {fewest} answered beside each"
    )
    if fewest < LEAST_HEARTBEATS_BESIDE_A_DRAW:
        outcome.violations.append(f"a draw holds up nobody: {outcome.measured}")
    return outcome


class Span(NamedTuple):
    """From when a call was sent to when its answer was there."""

    began: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    def holds(self, other: Span) -> bool:
        return self.began < other.began and other.ended < self.ended


def _beat(server: Server, over: threading.Event, beats: list[Span]) -> None:
    while not over.is_set():
        began = time.monotonic()
        server.patiently("POST", "/v1/studies/busy/trials/0:heartbeat", {"attempt": 1})
        beats.append(Span(began, time.monotonic()))
        time.sleep(0.02)
