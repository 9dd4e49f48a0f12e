"""What a call costs, in things that can be counted: statements, commits, steps of SQLite's machine, Python's calls."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from hpo_service.domain.study import StudySpec
from hpo_service.operations import studies, trials
from hpo_service.operations.calls import Ask, Import, Reports, Tell
from hpo_service.operations.service import Service
from tests import worker_calls

SPACE = {
    "learning_rate": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
    "weight_decay": {"type": "float", "low": 1e-8, "high": 1e-4, "log": True},
}
FEW, MANY = 200, 20_000
MEASURED = 20
_requests = itertools.count()
REPORTS = 3


@dataclass
class Cost:
    """Of some calls, counted on the writer's connection and in both threads that write on it."""

    statements: list[str] = field(default_factory=list)
    steps: int = 0
    python_calls: int = 0

    @property
    def commits(self) -> int:
        return self.statements.count("COMMIT")


async def counted(service: Service, work: Callable[[], Awaitable[None]]) -> Cost:
    """Run `work` one call after the other, so that no two share a commit."""
    cost = Cost()

    def step() -> int:
        cost.steps += 1
        return 0

    def called(_frame: Any, event: str, _argument: Any) -> None:
        cost.python_calls += event == "call"

    def switch(on: bool) -> Callable[[Any], None]:
        def in_the_writer(record: Any) -> None:
            connection = record._batch.connection.connection.dbapi_connection
            connection.set_trace_callback(cost.statements.append if on else None)
            connection.set_progress_handler(step if on else None, 10)
            sys.setprofile(called if on else None)

        return in_the_writer

    await service.write(switch(on=True))
    sys.setprofile(called)  # the event loop's thread, which writes what is light while the disk is quick
    await work()
    sys.setprofile(None)
    await service.write(switch(on=False))
    return cost


async def search(service: Service, name: str, count: int, reports: int) -> None:
    for _ in range(count):
        ask = Ask(worker_id="w", request_id=f"request-{next(_requests)}")
        (trial,) = (await worker_calls.ask_study(service, name, ask))["trials"]
        number = trial["number"]
        for step in range(reports):
            report = Reports.model_validate({"attempt": 1, "reports": [{"step": step, "value": number + step / 10}]})
            await worker_calls.report(service, name, number, report)
        await worker_calls.tell(service, name, number, Tell(attempt=1, state="COMPLETE", values=[float(number)]))


async def study_of(service: Service, name: str, sampler: str, pruner: str, history: int) -> None:
    spec = {
        "name": name,
        "search_space": SPACE,
        "sampler": {"name": sampler, "seed": 1},
        "pruner": {"name": pruner},
    }
    await studies.create(service, StudySpec.model_validate(spec))
    for start in range(0, history, 1000):
        some = [past(number) for number in range(start, min(start + 1000, history))]
        await trials.import_finished(service, name, Import.model_validate({"trials": some}))


def past(number: int) -> dict[str, Any]:
    spread = number * 0.618 % 1
    params = {"learning_rate": 10 ** (-6 + 4 * spread), "weight_decay": 10 ** (-8 + 4 * (number * 0.37 % 1))}
    reports = [{"step": 1, "value": spread}]
    return {"params": params, "state": "COMPLETE", "values": [spread], "reports": reports}


def test_an_ask_and_a_tell_take_a_commit_each_and_a_handful_of_statements(service):
    async def count() -> Cost:
        await study_of(service, "few", "random", "none", 10)
        await search(service, "few", 3, reports=0)
        return await counted(service, lambda: search(service, "few", MEASURED, reports=0))

    cost = asyncio.run(count())
    assert cost.commits <= 2 * MEASURED + 2
    assert len(cost.statements) <= 14 * MEASURED + 10


@pytest.mark.slow
def test_a_report_takes_a_commit_and_five_statements(service):
    async def count() -> Cost:
        await study_of(service, "few", "random", "median", 10)
        await search(service, "few", 3, reports=1)
        with_reports = await counted(service, lambda: search(service, "few", MEASURED, reports=3))
        without = await counted(service, lambda: search(service, "few", MEASURED, reports=0))
        return Cost(statements=with_reports.statements[len(without.statements) :])

    cost = asyncio.run(count())
    assert cost.commits <= 3 * MEASURED + 2
    assert len(cost.statements) <= 5 * 3 * MEASURED + 10


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "pruner"), [("random", "none"), ("tpe", "median")])
def test_twenty_thousand_trials_make_no_call_dearer(service, sampler, pruner):
    async def count(history: int) -> Cost:
        name = f"after-{history}"
        await study_of(service, name, sampler, pruner, history)
        await search(service, name, 3, REPORTS)
        return await counted(service, lambda: search(service, name, MEASURED, REPORTS))

    async def both() -> tuple[Cost, Cost]:
        return await count(FEW), await count(MANY)

    few, many = asyncio.run(both())
    assert len(many.statements) <= 1.1 * len(few.statements)
    assert many.steps <= 1.5 * few.steps
    assert many.python_calls <= 1.5 * few.python_calls
