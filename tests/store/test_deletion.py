"""A deleted study is gone at once, for everybody; its rows go in small transactions, whichever server makes them."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from hpo_service.domain.errors import NotFound
from hpo_service.domain.study import StudySpec
from hpo_service.operations import asking, clearing_away, known_workers, studies, trials
from hpo_service.operations.calls import Ask, Enqueue, Import, Release, Reports, Tell
from hpo_service.operations.service import Service
from hpo_service.store import totals
from hpo_service.store.deletion import Deletion
from hpo_service.tuning.storage import RecordStorage
from tests import worker_calls

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
TABLES = ("hpo_studies", "hpo_rounds", "hpo_trials", "hpo_attempts", "hpo_reports", "hpo_answers", "hpo_tests")
_numbers = itertools.count()


def request_id() -> str:
    return f"r{next(_numbers)}"


@pytest.fixture
def opened(database_url: str) -> Iterator[Service]:
    service = Service(database_url)
    yield service
    service.close()


async def create(service: Service, name: str, **fields: Any) -> None:
    spec = {"name": name, "search_space": SPACE, "sampler": {"name": "random", "seed": 1}, **fields}
    await studies.create(service, StudySpec.model_validate(spec))


async def filled(service: Service, name: str) -> None:
    """A study with rows in every table but that of the tests."""
    await create(service, name, objective={"kind": "mine"})
    imported = [
        {
            "params": {"x": 0.5},
            "state": "COMPLETE",
            "values": [0.1],
            "reports": [{"step": s, "value": s} for s in range(9)],
        }
        for _ in range(60)
    ]
    await trials.import_finished(service, name, Import.model_validate({"request_id": request_id(), "trials": imported}))
    await trials.enqueue(
        service, name, Enqueue.model_validate({"request_id": request_id(), "trials": [{"params": {}}]})
    )
    for ask in (worker_calls.ask_study(service, name, asked()), asking.ask_any(service, asked(), only=[name])):
        (given,) = (await ask)["trials"]
        report = Reports.model_validate({"attempt": 1, "reports": [{"step": 1, "value": 1, "metrics": {"a": 1}}]})
        await worker_calls.report(service, name, given["number"], report)
    await worker_calls.release(service, name, given["number"], Release(attempt=1))
    (given,) = (await worker_calls.ask_study(service, name, asked()))["trials"]
    await worker_calls.tell(service, name, given["number"], Tell(attempt=2, state="COMPLETE", values=[0.5]))


def asked(request: str | None = None) -> Ask:
    return Ask(worker_id="w", request_id=request or request_id())


def rows(service: Service) -> dict[str, int]:
    def count(record: Any) -> dict[str, int]:
        return {table: record._db.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar() for table in TABLES}

    return service.database.read(count)


def views(service: Service) -> list[list[Any]]:
    def look(record: Any) -> list[list[Any]]:
        names = ("study_name FROM studies", "study_id FROM study_directions", "number FROM trials")
        return [list(record._db.execute(sa.text(f"SELECT {name}")).scalars()) for name in names]

    return service.database.read(look)


@pytest.mark.slow
def test_a_deleted_study_is_gone_at_once_for_everybody_and_its_rows_later(opened: Service) -> None:
    async def delete() -> None:
        await create(opened, "other")
        before = rows(opened)
        await filled(opened, "mine")
        full = rows(opened)
        assert all(full[table] > before[table] for table in TABLES if table != "hpo_tests"), full
        await studies.delete(opened, "mine", force=True)

        assert rows(opened) == full  # all still there, and nobody sees any of it
        with pytest.raises(NotFound):
            await studies.read(opened, "mine")
        page, _ = await studies.page(opened, None, 0, 10)
        assert [study["name"] for study in json.loads(page)] == ["other"]
        found, _ = await known_workers.page(opened, "", 10)
        assert [(worker["worker_id"], worker["trials"]) for worker in found] == [("w", 0)]
        by_state, _ = opened.database.read(totals.counts_by_state)
        assert sum(by_state.values()) == 0
        assert views(opened)[0] == ["other"]
        assert len(views(opened)[1]) == 1
        assert views(opened)[2] == []
        storage = RecordStorage(opened.database)
        assert [study.study_name for study in storage.get_all_studies()] == ["other"]

        await clearing_away.clear_all(opened)
        assert rows(opened) == before

    asyncio.run(delete())


@pytest.mark.slow
def test_the_name_is_free_at_once_and_the_new_study_keeps_its_own(opened: Service) -> None:
    async def again() -> None:
        await filled(opened, "mine")
        await studies.delete(opened, "mine", force=True)
        await filled(opened, "mine")
        kept = json.loads((await studies.read(opened, "mine"))[0])
        await clearing_away.clear_all(opened)
        assert json.loads((await studies.read(opened, "mine"))[0]) == kept
        assert rows(opened)["hpo_trials"] == sum(kept["counts"].values())

    asyncio.run(again())


def test_a_request_of_any_study_that_was_answered_by_a_deleted_one_is_a_new_one(opened: Service) -> None:
    async def again() -> None:
        await create(opened, "mine", objective={"kind": "mine"})
        first = await asking.ask_any(opened, asked("once"))
        assert await asking.ask_any(opened, asked("once")) == first
        await studies.delete(opened, "mine", force=True)
        assert await asking.ask_any(opened, asked("once")) == {"trials": []}
        await create(opened, "mine", objective={"kind": "mine", "other": True})
        second = await asking.ask_any(opened, asked("once"))
        assert second["trials"][0]["objective"] == {"kind": "mine", "other": True}
        assert await asking.ask_any(opened, asked("once")) == second
        await clearing_away.clear_all(opened)
        assert await asking.ask_any(opened, asked("once")) == second

    asyncio.run(again())


@pytest.mark.slow
def test_what_one_server_leaves_the_next_one_takes_away(database_url: str) -> None:
    async def half(service: Service) -> None:
        await filled(service, "mine")
        await studies.delete(service, "mine", force=True)
        before = rows(service)["hpo_reports"]
        await service.write(lambda record: clearing_away._step(40, record))
        assert 0 < rows(service)["hpo_reports"] < before

    for work in (half, clearing_away.clear_all):
        service = Service(database_url)
        try:
            asyncio.run(work(service))
            left = rows(service)
        finally:
            service.close()
    assert set(left.values()) == {0}


@pytest.mark.slow
def test_a_transaction_takes_away_no_more_rows_than_it_shall(opened: Service) -> None:
    async def steps() -> list[int]:
        await filled(opened, "mine")
        await studies.delete(opened, "mine", force=True)
        taken = []
        before = sum(rows(opened).values())
        nearly = False
        while not nearly:
            nearly = (await opened.write(lambda record: clearing_away._step(40, record))).is_nearly_gone
            left = sum(rows(opened).values())
            taken.append(before - left)
            before = left
        return taken

    # reports by their number; with the last of them go their trials, and the attempts of these
    assert max(asyncio.run(steps())) <= 40 + 2 * 40 // 4


@pytest.mark.slow
def test_two_servers_take_several_studies_away_without_being_in_each_others_way(postgres_url: str) -> None:
    one, other = Service(postgres_url), Service(postgres_url)

    async def both() -> None:
        for name in ("a", "b", "c"):
            await filled(one, name)
            await studies.delete(other if name == "b" else one, name, force=True)
        while not all(n == 0 for n in rows(one).values()):
            await asyncio.gather(clearing_away.clear_all(one), clearing_away.clear_all(other))

    try:
        asyncio.run(asyncio.wait_for(both(), 60))
        assert not one.database.read(lambda record: Deletion(record).is_due())
    finally:
        one.close()
        other.close()
