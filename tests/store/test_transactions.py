"""What a call changes is its own until it is kept, and a refused one leaves nothing behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hpo_service.domain.errors import Conflict, NotFound
from hpo_service.domain.study import Round, StudySpec
from hpo_service.domain.trial import TrialState
from hpo_service.operations import studies
from hpo_service.operations.calls import Ask, Reports
from hpo_service.operations.service import Service
from hpo_service.store.engine import WrittenMeanwhile
from hpo_service.store.transaction import Transaction
from hpo_service.store.trial_reports import checked_report
from tests import worker_calls

SPEC = {
    "name": "mine",
    "search_space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
    "sampler": {"name": "random", "seed": 1},
    "pruner": {"name": "median"},
}


@pytest.fixture
def service(database_url: str) -> Any:
    opened = Service(database_url)
    yield opened
    opened.close()


async def begun(service: Service) -> None:
    """A study with one trial that runs and has a report."""
    await studies.create(service, StudySpec.model_validate(SPEC))
    await worker_calls.ask_study(service, "mine", Ask(worker_id="w", request_id="first"))
    await worker_calls.report(
        service, "mine", 0, Reports.model_validate({"attempt": 1, "reports": [{"step": 0, "value": 0.25}]})
    )


def seen(record: Transaction) -> Any:
    study = record.study("mine")
    trial = record.trial(study, 0)
    curve = [(point.step, point.value) for point in record.reports(study, trial)]
    return study, record.rounds(study), trial, curve


def change_all(service: Service, record: Transaction) -> None:
    """What calls can change: reports, a trial's state, a new trial, a round, the study."""
    work = service.work_on(record, record.study("mine"))
    trial = record.trial(work.study, 0)
    record.put_reports(work.study, trial, {1: checked_report(1, 0.75, None)})
    work.change(trial, trial.lifecycle.release(1, None))  # type: ignore[arg-type]
    assert record.trial(work.study, 0).state is TrialState.WAITING
    assert work.give(2, "w")
    work.next_round()
    work.update_and_save()
    assert seen(record)[0].next_number == 2
    assert [number for number, _ in seen(record)[3]] == []  # another attempt begins without reports


@pytest.mark.parametrize("by_sql", [False, True])
def test_a_refused_call_leaves_everything_as_it_was_for_the_next_one_of_its_batch(service, by_sql):
    def refused(record: Transaction) -> None:
        change_all(service, record)
        if by_sql:
            record.sql()
        raise Conflict("refused")

    async def together() -> list[Any]:
        await begun(service)
        before = await service.write(seen, ["mine"])
        calls = [service.write(refused, ["mine"]), service.write(seen, ["mine"])]
        return [before, *await asyncio.gather(*calls, return_exceptions=True), await service.write(seen, ["mine"])]

    before, error, after, later = asyncio.run(together())
    assert isinstance(error, Conflict)
    assert after == before
    assert later == before


def test_a_study_whose_creation_fails_was_never_there(service):
    def fails(record: Transaction) -> None:
        study = record.sql().add_study(StudySpec.model_validate(SPEC), "{}")
        record.add_round(study, Round(0, study.spec.search_space, revision=1))
        record.save_study(study)
        assert record.study("mine") == study
        raise Conflict("refused")

    async def twice() -> None:
        for _ in range(2):
            with pytest.raises(Conflict):
                await service.write(fails)
            with pytest.raises(NotFound):
                await service.write(lambda record: record.study("mine"))

    asyncio.run(twice())


def test_rows_that_the_database_refuses_cost_their_own_call_only_though_another_one_had_them_written(service):
    """Who has asked for SQL, and so made the rows of those before go to the database, has not made them."""

    def answered(record: Transaction) -> None:
        record.remember_answer(record.study("mine"), "ask", "the same", {})

    def reads(record: Transaction) -> Any:
        return record.sql().find_study("mine").name  # type: ignore[union-attr]

    async def together() -> list[Any]:
        await begun(service)
        await service.write(answered, ["mine"])
        return await asyncio.gather(
            *(service.write(work, ["mine"]) for work in (answered, reads)), return_exceptions=True
        )

    refused, read = asyncio.run(together())
    assert isinstance(refused, WrittenMeanwhile)
    assert read == "mine"
