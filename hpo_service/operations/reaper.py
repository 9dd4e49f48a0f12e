"""The reaper: once a second, takes back what has lapsed, in every study; beside it, the server's beats."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from hpo_service.domain.errors import HpoError
from hpo_service.operations.service import LOOKED_AFTER_AT_ONCE, Service
from hpo_service.store.outages import BEAT_SECONDS

PERIOD_SECONDS = 1.0
SAVE_SEEN_EVERY = 5

log = structlog.get_logger()


async def begin(service: Service) -> None:
    """Before the first call: what was missed while no server was there counts in no lease."""
    service.database.uptime.begin()
    await _carefully(service.beat())


async def reap(service: Service) -> None:
    """Run until cancelled. A database that is away is tried again at the next tick."""
    async with asyncio.TaskGroup() as both:
        both.create_task(_keep_beating(service))
        both.create_task(_keep_looking(service))


async def _keep_beating(service: Service) -> None:
    while True:
        await asyncio.sleep(BEAT_SECONDS)
        await _carefully(service.beat())


async def _keep_looking(service: Service) -> None:
    tick = 0
    while True:
        await asyncio.sleep(PERIOD_SECONDS)
        tick += 1
        await _carefully(reap_once(service))
        if tick % SAVE_SEEN_EVERY == 0:
            await _carefully(service.save_seen_workers())


async def reap_once(service: Service) -> None:
    """One study that cannot be looked after does not keep the others waiting."""
    overdue = await asyncio.to_thread(service.database.read, lambda record: record.overdue())
    for start in range(0, len(overdue), LOOKED_AFTER_AT_ONCE):
        some = overdue[start : start + LOOKED_AFTER_AT_ONCE]
        await asyncio.gather(*(_carefully(service.look_after([name])) for name in some))


async def _carefully(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except HpoError as error:
        log.warning("the reaper could not look", error=error.detail)
    except Exception:
        log.exception("the reaper met a fault")
