"""Drills of many servers that start at once on an empty database."""

from __future__ import annotations

from drills.loaded_study import STUDY, Outcome, Place
from drills.served import DidNotStart, Server

SERVERS = 8


def servers_started_at_once(place: Place, size: int) -> Outcome:
    """Eight servers at once on an empty PostgreSQL database: all come up, and all know the study that one creates."""
    outcome = Outcome(size)
    for _ in range(size):
        url = place.postgresql()
        servers = [place.unstarted(url) for _ in range(SERVERS)]
        _begin(servers)
        serving = _serving(servers)
        outcome.violations += [f"all come up: {error}" for error in serving.values() if error is not None]
        up = [server for server in servers if serving[server] is None]
        if up:
            up[0].patiently("POST", "/v1/studies", STUDY)
        for server in up:
            if server.call("GET", "/readyz")[0] != 200 or server.call("GET", "/v1/studies/s")[0] != 200:
                outcome.violations.append("all serve: one is not ready, or does not know the study")
        _end(servers)
    return outcome


def second_servers_refused(place: Place, size: int) -> Outcome:
    """Eight servers at once on an empty SQLite file: one comes up, seven exit with 1 and say why in one line."""
    outcome = Outcome(size)
    for index in range(size):
        servers = [place.unstarted(f"sqlite:///{place.folder}/{index}.db") for _ in range(SERVERS)]
        _begin(servers)
        serving = _serving(servers)
        errors = [error for error in serving.values() if error is not None]
        if len(errors) != SERVERS - 1:
            outcome.violations.append(f"one comes up: {SERVERS - len(errors)} did")
        for error in errors:
            if not error.startswith("exit code 1: ") or "another server" not in error or "Traceback" in error:
                outcome.violations.append(f"the others say why: {error[-300:]}")
        up = [server for server in servers if serving[server] is None]
        if up and up[0].call("GET", "/readyz")[0] != 200:
            outcome.violations.append("it serves: it is not ready")
        _end(servers)
    return outcome


def _begin(servers: list[Server]) -> None:
    for server in servers:
        server.begin()


def _serving(servers: list[Server]) -> dict[Server, str | None]:
    """For each server None once it serves, or why it does not."""
    found: dict[Server, str | None] = {}
    for server in servers:
        try:
            server.wait_until_serving()
            found[server] = None
        except DidNotStart as error:
            found[server] = str(error)
    return found


def _end(servers: list[Server]) -> None:
    for server in servers:
        server.kill()
