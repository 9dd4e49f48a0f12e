"""A finished trial costs its server less than 1 KiB of memory, whichever way it came; what was answered is not kept."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import tracemalloc
from collections.abc import Awaitable
from typing import Any

import pytest

from hpo_service.domain.study import StudySpec
from hpo_service.operations import studies, trials
from hpo_service.operations.calls import Ask, Import, Reports, Tell
from hpo_service.operations.service import Service
from hpo_service.store import study_cache
from tests import worker_calls

SPACE = {
    "learning_rate": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
    "weight_decay": {"type": "float", "low": 1e-8, "high": 1e-4, "log": True},
}
REPORTS = 10
KIB = 1024
_requests = itertools.count()


def request_id() -> str:
    return f"request-{next(_requests)}"


async def study(service: Service, sampler: str) -> None:
    spec = {
        "name": "mine",
        "search_space": SPACE,
        "sampler": {"name": sampler, "seed": 1},
        "pruner": {"name": "median"},
    }
    await studies.create(service, StudySpec.model_validate(spec))


def finished(number: int) -> dict[str, Any]:
    params = {
        "learning_rate": 10 ** (-6 + 4 * (number * 0.618 % 1)),
        "weight_decay": 10 ** (-8 + 4 * (number * 0.37 % 1)),
    }
    reports = [{"step": step, "value": number + step / 100} for step in range(REPORTS)]
    return {"params": params, "state": "COMPLETE", "values": [float(number)], "reports": reports}


async def imported(service: Service, first: int, count: int) -> dict[str, Any]:
    body = {"request_id": request_id(), "trials": [finished(number) for number in range(first, first + count)]}
    await trials.import_finished(service, "mine", Import.model_validate(body))
    return body


async def searched(service: Service, count: int) -> None:
    for _ in range(count):
        ask = Ask(worker_id="w", request_id=request_id())
        (trial,) = (await worker_calls.ask_study(service, "mine", ask))["trials"]
        number = trial["number"]
        for step in range(REPORTS):
            report = {"attempt": 1, "reports": [{"step": step, "value": number + step / 100}]}
            await worker_calls.report(service, "mine", number, Reports.model_validate(report))
        await worker_calls.tell(service, "mine", number, Tell(attempt=1, state="COMPLETE", values=[float(number)]))


async def bytes_kept(before: Awaitable[None], work: Awaitable[None]) -> int:
    """How much more is held after `work` than before it."""
    tracemalloc.start()
    try:
        await before
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        await work
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - held
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_an_imported_trial_with_ten_reports_takes_less_than_a_kib(service):
    async def some(first: int, imports: int) -> None:
        for start in range(first, first + 400 * imports, 400):
            await imported(service, start, 400)
        await searched(service, 1)

    async def kept() -> int:
        await study(service, "tpe")
        return await bytes_kept(some(0, 1), some(400, 4))

    assert asyncio.run(kept()) / 1_600 < KIB


@pytest.mark.slow
def test_a_trial_that_was_asked_for_reported_and_told_takes_less_than_a_kib(service, monkeypatch):
    monkeypatch.setattr(study_cache, "JUST_FINISHED", 16)  # so many are kept whole

    async def kept() -> int:
        await study(service, "random")
        return await bytes_kept(searched(service, 40), searched(service, 200))

    assert asyncio.run(kept()) / 200 < KIB


@pytest.mark.slow
def test_a_repeated_import_is_answered_as_the_first_time_and_adds_nothing(service):
    async def both() -> tuple[Any, Any, Any]:
        await study(service, "random")
        body = Import.model_validate({"request_id": "once", "trials": [finished(0), finished(1)]})
        first = await trials.import_finished(service, "mine", body)
        await imported(service, 2, 1)
        again = await trials.import_finished(service, "mine", body)
        shown = json.loads((await studies.read(service, "mine"))[0])
        return first, again, shown["counts"]["COMPLETE"]

    first, again, complete = asyncio.run(both())
    assert again == first
    assert complete == 3


@pytest.mark.slow
def test_a_repeated_ask_is_answered_as_the_first_time(service):
    async def both() -> tuple[Any, Any]:
        await study(service, "random")
        ask = Ask(worker_id="w", request_id="once")
        first = await worker_calls.ask_study(service, "mine", ask)
        await searched(service, 2)
        return first, await worker_calls.ask_study(service, "mine", ask)

    first, again = asyncio.run(both())
    assert again == first
