"""Two servers write the same in one moment: the store says so in its own words, and who looks again finds it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hpo_service.domain.study import StudySpec
from hpo_service.operations.service import Service
from hpo_service.store.database import Database
from hpo_service.store.engine import WrittenMeanwhile
from hpo_service.store.transaction import Transaction
from tests.patience import PATIENCE_SECONDS

SPEC = StudySpec.model_validate({"name": "same", "search_space": {"x": {"type": "float", "low": 0.0, "high": 1.0}}})


def add(record: Transaction) -> int | None:
    return record.sql().add_study(SPEC, "a test").id


def test_a_row_that_is_there_is_an_error_of_the_stores(database_url: str) -> None:
    database = Database(database_url)
    try:
        database.write(add).result(timeout=PATIENCE_SECONDS)
        with pytest.raises(WrittenMeanwhile, match="somebody else has written the same"):
            database.write(add).result(timeout=PATIENCE_SECONDS)
    finally:
        database.close()


@pytest.mark.parametrize("conflicts", [1, 2])
def test_the_work_is_run_once_more_and_finds_it(database_url: str, conflicts: int) -> None:
    seen: list[str] = []

    def work(record: Transaction) -> str:
        """What stands there is not seen at first, as on another server."""
        seen.append("a look")
        if len(seen) <= conflicts:
            add(record)
        return record.study("same").name

    async def written() -> Any:
        service = Service(database_url)
        try:
            await service.write(add)
            return await service.write(work)
        finally:
            service.close()

    if conflicts == 1:
        assert asyncio.run(written()) == "same"
    else:
        with pytest.raises(WrittenMeanwhile):
            asyncio.run(written())
    assert len(seen) == 2
