"""The reaper: once a second, takes back what has lapsed, in every study."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import structlog

from hpo_service.domain.errors import HpoError
from hpo_service.instruments import leases_expired
from hpo_service.log_format import limited
from hpo_service.operations.service import Service
from hpo_service.outages import Outage

PERIOD_SECONDS = 1.0
SAVE_SEEN_EVERY = 5
CUT_LOG_EVERY = 10

log = structlog.get_logger()


async def reap(service: Service) -> None:
    """Run until cancelled. A database that is away is tried again at the next tick."""
    looking = Outage("the reaper cannot look: leases that run out are not taken back", "the reaper looks again")
    saving = Outage("when workers were seen cannot be saved", "when workers were seen is saved again")
    cutting = Outage("the write-ahead log cannot be cut", "the write-ahead log can be cut again")
    expired = leases_expired.value()
    tick = 0
    while True:
        await asyncio.sleep(PERIOD_SECONDS)
        tick += 1
        await _carefully(reap_once(service), looking)
        expired = _tell_of_expired(expired)
        if tick % SAVE_SEEN_EVERY == 0:
            await _carefully(service.save_seen_workers(), saving)
        if tick % CUT_LOG_EVERY == 0:
            await _carefully(asyncio.to_thread(service.database.cut_log), cutting)


async def reap_once(service: Service) -> None:
    """One study that cannot be looked after does not keep the others waiting."""
    overdue = await asyncio.to_thread(service.database.read, lambda record: record.overdue())
    faults = [fault for name in overdue if (fault := await _tried(service.look_after([name]))) is not None]
    if faults:
        raise faults[0]
    service.reaped_at = time.monotonic()


async def _tried(work: Coroutine[Any, Any, None]) -> Exception | None:
    try:
        await work
    except Exception as error:
        return error
    return None


async def _carefully(work: Coroutine[Any, Any, None], outage: Outage) -> None:
    error = await _tried(work)
    if error is None:
        outage.worked()
    elif isinstance(error, HpoError):
        outage.failed(error=error.detail)
    elif limited.allows("a fault of the reaper"):
        log.error("the reaper met a fault", exc_info=error)


def _tell_of_expired(before: float) -> float:
    """Say how many leases have run out since the last time: a line a second, not one each."""
    now = leases_expired.value()
    if now > before:
        log.info("leases have run out", leases=int(now - before))
    return now
