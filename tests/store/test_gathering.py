"""Callers that come again at once are written together; those that do not are not waited for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hpo_service.domain.study import StudySpec
from hpo_service.operations import studies
from hpo_service.operations.service import Service
from hpo_service.store import batch_runner, write_scheduler

CALLERS, CALLS = 4, 200


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of the groups that have run."""
    ran: list[int] = []
    run_group = batch_runner.BatchRunner.run

    def noted(self: Any, calls: Any, **how: Any) -> Any:
        ran.append(len(calls))
        return run_group(self, calls, **how)

    monkeypatch.setattr(batch_runner.BatchRunner, "run", noted)
    return ran


async def called(service: Service) -> None:
    """One short call, without a task that waits for it."""
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    service.begin(lambda record: record.study("mine"), ["mine"], lambda *_: answer.set_result(None), runs_in_loop=True)
    await answer


async def create(service: Service) -> None:
    spec = {"name": "mine", "search_space": {"x": {"type": "float", "low": 0, "high": 1}}}
    await studies.create(service, StudySpec.model_validate(spec))


async def two_halves(service: Service) -> None:
    """Callers of which each second one begins, and comes again, a few turns of the event loop after the others."""
    await create(service)

    async def caller(turns: int) -> None:
        for _ in range(CALLS):
            for _ in range(turns):
                await asyncio.sleep(0)
            await called(service)

    await asyncio.gather(*(caller(4 * (place % 2)) for place in range(CALLERS)))


@pytest.fixture
def service_with_commits_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    opened = []

    def open_it(seconds: float) -> Service:
        taken = property(lambda _: seconds, lambda *_: None)
        monkeypatch.setattr(batch_runner.BatchRunner, "commit_seconds", taken, raising=False)
        opened.append(Service(f"sqlite:///{tmp_path / 'hpo.db'}"))
        return opened[-1]

    yield open_it
    for service in opened:
        service.close()


@pytest.mark.slow
def test_callers_that_come_again_sooner_than_two_commits_take_are_written_together(
    service_with_commits_of, sizes, monkeypatch
):
    monkeypatch.setattr(write_scheduler, "GATHERING_SECONDS", 5.0)
    asyncio.run(two_halves(service_with_commits_of(0.009)))
    assert len(sizes) < 1.1 * CALLS
    assert sizes.count(CALLERS) > 0.9 * CALLS


def test_callers_that_take_longer_than_two_commits_are_not_waited_for(service_with_commits_of, sizes):
    asyncio.run(two_halves(service_with_commits_of(1e-6)))
    assert len(sizes) > 1.5 * CALLS


def test_a_caller_that_does_not_come_again_holds_up_the_others_for_a_moment_only(
    service_with_commits_of, sizes, monkeypatch
):
    monkeypatch.setattr(write_scheduler, "GATHERING_SECONDS", 0.05)

    async def one_leaves(service: Service) -> None:
        await create(service)
        await called(service)
        await asyncio.gather(*(called(service) for _ in range(CALLERS)))
        await asyncio.wait_for(asyncio.gather(*(called(service) for _ in range(CALLERS - 1))), 5)

    asyncio.run(one_leaves(service_with_commits_of(0.009)))
    assert sizes[-2:] == [CALLERS, CALLERS - 1]
