"""A drill that locks the database and takes the places of a server away: each 503 must be found in its log."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import sqlite3
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from drills.loaded_study import STUDY, Outcome, Place
from drills.nursery import Nursery
from drills.served import Server

CALLERS = 4
PLACES = 24  # more than callers, so that only those who come on top are refused
NEWCOMERS = 12
LOG_SECONDS = 20.0  # for a line to be there, on a loaded machine
_numbers = itertools.count()


@dataclass
class _Seen:
    """By request id: what was answered 503."""

    refused: set[str] = field(default_factory=set)
    calls: int = 0


def failures_logged(place: Place, size: int) -> Outcome:
    """Somebody else holds SQLite's write lock for `size` seconds, under load; then all places are taken."""
    place.nursery = Nursery(HPO_CONNECTIONS=str(PLACES))
    place.at_end(place.nursery.close)
    server = place.server(place.sqlite())
    server.patiently("POST", "/v1/studies", STUDY)
    seen = _Seen()
    _lock_out(place, server, seen, size)
    at_the_lock = len(seen.refused)
    _take_all_places(server, seen)
    lines, withheld = _log_of(server, seen)
    found = {line["request_id"] for line in lines if line.get("status") == 503}
    missing = seen.refused - found
    violations = []
    if not seen.refused or at_the_lock == len(seen.refused):
        violations.append("the drill: nothing was refused for want of places")
    if len(missing) > withheld:
        violations.append(
            f"each 503 is logged: {len(missing)} of {len(seen.refused)} are not there, and it tells of {withheld} more"
        )
    events = [line["event"] for line in lines]
    violations += [
        f"an outage is logged once: {event!r} is there {events.count(event)} times"
        for event in ("somebody else holds the database's write lock", "the database's write lock is free again")
        if events.count(event) != 1
    ]
    measured = f"{len(seen.refused & found) + min(withheld, len(missing))} of {len(seen.refused)} 503s in the log"
    outage = sum("write lock" in event for event in events)
    return Outcome(size, seen.calls, 0, violations, [], f"{measured}, {outage} lines of the outage")


def _lock_out(place: Place, server: Server, seen: _Seen, seconds: int) -> None:
    end = threading.Event()
    callers = [threading.Thread(target=_call, args=(server, seen, end)) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    other = sqlite3.connect(place.sqlite_file(), isolation_level=None, timeout=30)
    other.execute("BEGIN IMMEDIATE")
    time.sleep(seconds)
    other.execute("ROLLBACK")
    other.close()
    time.sleep(1.0)
    end.set()
    for caller in callers:
        caller.join()


def _call(server: Server, seen: _Seen, end: threading.Event) -> None:
    while not end.is_set():
        body = {"worker_id": "w", "request_id": f"ask-{next(_numbers)}"}
        status, request_id = _answer(server, "POST", "/v1/studies/s/trials:ask", body)
        seen.calls += status == 200
        if status == 503:
            seen.refused.add(request_id)
        time.sleep(0.01)


def _answer(server: Server, method: str, path: str, body: Any = None) -> tuple[int, str]:
    """The status, and the request's id: the server's, or for a server that gives none the caller's own."""
    ours = f"drill-{next(_numbers)}"
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    try:
        sent = None if body is None else json.dumps(body)
        connection.request(method, path, sent, {**server.headers(), "X-Request-Id": ours})
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("X-Request-Id") or ours
    finally:
        connection.close()


def _take_all_places(server: Server, seen: _Seen) -> None:
    """Workers' connections keep their places; those who come then are refused."""
    holding = []
    try:
        for _ in range(PLACES):
            connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
            body, headers = '{"attempt": 1}', {"Content-Type": "application/json"}
            connection.request("POST", "/v1/studies/s/trials/0:heartbeat", body, headers)
            if connection.getresponse().read() and connection.sock is not None:
                holding.append(connection)
        for _ in range(NEWCOMERS):
            request_id = _refusal(server)
            if request_id is not None:
                seen.refused.add(request_id)
    finally:
        for connection in holding:
            connection.close()


def _refusal(server: Server) -> str | None:
    """A newcomer who says nothing, and what it is told at once."""
    with socket.create_connection((server.host, server.port), timeout=5) as newcomer:
        try:
            read = newcomer.recv(65536).decode("latin-1")
        except TimeoutError:
            return None
    if not read.startswith("HTTP/1.1 503"):
        return None
    names = (line.split(": ", 1) for line in read.split("\r\n\r\n")[0].split("\r\n")[1:])
    return {name.lower(): value for name, value in names}.get("x-request-id", f"unnamed-{next(_numbers)}")


def _log_of(server: Server, seen: _Seen) -> tuple[list[dict[str, Any]], int]:
    """The lines, when all that is to come should have come, and how many the log says were not written."""
    deadline = time.monotonic() + (3.0 if server.sabotage else LOG_SECONDS)
    while True:
        lines = [json.loads(line) for line in server.errors.read_text().splitlines() if line.startswith("{")]
        withheld = sum(line["lines"] for line in lines if line["event"].startswith("more lines"))
        known = {line.get("request_id") for line in lines}
        if len(seen.refused - known) <= withheld or time.monotonic() > deadline:
            return lines, withheld
        time.sleep(0.2)
