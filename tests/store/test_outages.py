"""What servers find out about their own absence and that of others, and what leases make of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa

from hpo_service.domain.outage import Outage
from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import TrialState
from hpo_service.operations import studies
from hpo_service.operations.calls import Ask, Heartbeat
from hpo_service.operations.reaper import begin, reap_once
from hpo_service.operations.service import Service
from hpo_service.store.outages import (
    BEAT_SECONDS,
    GONE_SECONDS,
    MOST_KEPT,
    TAKES_OVER_SECONDS,
    Beat,
    KnownOutages,
    Uptime,
)
from hpo_service.store.tables import outages, servers
from tests import worker_calls

DAY = 86_400.0

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
LEASE = 60
_requests = itertools.count()


class Elapsed:
    """A clock that never jumps, to be turned."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Time:
    """Both clocks."""

    def __init__(self, clock: Any) -> None:
        self.clock, self.elapsed = clock, Elapsed()

    def passes(self, seconds: float) -> None:
        self.clock.turn(seconds)
        self.elapsed.now += seconds

    def passes_for(self, seconds: float, *serving: Service) -> None:
        """While these servers beat."""
        for _ in range(round(seconds / BEAT_SECONDS)):
            self.passes(BEAT_SECONDS)
            for server in serving:
                asyncio.run(server.beat())


@pytest.fixture
def time(clock: Any) -> Time:
    return Time(clock)


@pytest.fixture
def serve(database_url: str, time: Time) -> Iterator[Callable[[], Service]]:
    """Start a server on the database, which begins to beat."""
    with ExitStack() as open_:

        def start() -> Service:
            server = Service(database_url, time.clock)
            open_.callback(server.close)
            server.database.uptime._elapsed = time.elapsed
            asyncio.run(begin(server))
            return server

        yield start


def with_a_trial(server: Service) -> Service:
    spec = {"name": "mine", "search_space": SPACE, "lease_seconds": LEASE, "limits": {"attempts": 1}}
    asyncio.run(studies.create(server, StudySpec.model_validate(spec)))
    ask = Ask(worker_id="w", request_id=f"r{next(_requests)}")
    assert asyncio.run(worker_calls.ask_study(server, "mine", ask))["trials"]
    return server


def state(server: Service) -> str:
    """After the reaper has looked, and as a reader sees it."""
    asyncio.run(reap_once(server))
    trial = asyncio.run(server.read("mine", lambda record, study: record.trials.numbered(study, 0)))
    return str(trial.state)


def recorded(server: Service) -> list[Outage]:
    found = server.database.read(lambda record: record._db.execute(sa.select(outages.c.began, outages.c.ended)).all())
    return [Outage(*row) for row in sorted(found)]


@pytest.mark.slow
def test_a_lease_ends_in_time_under_a_server_that_serves(serve, time):
    server = with_a_trial(serve())
    time.passes_for(LEASE - 0.5, server)
    assert state(server) == TrialState.RUNNING
    time.passes_for(0.5, server)
    assert state(server) == TrialState.FAIL


@pytest.mark.slow
def test_a_restart_charges_no_lease_with_the_time_before_it(serve, time):
    server = with_a_trial(serve())
    time.passes_for(50, server)
    server.close()
    time.passes(5 * LEASE)
    server = serve()
    assert state(server) == TrialState.RUNNING
    time.passes_for(LEASE - 1, server)
    assert state(server) == TrialState.RUNNING
    assert asyncio.run(worker_calls.heartbeat(server, "mine", 0, Heartbeat(attempt=1)))["should_stop"] is False


@pytest.mark.slow
def test_after_a_restart_the_lease_of_a_dead_worker_ends_within_its_duration(serve, time):
    server = with_a_trial(serve())
    server.close()
    time.passes(5 * LEASE)
    server = serve()
    time.passes_for(LEASE + 0.5, server)
    assert state(server) == TrialState.FAIL


