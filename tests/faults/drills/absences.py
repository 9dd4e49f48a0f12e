"""Drills in which the server is away, and not the workers: nobody who keeps to his heartbeats loses a trial by it.

Each holder is a thread with one trial, which it keeps by a heartbeat a third of a lease, over and over while nobody
answers. One lapse ends a trial (`limits.attempts` is 1), so that each lease that ends early is seen. Beside them trials
are given to workers that are never heard of again: their leases end all the same.
"""

from __future__ import annotations

import http.client
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from drills.loaded_study import STUDY, Outcome, Place
from drills.served import Server

LEASE_SECONDS = 3.0
AWAY_SECONDS = LEASE_SECONDS + 1.5
HOLDERS = 10  # of each server
# What is left of a lease, once more a lease at most for being heard, and the reaper's five seconds; a loaded machine.
ENDS_WITHIN_SECONDS = 2 * LEASE_SECONDS + 5.0 + 5.0


class Holder(threading.Thread):
    """A worker that holds one trial and does nothing but keep it."""

    def __init__(self, server: Server, name: str) -> None:
        super().__init__(daemon=True)
        self.server, self.worker = server, name
        self.number = _given(server, "kept", name)
        self.refusals: list[str] = []
        self.renewed = 0
        self._leave = threading.Event()

    def run(self) -> None:
        while not self._leave.wait(LEASE_SECONDS / 3):
            while not self._is_heard() and not self._leave.wait(0.1):
                pass

    def _is_heard(self) -> bool:
        path = f"/v1/studies/kept/trials/{self.number}:heartbeat"
        try:
            status, answer = self.server.call("POST", path, {"attempt": 1}, timeout=LEASE_SECONDS)
        except (OSError, http.client.HTTPException):
            return False
        if status == 200:
            self.renewed += 1
        elif status != 503:
            self.refusals.append(f"{status} {answer.get('code')}")
        return status != 503

    def leave(self) -> None:
        self._leave.set()
        self.join()


def server_killed_for_long(place: Place, size: int) -> Outcome:
    """kill -9 the server on SQLite, and start it again after more than a lease."""
    server = place.server(place.sqlite())

    def go(_index: int) -> None:
        server.kill()
        time.sleep(AWAY_SECONDS)
        server.start()

    return _away(place, [server], go, size)


def server_stopped_for_long(place: Place, size: int) -> Outcome:
    """SIGSTOP the server on SQLite for more than a lease, as a machine that is suspended."""
    server = place.server(place.sqlite())
    return _away(place, [server], lambda _index: _stopped(server), size)


def postgres_away_for_long(place: Place, size: int) -> Outcome:
    """PostgreSQL is down for more than a lease under two servers."""
    url = place.postgresql()

    def go(_index: int) -> None:
        place.postgres.stop("immediate")
        time.sleep(AWAY_SECONDS)
        place.postgres.start()

    return _away(place, [place.server(url), place.server(url)], go, size)


def one_of_two_away_for_long(place: Place, size: int) -> Outcome:
    """Two servers on one PostgreSQL, by turns one is killed or stopped for more than a lease; a worker knows one."""
    url = place.postgresql()
    servers = [place.server(url), place.server(url)]

    def go(index: int) -> None:
        server = servers[index // 2 % 2]
        if index % 2:
            server.kill()
            time.sleep(AWAY_SECONDS)
            server.start()
        else:
            _stopped(server)

    return _away(place, servers, go, size)


def _stopped(server: Server) -> None:
    server.signal(signal.SIGSTOP)
    time.sleep(AWAY_SECONDS)
    server.signal(signal.SIGCONT)


def _away(place: Place, servers: Sequence[Server], go: Callable[[int], None], size: int) -> Outcome:
    """Let healthy and dead workers hold trials through `size` absences; count: of these."""
    one = servers[0]
    for name in ("kept", "left"):
        spec = {**STUDY, "name": name, "lease_seconds": LEASE_SECONDS, "limits": {"attempts": 1}}
        one.patiently("POST", "/v1/studies", spec)
    holders = [Holder(server, f"w{server.port}-{index}") for server in servers for index in range(HOLDERS)]
    for holder in holders:
        holder.start()
    outcome, longest = Outcome(size), 0.0
    try:
        for index in range(size):
            place.pause(LEASE_SECONDS / 2, LEASE_SECONDS)
            left = [_given(server, "left", f"dead-{index}") for server in servers]
            go(index)
            longest = max(longest, _ended(one, left, outcome))
        time.sleep(LEASE_SECONDS)
    finally:
        for holder in holders:
            holder.leave()
    lost = [holder for holder in holders if _is_lost(one, holder.number)]
    outcome.violations += [
        f"a healthy worker keeps its trial: trial {holder.number} ended; its worker heard {holder.refusals}"
        for holder in lost
    ]
    outcome.acknowledged = sum(holder.renewed for holder in holders)
    outcome.measured = (
        f"{len(lost)} of {len(holders)} trials lost; dead workers' leases ended {longest:.1f} s after the absence"
    )
    return outcome


def _given(server: Server, study: str, worker: str) -> int:
    ask = {"worker_id": worker, "request_id": f"{study}-{worker}"}
    (trial,) = server.patiently("POST", f"/v1/studies/{study}/trials:ask", ask)["trials"]
    number: int = trial["number"]
    return number


def _is_lost(server: Server, number: int) -> bool:
    trial: Any = server.patiently("GET", f"/v1/studies/kept/trials/{number}")
    return bool(trial["state"] != "RUNNING")


def _ended(server: Server, numbers: Sequence[int], outcome: Outcome) -> float:
    """Wait until the leases of the dead have ended; return the seconds that this took."""
    began = time.monotonic()
    while time.monotonic() - began < ENDS_WITHIN_SECONDS:
        trials = [server.patiently("GET", f"/v1/studies/left/trials/{number}") for number in numbers]
        if all(trial["state"] == "FAIL" for trial in trials):
            return time.monotonic() - began
        time.sleep(0.1)
    outcome.violations.append(f"leases run out: {ENDS_WITHIN_SECONDS:.0f} s later a dead worker still has its trial")
    return ENDS_WITHIN_SECONDS
