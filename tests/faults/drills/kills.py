"""Drills that kill, stop and repeat: processes die, sleep and stutter, and nobody loses anything."""

from __future__ import annotations

import signal
import time

from drills.loaded_study import LoadedStudy, Outcome, Place


def servers_killed(place: Place, size: int) -> Outcome:
    """kill -9 the server on SQLite in the middle of the load, and start it again."""
    server = place.server(place.sqlite())
    with LoadedStudy(place, server) as study:
        for _ in range(size):
            study.work_on()
            server.kill()
            server.start()
        return study.drained(size)


def workers_killed(place: Place, size: int) -> Outcome:
    """kill -9 workers, and let others take their place; some trials are never heard of again by anybody."""
    server = place.server(place.sqlite())
    with LoadedStudy(place, server, lease_seconds=1, attempts=3, forgets_every=23) as study:
        for _ in range(size):
            study.work_on(4)
            study.crew.kill(place.random.randrange(study.crew.size))
        return study.drained(size)


def calls_repeated(place: Place, size: int) -> Outcome:
    """Every call is sent twice; count: the trials."""
    server = place.server(place.sqlite())
    with LoadedStudy(place, server, twice=True) as study:
        study.wait_for_finished(size)
        return study.drained(size)


def workers_stopped(place: Place, size: int) -> Outcome:
    """SIGSTOP workers in the middle of a trial until its lease has run out and somebody else has it, then SIGCONT."""
    server = place.server(place.sqlite())
    lease_seconds = 1
    # Trials that take longer than a lease: the next holder is still at it when the stopped one comes back.
    with LoadedStudy(place, server, lease_seconds=lease_seconds, reports=25, think_seconds=0.06) as study:
        done = 0
        while done < size:
            some = place.random.sample(range(study.crew.size), min(4, size - done))
            study.work_on(40)
            for index in some:
                study.crew.pause(index)
            time.sleep(lease_seconds + 1.0)
            for index in some:
                study.crew.go_on(index)
            done += len(some)
        return study.drained(size)


def servers_of_two_killed(place: Place, size: int) -> Outcome:
    """Two servers on one PostgreSQL, each killed by turns; the workers call either."""
    url = place.postgresql()
    servers = [place.server(url), place.server(url)]
    ports = [server.port for server in servers]
    with LoadedStudy(place, servers[0], ports=ports) as study:
        for index in range(size):
            study.work_on()
            servers[index % 2].kill()
            servers[index % 2].start()
        return study.drained(size)


def postgres_crashed(place: Place, size: int) -> Outcome:
    """`pg_ctl stop -m immediate` under two servers, which is a crash for PostgreSQL, and a start with recovery."""
    url = place.postgresql()
    servers = [place.server(url), place.server(url)]
    with LoadedStudy(place, servers[0], ports=[server.port for server in servers]) as study:
        for _ in range(size):
            study.work_on(50)
            place.postgres.stop("immediate")
            place.postgres.start()
        return study.drained(size)


def servers_asked_to_end(place: Place, size: int) -> Outcome:
    """SIGTERM the server under load: it ends within 10 s, with exit code 0, and all that it did was answered for."""
    server = place.server(place.sqlite())
    violations = []
    with LoadedStudy(place, server) as study:
        for _ in range(size):
            study.work_on()
            server.signal(signal.SIGTERM)
            code = server.wait_until_gone(10.0)
            if code != 0:
                violations.append(f"ends when asked to: exit code {code} after SIGTERM")
                server.kill()
            server.start()
        outcome = study.drained(size)
    outcome.violations += violations
    return outcome
