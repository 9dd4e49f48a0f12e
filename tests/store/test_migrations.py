"""A record goes to the version before and back without losing anything that the API shows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command

from hpo_service.domain.study import StudySpec
from hpo_service.operations import studies
from hpo_service.operations.calls import Ask, Release, Tell
from hpo_service.operations.service import Service
from hpo_service.reading.resources import attempt_resource, study_resource
from hpo_service.store import schema
from hpo_service.store.engine import database_url as url_of
from hpo_service.store.engine import writing_engine
from hpo_service.store.record import Record
from tests import worker_calls

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}


async def search(service: Service) -> None:
    """Trial 0 told by its second attempt, 1 told by its first, 2 released and 3 running; a round ends after two."""
    spec = {
        "name": "mine",
        "search_space": SPACE,
        "sampler": {"name": "random", "seed": 1},
        "narrowing": {"rounds": 3, "trials_per_round": 2, "keep": 0.5},
    }
    await studies.create(service, StudySpec.model_validate(spec))
    numbers = iter(range(100))

    async def ask() -> tuple[int, int]:
        (trial,) = (await worker_calls.ask_study(service, "mine", Ask(worker_id="w", request_id=str(next(numbers)))))[
            "trials"
        ]
        return trial["number"], trial["attempt"]

    await ask()
    await worker_calls.release(service, "mine", 0, Release(attempt=1))
    for _ in range(2):
        number, attempt = await ask()
        await worker_calls.tell(
            service, "mine", number, Tell(attempt=attempt, state="COMPLETE", values=[float(number)])
        )
    await ask()
    await ask()
    await worker_calls.release(service, "mine", 2, Release(attempt=1))


async def shown(service: Service) -> Any:
    def look(record: Record) -> Any:
        study = record.study("mine")
        found = [record.trials.numbered(study, number) for number in range(4)]
        return study_resource(record, study), [
            [attempt_resource(attempt) for attempt in record.reports.attempts(trial)] for trial in found
        ]

    return service.database.read(look)


def opened(url: str, *works: Any) -> list[Any]:
    service = Service(url)
    try:
        return [asyncio.run(work(service)) for work in works]
    finally:
        service.close()


@pytest.mark.slow
def test_version_4_finds_its_rows_and_version_5_what_they_said(database_url: str) -> None:
    _, before = opened(database_url, search, shown)
    attempts = [[(each["attempt"], each["end"]) for each in of_trial] for of_trial in before[1]]
    assert attempts == [[(1, "released"), (2, "told")], [(1, "told")], [(1, "released")], [(1, None)]]

    counts = move(database_url, "0004")
    assert counts == (2, 5)
    move(database_url, "head")
    (after,) = opened(database_url, shown)
    assert after == before


def move(url: str, revision: str) -> Any:
    """To another version of the schema; return what it says of the last round's trials, and how many attempts."""
    engine = writing_engine(url_of(url))
    try:
        with engine.connect() as connection:
            config = schema._config()
            config.attributes["connection"] = connection
            (command.downgrade if revision != "head" else command.upgrade)(config, revision)
            connection.commit()
            last = connection.execute(sa.text("SELECT trials FROM hpo_rounds ORDER BY round DESC")).scalar()
            return last, connection.execute(sa.text("SELECT count(*) FROM hpo_attempts")).scalar()
    finally:
        engine.dispose()


@pytest.mark.slow
def test_version_9_finds_in_the_specs_whom_to_ask(database_url: str) -> None:
    async def create(service: Service) -> None:
        asked: dict[str, dict[str, Any]] = {
            "own": {},
            "kind": {"objective": {"kind": "k"}},
            "both": {"objective": {"kind": "k"}, "limits": {"trials": 3, "running": 2}},
        }
        for name, fields in asked.items():
            await studies.create(service, StudySpec.model_validate({"name": name, "search_space": SPACE, **fields}))

    async def columns(service: Service) -> Any:
        def look(record: Record) -> Any:
            query = sa.text("SELECT name, kind, limit_trials, limit_running FROM hpo_studies ORDER BY id")
            return [tuple(row) for row in record._db.execute(query)]

        return service.database.read(look)

    _, before = opened(database_url, create, columns)
    assert before == [("own", None, None, None), ("kind", "k", None, None), ("both", "k", 3, 2)]
    move(database_url, "0005")
    move(database_url, "head")
    assert opened(database_url, columns) == [before]