@pytest.mark.slow
def test_under_a_server_that_starts_again_and_again_the_lease_of_a_dead_worker_ends(serve, time):
    server = with_a_trial(serve())
    for _ in range(2 * LEASE // 10):
        time.passes_for(10, server)
        server.close()
        time.passes(3)
        server = serve()
    time.passes_for(10, server)
    assert state(server) == TrialState.FAIL


@pytest.mark.slow
def test_a_server_that_was_stopped_charges_no_lease_with_that_time_even_before_its_next_beat(serve, time):
    server = with_a_trial(serve())
    time.passes_for(50, server)
    time.passes(2 * LEASE)
    assert state(server) == TrialState.RUNNING
    asyncio.run(server.beat())
    time.passes_for(LEASE - 1, server)
    assert state(server) == TrialState.RUNNING
    time.passes_for(LEASE, server)
    assert state(server) == TrialState.FAIL


def test_a_clock_that_jumps_is_no_outage(serve, time):
    server = with_a_trial(serve())
    before = recorded(server)
    time.passes_for(5, server)
    time.clock.turn(86_400)
    time.passes_for(1, server)
    assert recorded(server) == before
    assert state(server) == TrialState.FAIL


def test_the_first_start_after_an_upgrade_charges_no_lease_with_what_is_not_known(serve, time):
    server = with_a_trial(serve())
    asyncio.run(server.write(lambda record: (record.sql()._db.execute(sa.delete(servers)), None)[1]))
    asyncio.run(server.write(lambda record: (record.sql()._db.execute(sa.delete(outages)), None)[1]))
    server.close()
    time.passes(10 * LEASE)
    assert state(serve()) == TrialState.RUNNING


def test_while_nothing_is_held_sqlite_writes_no_beat(serve, time):
    server = serve()
    if server.database.url.get_backend_name() != "sqlite":
        pytest.skip("other servers look at it")
    served = sa.select(servers.c.served_until)
    before = server.database.read(lambda record: record._db.execute(served).scalar_one())
    time.passes_for(5, server)
    assert server.database.read(lambda record: record._db.execute(served).scalar_one()) == before
    with_a_trial(server)
    time.passes_for(5, server)
    assert server.database.read(lambda record: record._db.execute(served).scalar_one()) == time.clock()


def test_few_outages_are_kept(serve, time):
    server = serve()
    rows = [{"server_id": "x", "began": float(n), "ended": n + 0.5} for n in range(MOST_KEPT + 50)]
    rows.append(
        {"server_id": "x", "began": time.clock() + 1e6, "ended": time.clock() + 2e6}
    )  # by a clock put back since
    asyncio.run(server.write(lambda record: (record.sql()._db.execute(sa.insert(outages), rows), None)[1]))
    time.passes(10)
    asyncio.run(server.beat())
    kept = recorded(server)
    assert len(kept) <= MOST_KEPT + 1
    assert kept[-1].ended == time.clock()


@pytest.fixture
def pair(serve: Any, database_url: str) -> tuple[Service, Service]:
    if database_url.startswith("sqlite"):
        pytest.skip("SQLite has one server")
    one, other = with_a_trial(serve()), serve()
    return one, other


@pytest.mark.slow
def test_no_lease_ends_while_another_server_gives_no_sign_but_for_half_a_minute_only(pair, time):
    one, other = pair
    time.passes_for(50, one, other)
    time.passes_for(2 * LEASE / 6, one)  # the lease is over, and the other has been silent for 20 s
    assert state(one) == TrialState.RUNNING
    time.passes_for(GONE_SECONDS + LEASE, one)
    assert state(one) == TrialState.FAIL
    assert asyncio.run(other.write(lambda record: None)) is None  # it is there, and what it says comes too late


@pytest.mark.slow
def test_a_server_that_comes_back_lengthens_the_leases_of_its_workers(pair, time):
    one, other = pair
    time.passes_for(50, one, other)
    time.passes_for(20, one)
    time.passes_for(1, one, other)
    assert state(one) == TrialState.RUNNING
    time.passes_for(LEASE - 3, one, other)
    assert state(one) == TrialState.RUNNING
    time.passes_for(5, one, other)
    assert state(one) == TrialState.FAIL


@pytest.mark.slow
def test_a_server_that_starts_takes_the_place_of_one_that_was_killed(pair, serve, time):
    one, other = pair
    time.passes_for(50, one, other)
    began = time.clock()
    time.passes_for(4, one)
    third = serve()
    assert recorded(third)[-1] == Outage(began, time.clock())
    time.passes_for(TAKES_OVER_SECONDS + 1, one, third)
    live = one.database.read(lambda record: set(record._db.execute(sa.select(servers.c.server_id)).scalars()))
    assert live == {one.database.uptime.server_id, third.database.uptime.server_id}


def test_an_outage_is_no_longer_than_the_time_that_has_passed_though_the_clock_has_jumped() -> None:
    elapsed = [0.0]
    uptime = Uptime(lambda: elapsed[0])
    uptime.begin()
    uptime.beaten(Beat(1000.0, 0.0))
    elapsed[0] = 2.0
    assert uptime.outage(1002.0) == Outage(1000.5, 1002.0)
    assert uptime.outage(1002.0 + DAY) == Outage(1000.5 + DAY, 1002.0 + DAY)


def test_a_server_that_has_just_started_takes_the_place_of_one_that_was_silent_before_and_of_no_other() -> None:
    elapsed = [0.0]
    uptime = Uptime(lambda: elapsed[0])
    uptime.begin()
    elapsed[0] = 3.0
    assert uptime.takes_the_place_of(1000.0 - 4.5, 1003.0)
    assert not uptime.takes_the_place_of(1000.5, 1003.0)  # it was stopped after this one had started
    elapsed[0] = TAKES_OVER_SECONDS + 1
    assert not uptime.takes_the_place_of(1000.0 - 4.5, 1006.0)


@pytest.mark.parametrize(
    ("others", "seconds", "is_carried"),
    [
        (0, BEAT_SECONDS / 2, True),
        (0, BEAT_SECONDS / 4, False),  # none is due yet
        (1, BEAT_SECONDS / 2, False),  # it may be one whose place this server takes
    ],
)
def test_a_server_that_has_just_started_beside_others_looks_after_them(
    others: int, seconds: float, is_carried: bool
) -> None:
    elapsed = [0.0]
    uptime = Uptime(lambda: elapsed[0])
    uptime.begin()
    uptime.beaten(Beat(1000.0, 0.0, others))
    elapsed[0] = seconds
    assert uptime.beat_to_carry(1000.0 + seconds) == (Beat(1000.0 + seconds, seconds) if is_carried else None)


def test_an_outage_recorded_before_the_clock_was_put_back_lengthens_no_lease() -> None:
    known = KnownOutages([Outage(0.0, 3 * DAY), Outage(DAY - 10, DAY - 5)], (), 0.0)
    assert known.until(DAY, None) == (Outage(DAY - 10, DAY - 5),)
