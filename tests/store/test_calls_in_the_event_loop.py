"""Short calls run in the event loop, but never wait there: for a lock, or for a slow disk."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import threading
import time
from functools import partial
from typing import Any

import pytest

from hpo_service.domain.errors import NotFound
from hpo_service.domain.study import StudySpec
from hpo_service.operations import asking, studies
from hpo_service.operations.calls import Ask
from hpo_service.operations.service import Service
from hpo_service.store import batch_runner, engine, inline_lane, pending_rows
from tests.patience import PATIENCE_SECONDS

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
_requests = itertools.count()


async def study(service: Service, **fields: Any) -> None:
    spec = {"name": "mine", "search_space": SPACE, "sampler": {"name": "random", "seed": 1}, **fields}
    await studies.create(service, StudySpec.model_validate(spec))
    await asked(service, runs_in_loop=False)  # the writer has the study in memory now


async def asked(service: Service, *, runs_in_loop: bool = True, name: str = "mine") -> list[int]:
    """Ask, and return the numbers of the trials."""
    ask = Ask(worker_id="w", request_id=f"r{next(_requests)}")
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(look: Any, error: BaseException | None) -> None:
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result([trial["number"] for trial in look.answer["trials"]])

    service.begin(
        partial(asking.ask_in_transaction, service, name, ask),
        [name],
        done,
        runs_in_loop=runs_in_loop,
        request_id=ask.request_id,
    )
    found: list[int] = await answer
    return found


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads in which groups have run."""
    ran: list[str] = []
    run_group = batch_runner.BatchRunner.run

    def noted(self: Any, calls: Any, **how: Any) -> Any:
        ran.append(threading.current_thread().name)
        return run_group(self, calls, **how)

    monkeypatch.setattr(batch_runner.BatchRunner, "run", noted)
    return ran


@pytest.fixture
def busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commits take ten times as long, and are quick all the same."""
    monkeypatch.setattr(inline_lane, "QUICK_COMMIT_SECONDS", 10 * inline_lane.QUICK_COMMIT_SECONDS)


async def until_light(service: Service, threads: list[str]) -> None:
    """Ask until the last commits were quick, on the average."""
    await asked(service)
    until = time.monotonic() + PATIENCE_SECONDS
    while threads[-1] != "MainThread" and time.monotonic() < until:
        await asked(service)


def test_short_calls_run_where_they_are_and_others_in_the_writers_thread(service, threads, busy_machine):
    async def both() -> None:
        await study(service)
        await until_light(service, threads)
        assert service.can_run_in_loop("mine")
        assert not service.can_run_in_loop("another")
        threads.clear()
        (first,), (second,) = [await asked(service), await asked(service, runs_in_loop=False)]
        assert second == first + 1

    asyncio.run(both())
    assert threads == ["MainThread", "writer"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "pruner"), [("tpe", "none"), ("tpe", "median"), ("cmaes", "none"), ("nsgaii", "none")]
)
def test_calls_are_light_whatever_the_sampler_since_what_takes_long_is_drawn_elsewhere(service, sampler, pruner):
    async def after_an_ask() -> bool:
        await study(service, sampler={"name": sampler, "seed": 1}, pruner={"name": pruner})
        return service.can_run_in_loop("mine")

    assert asyncio.run(after_an_ask())


@pytest.mark.slow
def test_while_another_holds_the_files_lock_the_event_loop_goes_on(service, tmp_path, threads):
    async def locked_for_a_while() -> tuple[int, list[int]]:
        await study(service)
        other = sqlite3.connect(tmp_path / "hpo.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        answer = asyncio.create_task(asked(service))
        turns = 0
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            await asyncio.sleep(0.001)
            turns += 1
        assert not answer.done()
        other.execute("ROLLBACK")
        other.close()
        return turns, await answer

    turns, numbers = asyncio.run(locked_for_a_while())
    assert numbers == [1]
    assert turns > 50
    assert threads[-1] == "writer"


@pytest.mark.slow
def test_a_lock_that_is_held_for_too_long_is_unavailable(service, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_runner, "LOCKED_PATIENCE_SECONDS", 0.2)

    async def locked() -> None:
        await study(service)
        other = sqlite3.connect(tmp_path / "hpo.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Exception, match="the database cannot take the call now: database is locked"):
            await asked(service)
        other.execute("ROLLBACK")
        other.close()
        assert await asked(service) == [1]

    asyncio.run(locked())


@pytest.mark.slow
def test_commits_on_a_slow_disk_are_waited_for_in_the_thread_until_it_is_quick_again(
    service, threads, busy_machine, monkeypatch
):
    commit = engine.commit

    def slow(connection: Any) -> None:
        time.sleep(6 * inline_lane.QUICK_COMMIT_SECONDS)
        commit(connection)

    async def slow_and_quick_again() -> None:
        await study(service)
        await until_light(service, threads)
        monkeypatch.setattr(pending_rows, "commit", slow)
        threads.clear()
        for _ in range(3):
            await asked(service)
        assert threads == ["MainThread", "writer", "writer"]
        monkeypatch.setattr(pending_rows, "commit", commit)
        await until_light(service, threads)
        assert threads[-1] == "MainThread"

    asyncio.run(slow_and_quick_again())


@pytest.mark.slow
def test_a_light_call_that_is_refused_takes_nothing_of_the_others_along(service):
    async def together() -> list[Any]:
        await study(service)
        asks = (asked(service), asked(service, name="nowhere"), asked(service))
        return list(await asyncio.gather(*asks, return_exceptions=True))

    first, refused, second = asyncio.run(together())
    assert (first, second) == ([1], [2])
    assert isinstance(refused, NotFound)


def test_calls_that_come_while_the_writer_is_at_work_are_written_together_after_it(service, threads):
    async def many() -> list[Any]:
        await study(service)
        threads.clear()
        return await asyncio.gather(*(asked(service, runs_in_loop=index != 0) for index in range(40)))

    assert sorted(number for (number,) in asyncio.run(many())) == list(range(1, 41))
    assert len(threads) <= 3


def test_an_answer_that_fails_keeps_no_other_from_its_own(service):
    async def answers() -> list[int]:
        await study(service)
        given: list[int] = []

        def done(number: int, _result: Any, _error: Any) -> None:
            if number == 1:
                raise RuntimeError("a fault of this caller's")
            given.append(number)

        for number in range(4):
            service.begin(lambda record: None, ["mine"], partial(done, number), runs_in_loop=True)
        await asked(service)
        assert service.calls_waiting == 0
        return given

    assert asyncio.run(answers()) == [0, 2, 3]


def test_a_fault_of_the_event_loops_lane_is_the_answer_of_its_calls_and_the_next_ones_go_on(service, monkeypatch):
    async def after_the_fault() -> list[int]:
        await study(service)
        lane = service.database._scheduler._loop_lane
        take, faults = lane.take, [RuntimeError("a fault in the lane")]

        def fails_once(calls: Any) -> int:
            if faults:
                raise faults.pop()
            taken: int = take(calls)
            return taken

        monkeypatch.setattr(lane, "take", fails_once)
        with pytest.raises(RuntimeError, match="a fault in the lane"):
            await asked(service)
        return await asked(service)

    assert asyncio.run(after_the_fault()) == [1]


def test_a_fault_while_an_answer_is_made_is_the_callers_answer(service):
    async def answer() -> Any:
        await study(service)

        def finish(_result: Any) -> Any:
            raise RuntimeError("no answer can be made")

        return await service.write(lambda record: None, ["mine"], finish=finish)

    with pytest.raises(RuntimeError, match="no answer can be made"):
        asyncio.run(answer())
