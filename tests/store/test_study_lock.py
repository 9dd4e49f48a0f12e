"""Two servers on one PostgreSQL: what one knows of a study is true when it counts, and cheap to bring up to date."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest

from hpo_service.domain.study import StudySpec
from hpo_service.operations import studies
from hpo_service.operations.calls import Ask, Reports, Tell
from hpo_service.operations.service import Service
from hpo_service.store.study_lock import CLOCK_SECONDS, LATE_SECONDS, DatabaseClock
from tests import worker_calls

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
_requests = itertools.count()


@pytest.fixture
def pair(postgres_url: str) -> Iterator[tuple[Service, Service]]:
    one, other = Service(postgres_url), Service(postgres_url)
    yield one, other
    one.close()
    other.close()


def create(service: Service, sampler: str = "random", pruner: str = "none") -> None:
    spec = {"name": "mine", "search_space": SPACE, "sampler": {"name": sampler, "seed": 1}, "pruner": {"name": pruner}}
    asyncio.run(studies.create(service, StudySpec.model_validate(spec)))


def ask(service: Service, request_id: str | None = None) -> int:
    body = Ask(worker_id="w", request_id=request_id or f"r{next(_requests)}")
    (trial,) = asyncio.run(worker_calls.ask_study(service, "mine", body))["trials"]
    number: int = trial["number"]
    return number


def tell(service: Service, number: int) -> Any:
    return asyncio.run(worker_calls.tell(service, "mine", number, Tell(attempt=1, state="COMPLETE", values=[0.5])))


def cached_study(service: Service) -> Any:
    memory = service.database._cache
    return memory.studies[memory.ids["mine"]]


def test_what_one_server_has_written_the_other_goes_on_from(pair):
    one, other = pair
    create(one)
    assert [ask(one), ask(one)] == [0, 1]
    assert [ask(other), ask(other)] == [2, 3]
    assert ask(one) == 4
    assert tell(other, 1)["state"] == "COMPLETE"


def test_an_ask_that_the_other_server_has_answered_gets_that_answer(pair):
    one, other = pair
    create(one)
    ask(one)
    ask(other)
    ask(one)
    number = ask(other, "the same")
    assert [ask(one, "the same"), ask(other, "the same")] == [number, number]


@pytest.mark.slow
def test_servers_that_take_turns_bring_each_other_up_to_date_without_reading_all_again(pair):
    one, other = pair
    create(one)
    for server in (one, other, one, other):
        ask(server)
    known = [cached_study(server) for server in pair]
    for turn in range(6):
        mine, others = pair[turn % 2], pair[1 - turn % 2]
        number = ask(mine)
        assert number == 4 + turn
        tell(others, number)
        assert cached_study(mine).trials[number].state == "RUNNING"
    assert [cached_study(server) for server in pair] == known
    assert all(cached_study(server) is before for server, before in zip(pair, known, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["none", "median"])
def test_a_search_of_two_servers_draws_what_one_would(pair, postgres_url, pruner):
    """Each tuner learns what the other server was told."""

    def search(servers: tuple[Service, ...]) -> list[Any]:
        for turn in range(24):
            server, next_server = servers[turn % len(servers)], servers[(turn + 1) % len(servers)]
            number = ask(server)
            report = {"attempt": 1, "reports": [{"step": 0, "value": (number * 0.37) % 1}]}
            asyncio.run(worker_calls.report(next_server, "mine", number, Reports.model_validate(report)))
            tell(server, number)
        assert servers[0].database.read(lambda record: record.study("mine").counts.complete) == 24
        return servers[0].database.read(
            lambda record: [trial.params for trial in record.trials.complete(record.study("mine"))]
        )

    create(pair[0], "tpe", pruner)
    together = search(pair)
    asyncio.run(studies.delete(pair[0], "mine", force=True))
    create(pair[0], "tpe", pruner)
    assert together == search(pair[:1])


@pytest.fixture
def monotonic(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_databases_clock_is_reckoned_on_and_does_not_go_back_by_what_readings_are_late(monotonic):
    clock = DatabaseClock()
    assert clock.estimated_now() is None
    assert clock.take_reading(1000.0) == 1000.0
    monotonic[0] += 2
    assert clock.estimated_now() == 1002.0
    assert clock.take_reading(1001.99) == 1002.0
    monotonic[0] += 0.001
    assert clock.estimated_now() == 1002.0
    monotonic[0] += 1
    assert clock.estimated_now() == pytest.approx(1002.991)


def test_a_clock_that_was_put_back_is_followed_and_an_old_reading_is_none(monotonic):
    clock = DatabaseClock()
    clock.take_reading(1000.0)
    back = 1000.0 - 2 * LATE_SECONDS
    assert clock.take_reading(back) == back
    assert clock.estimated_now() == back
    monotonic[0] += CLOCK_SECONDS
    assert clock.estimated_now() is None
