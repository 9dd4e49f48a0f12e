"""A study that somebody else holds for long: its calls are refused in time, and the others go on."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from hpo_service.domain.errors import StudyHeld
from hpo_service.domain.study import StudySpec
from hpo_service.operations import asking, studies, workers
from hpo_service.operations.calls import Ask, Batch, Heartbeat, Tell
from hpo_service.operations.reaper import reap_once
from hpo_service.operations.service import Service
from hpo_service.store.held_studies import CHECK_SECONDS, MOST_WAITING, WAITS_SECONDS, HeldStudies
from hpo_service.store.write_call import WriteCall
from tests import worker_calls
from tests.patience import PATIENCE_SECONDS

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
_requests = itertools.count()


@pytest.fixture
def service(postgres_url: str) -> Iterator[Service]:
    opened = Service(postgres_url)
    yield opened
    opened.close()


@pytest.fixture
def other(postgres_url: str, service: Service) -> Iterator[psycopg.Connection[Any]]:
    """Somebody else on the same database."""
    with psycopg.connect(postgres_url) as connection:
        yield connection


async def create(service: Service, name: str, **fields: Any) -> None:
    spec = {"name": name, "search_space": SPACE, "sampler": {"name": "random", "seed": 1}, **fields}
    await studies.create(service, StudySpec.model_validate(spec))
    await ask(service, name)


async def ask(service: Service, name: str, worker_id: str = "w") -> Any:
    return await worker_calls.ask_study(service, name, Ask(worker_id=worker_id, request_id=f"r{next(_requests)}"))


async def light_heartbeat(service: Service, name: str) -> Any:
    """As the fast path makes it: it may go ahead in the event loop."""
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(result: Any, error: BaseException | None) -> None:
        answer.set_result(result) if error is None else answer.set_exception(error)

    service.begin(
        workers.on_trial(service, "heartbeat", name, 0, Heartbeat(attempt=1)).work,
        [name],
        done,
        runs_in_loop=True,
    )
    return await answer


def hold(other: psycopg.Connection[Any], name: str) -> None:
    other.execute("SELECT FROM hpo_studies WHERE name = %s FOR UPDATE", [name])


@pytest.mark.slow
@pytest.mark.parametrize("call", [ask, light_heartbeat])
def test_calls_on_a_study_that_is_held_are_refused_in_time_and_others_are_made(service, other, call):
    async def beside() -> list[float]:
        for name in ("held", "free"):
            await create(service, name)
            await call(service, name)
        hold(other, "held")
        refused = asyncio.create_task(call(service, "held"))
        taken = []
        for _ in range(50):
            began = time.monotonic()
            await call(service, "free")
            taken.append(time.monotonic() - began)
            await asyncio.sleep(0.01)
        with pytest.raises(StudyHeld, match="the study held is held by another server"):
            await asyncio.wait_for(refused, PATIENCE_SECONDS)
        assert service.database.held_studies == {"held"}
        return taken

    taken = asyncio.run(beside())
    assert max(taken) < 15  # as long as it is held they would wait otherwise, and that has no end here
    other.rollback()


@pytest.mark.slow
def test_calls_that_wait_for_a_moment_are_made_when_the_study_is_let_go(service, other):
    async def let_go() -> Any:
        await create(service, "held")
        hold(other, "held")
        answer = asyncio.create_task(ask(service, "held"))
        while "held" not in service.database.held_studies:
            await asyncio.sleep(0.01)
        other.rollback()
        return await asyncio.wait_for(answer, PATIENCE_SECONDS)

    assert [trial["number"] for trial in asyncio.run(let_go())["trials"]] == [1]


@pytest.mark.slow
def test_who_waits_for_another_study_hears_of_it_while_one_that_is_overdue_is_held(
    service, other, postgres_url, monkeypatch
):
    heard: list[str] = []
    changed = service.asks.notify
    monkeypatch.setattr(service.asks, "notify", lambda change: (heard.append(change.study.name), changed(change)))

    async def woken() -> Any:
        await create(service, "held", limits={"running": 1}, lease_seconds=1)
        await create(service, "waited", limits={"running": 1})
        waits = Ask(worker_id="w", request_id=f"r{next(_requests)}", wait_seconds=30)
        asks = [asyncio.create_task(worker_calls.ask_study(service, name, waits)) for name in ("held", "waited")]
        while set(service.asks.studies) != {"held", "waited"}:
            await asyncio.sleep(0.01)
        hold(other, "held")
        while "held" not in service.database.held_studies:
            await asyncio.sleep(0.01)
        beside = await asyncio.to_thread(Service, postgres_url)
        await worker_calls.tell(beside, "waited", 0, Tell(attempt=1, state="COMPLETE", values=[0.5]))
        while "waited" not in heard:
            await asyncio.sleep(0.01)
        answer = await asks[1]
        other.rollback()
        asks[0].cancel()
        await asyncio.to_thread(beside.close)
        return answer

    answer = asyncio.run(asyncio.wait_for(woken(), PATIENCE_SECONDS))
    assert [trial["number"] for trial in answer["trials"]] == [1]


@pytest.mark.slow
def test_a_study_that_was_let_go_is_not_aside_any_more(service, other):
    async def refused_then_made() -> Any:
        await create(service, "held")
        hold(other, "held")
        with pytest.raises(StudyHeld):
            await ask(service, "held")
        other.rollback()
        while service.database.held_studies:
            await asyncio.sleep(0.01)
        return await ask(service, "held")

    assert asyncio.run(refused_then_made())["trials"]


@pytest.mark.slow
def test_in_a_batch_only_the_calls_on_the_study_that_is_held_are_refused(service, other):
    calls = [{"study": name, "number": 0, "call": "heartbeat", "attempt": 1} for name in ("held", "free", "held")]

    async def batch() -> list[Any]:
        for name in ("held", "free"):
            await create(service, name)
        hold(other, "held")
        return await workers.batch(service, Batch.model_validate({"calls": calls}))

    first, made, last = asyncio.run(batch())
    assert isinstance(first, StudyHeld)
    assert isinstance(last, StudyHeld)
    assert json.loads(made)["study_state"] == "ACTIVE"


@pytest.mark.slow
def test_who_asks_any_study_is_given_a_trial_of_one_that_nobody_holds(service, other):
    async def ask_any() -> Any:
        for name in ("held", "free"):
            spec = {
                "objective": {"kind": "neural_network"},
                "search_space": {"learning_rate": {**SPACE["x"], "low": 1e-3}},
            }
            await create(service, name, **spec)
        await ask(service, "free")  # the other one has fewer running, and is looked at first
        hold(other, "held")
        return await asking.ask_any(service, Ask(worker_id="w", request_id="any"))

    assert [trial["study"] for trial in asyncio.run(ask_any())["trials"]] == ["free"]


@pytest.mark.slow
def test_what_reads_all_studies_and_the_reaper_do_not_wait_for_one_that_is_held(service, other):
    async def overdue() -> list[str]:
        for name in ("held", "free"):
            await create(service, name, lease_seconds=1)
        hold(other, "held")
        await asyncio.sleep(1.2)
        with pytest.raises(StudyHeld):  # which the log is told of, when all others have been looked after
            await reap_once(service)
        return await service.read_all(lambda record: record.overdue())

    assert asyncio.run(overdue()) == ["held"]


@pytest.mark.slow
def test_a_new_worker_is_given_a_trial_though_its_row_is_held(service, other):
    other.execute("INSERT INTO hpo_workers VALUES ('new', 0, false)")  # and not committed

    async def asked() -> Any:
        await create(service, "mine")
        return await ask(service, "mine", worker_id="new")

    assert asyncio.run(asked())["trials"]


@pytest.mark.slow
def test_a_server_that_ends_refuses_what_waits(postgres_url, other):
    service = Service(postgres_url)

    async def leave() -> None:
        await create(service, "held")
        hold(other, "held")
        waiting = asyncio.create_task(ask(service, "held"))
        while "held" not in service.database.held_studies:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(service.close)
        with pytest.raises(StudyHeld):
            await asyncio.wait_for(waiting, PATIENCE_SECONDS)

    asyncio.run(leave())


@pytest.fixture
def now() -> list[float]:
    return [10.0]


@pytest.fixture
def aside(now: list[float]) -> HeldStudies:
    return HeldStudies(lambda: now[0])


A, B, BOTH = (WriteCall(print, names, print) for names in (["a"], ["b"], ["a", "b"]))


def test_it_is_looked_for_at_once_and_then_again_and_again_while_something_is_held(aside, now):
    assert aside.seconds_until_check() is None
    aside.add(["a", "b"])
    aside.park([A, B, BOTH])
    assert aside.seconds_until_check() == 0
    assert aside.take_check({"a"}) == [B]
    assert aside.seconds_until_check() == pytest.approx(CHECK_SECONDS)
    now[0] += CHECK_SECONDS
    assert aside.take_check(set()) == [A, BOTH]
    assert aside.seconds_until_check() is None


def test_a_call_waits_for_a_second_and_the_study_stays_aside(aside, now):
    aside.add(["a"])
    aside.park([A])
    now[0] += WAITS_SECONDS / 2
    aside.park([BOTH])
    assert aside.expired() == []
    now[0] += WAITS_SECONDS / 2
    assert [call for call, _ in aside.expired()] == [A]
    assert aside.concerns(A)
    assert [call for call, _ in aside.expired(all_=True)] == [BOTH]


def test_not_too_many_wait(aside):
    aside.add(["a"])
    aside.park([A] * (MOST_WAITING + 5))
    assert len(aside.expired()) == 5
