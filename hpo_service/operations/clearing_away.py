"""Deletes the rows of deleted studies in the background, in transactions of a few milliseconds."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial

from hpo_service.logged_state import LoggedState, log_failures
from hpo_service.operations.service import Service
from hpo_service.store.deletion import ANSWERS_AT_ONCE, Deletion
from hpo_service.store.record import Record
from hpo_service.store.transaction import Transaction

PERIOD_SECONDS = 5.0  # nobody waits for it
# After a transaction that took less, the next one deletes more rows; after one that took more, fewer.
SHORT_SECONDS, LONG_SECONDS = 0.006, 0.015
FEWEST, MOST = 100, 4000  # rows of a transaction


@dataclass(frozen=True)
class Step:
    """What one transaction has done. study_id: None when there was nothing, or another server is at it."""

    study_id: int | None
    is_nearly_gone: bool
    seconds: float


async def clear_away(service: Service) -> None:
    """Run until cancelled. What a server leaves undone, the next one finds."""
    clearing = LoggedState("what deleted studies have left cannot be cleared away", "it is cleared away again")
    while True:
        await asyncio.sleep(PERIOD_SECONDS)
        await log_failures(clear_all(service), clearing)


async def clear_all(service: Service) -> None:
    if not await asyncio.to_thread(service.database.read, lambda record: Deletion(record).is_due()):
        return
    rows = FEWEST
    while (step := await service.write(partial(_step, rows))).study_id is not None:
        if step.is_nearly_gone:
            await _end(service, step.study_id)
        if step.seconds < SHORT_SECONDS:
            rows = min(2 * rows, MOST)
        elif step.seconds > LONG_SECONDS:
            rows = max(rows // 2, FEWEST)
        await asyncio.sleep(step.seconds)  # others come in between


def _step(rows: int, transaction: Transaction) -> Step:
    began = time.perf_counter()
    deletion = Deletion(transaction.sql())
    study_id = deletion.next_study()
    nearly = study_id is not None and deletion.delete_some(study_id, rows)
    return Step(study_id, nearly, time.perf_counter() - began)


async def _end(service: Service, study_id: int) -> None:
    """Delete the last rows. Answers of asks that named no study are searched in a reader, since no index has them."""
    after: str | None = ""
    while after is not None:
        found = await asyncio.to_thread(service.database.read, partial(_answers_of_any, study_id=study_id, after=after))
        if found:
            await service.write(partial(_delete_answers, found))
        after = found[-1] if len(found) == ANSWERS_AT_ONCE else None
    await service.write(lambda transaction: Deletion(transaction.sql()).end(study_id))


def _answers_of_any(record: Record, study_id: int, after: str) -> list[str]:
    return Deletion(record).answers_of_any(study_id, after)


def _delete_answers(request_ids: list[str], transaction: Transaction) -> None:
    Deletion(transaction.sql()).delete_answers(request_ids)
