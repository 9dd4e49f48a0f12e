"""The reaper: once a second, takes back what has lapsed, in every study."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from hpo_service.domain.errors import HpoError
from hpo_service.operations.service import Service

PERIOD_SECONDS = 1.0
SAVE_SEEN_EVERY = 5

log = structlog.get_logger()


async def reap(service: Service) -> None:
    """Run until cancelled. A database that is away is tried again at the next tick."""
    tick = 0
    while True:
        await asyncio.sleep(PERIOD_SECONDS)
        tick += 1
        await carefully(reap_once(service))
        if tick % SAVE_SEEN_EVERY == 0:
            await carefully(service.save_seen_workers())


async def reap_once(service: Service) -> None:
    """One study that cannot be looked after does not keep the others waiting."""
    overdue = await asyncio.to_thread(service.database.read, lambda record: record.overdue())
    for name in overdue:
        await carefully(service.look_after([name]))


async def carefully(work: Coroutine[Any, Any, None]) -> None:
    """A fault is for the log; what is to be done is tried again at the next tick."""
    try:
        await work
    except HpoError as error:
        log.warning("the reaper could not look", error=error.detail)
    except Exception:
        log.exception("the reaper met a fault")
