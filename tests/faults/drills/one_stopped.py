"""A drill with two servers of which one is stopped while it holds studies: the other goes on with all the rest."""

from __future__ import annotations

import http.client
import itertools
import signal
import threading
import time
from collections.abc import Sequence

import psycopg

from drills.loaded_study import STUDY, Outcome, Place
from drills.served import Server

SHARED = 4  # studies that both servers work on
OWN = 2  # that only the one works on which goes on
# Long enough to tell it from any hiccup, and shorter than what PostgreSQL lets a transaction be idle.
STOPPED_SECONDS = 7.0
SILENT_SECONDS = 3.5  # a loaded machine may be slow; who waits for the lock is silent for as long as it is held
TRIES = 400  # to stop it while it holds something

_requests = itertools.count()


class Caller(threading.Thread):
    """Asks for a trial and tells it, in one study of one server, over and over; notes when it was answered what."""

    def __init__(self, server: Server, study: str) -> None:
        super().__init__(daemon=True)
        self.server, self.study = server, study
        self.answers: list[tuple[float, float, int]] = []  # sent, answered, status
        self._leave = threading.Event()

    def run(self) -> None:
        while not self._leave.wait(0.01):
            path = f"/v1/studies/{self.study}/trials"
            trials = self._call(f"{path}:ask", {"worker_id": self.study, "request_id": f"r{next(_requests)}"})
            for trial in trials or []:
                result = {"attempt": trial["attempt"], "state": "COMPLETE", "values": [0.5]}
                self._call(f"{path}/{trial['number']}:tell", result)

    def _call(self, path: str, body: dict[str, object]) -> list[dict[str, int]] | None:
        sent = time.monotonic()
        try:
            status, answer = self.server.call("POST", path, body, timeout=60.0)
        except (OSError, http.client.HTTPException):
            status, answer = 0, {}
        self.answers.append((sent, time.monotonic(), status))
        return answer.get("trials") if status == 200 else None

    def leave(self) -> None:
        self._leave.set()

    def longest_silence(self, since: float, until: float) -> float:
        """Seconds between one success and the next, within this time."""
        heard = [at for _, at, status in self.answers if since < at < until and status == 200]
        return max(b - a for a, b in itertools.pairwise([since, *heard, until]))

    def longest_answer(self, since: float, until: float) -> float:
        """Seconds that a call took that was sent within this time, whatever it was answered."""
        return max((answered - sent for sent, answered, _ in self.answers if since < sent < until), default=0.0)


def one_of_two_stopped(place: Place, size: int) -> Outcome:
    """SIGSTOP one of two servers while it holds a study; count: of such stops."""
    url = place.postgresql()
    one, stopped = place.server(url), place.server(url)
    shared = [f"shared-{index}" for index in range(SHARED)]
    own = [f"own-{index}" for index in range(OWN)]
    for name in (*shared, *own):
        one.patiently("POST", "/v1/studies", {**STUDY, "name": name})
    callers = [Caller(one, name) for name in (*shared, *own)]
    crowd = [Caller(stopped, name) for name in shared]
    for caller in (*callers, *crowd):
        caller.start()
    outcome, slow = Outcome(), 0.0
    silent, silent_study = 0.0, ""
    try:
        for _ in range(TRIES):
            if outcome.count == size:
                break
            place.pause(0.2, 0.6)
            stopped.signal(signal.SIGSTOP)
            since = time.monotonic()
            held = _held(url, shared)
            if held:
                time.sleep(max(0.0, since + STOPPED_SECONDS - time.monotonic()))
                # What it waited for when it was stopped was given to it since: those it holds, too.
                held |= _held(url, shared)
            until = time.monotonic()
            stopped.signal(signal.SIGCONT)
            if held:
                outcome.count += 1
                free = [caller for caller in callers if caller.study not in held]
                longest = max((caller.longest_silence(since, until), caller.study) for caller in free)
                silent, silent_study = max((silent, silent_study), longest)
                time.sleep(1.0)  # for the last answers
                slow = max(slow, *(caller.longest_answer(since, until) for caller in callers))
    finally:
        stopped.signal(signal.SIGCONT)
        for caller in (*callers, *crowd):
            caller.leave()
    if outcome.count < size:
        outcome.violations.append(f"the drill: only {outcome.count} times something was held")
    if silent > SILENT_SECONDS:
        outcome.violations.append(
            f"other studies go on: {silent_study}, that nobody held, was silent for {silent:.1f} s"
        )
    if slow > SILENT_SECONDS:
        outcome.violations.append(f"nobody waits for long: a call was answered after {slow:.1f} s")
    outcome.violations += _undocumented(callers)
    outcome.acknowledged = sum(status == 200 for caller in callers for _, _, status in caller.answers)
    outcome.measured = f"other studies silent for {silent:.1f} s at most; every call answered within {slow:.1f} s"
    return outcome


def _held(url: str, names: Sequence[str]) -> set[str]:
    """The studies that somebody holds all the time: the other server holds one for a moment only."""
    held = set(names)
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(30):
            free = connection.execute(
                "SELECT name FROM hpo_studies WHERE name = ANY(%s) FOR UPDATE SKIP LOCKED", [sorted(held)]
            )
            held -= {name for (name,) in free}
            if not held:
                break
            time.sleep(0.02)
    return held


def _undocumented(callers: Sequence[Caller]) -> list[str]:
    found = {status for caller in callers for _, _, status in caller.answers} - {200, 503}
    return [f"every answer is documented: there were {sorted(found)}"] if found else []
