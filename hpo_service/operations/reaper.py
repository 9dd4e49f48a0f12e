"""The reaper: once a second, takes back leases that have run out, in every study; beside it, the server's beats."""

from __future__ import annotations

import asyncio
import time

import structlog

from hpo_service.instruments import leases_expired
from hpo_service.logged_state import LoggedState, fault_of, log_failures
from hpo_service.operations.service import EXPIRED_AT_ONCE, Service
from hpo_service.store.outages import BEAT_SECONDS

PERIOD_SECONDS = 1.0
SAVE_SEEN_EVERY = 5
CUT_LOG_EVERY = 10

log = structlog.get_logger()


async def begin(service: Service) -> None:
    """Called before the first call: the time without a server is recorded as an outage."""
    service.database.uptime.begin()
    await log_failures(service.beat(), _beating())


async def reap(service: Service) -> None:
    """Run until cancelled. A database that is away is tried again at the next tick."""
    async with asyncio.TaskGroup() as both:
        both.create_task(_keep_beating(service))
        both.create_task(_keep_reaping(service))


async def _keep_beating(service: Service) -> None:
    beating, uptime = _beating(), service.database.uptime
    while True:
        await asyncio.sleep(uptime.seconds_until_beat() or BEAT_SECONDS)
        if not uptime.seconds_until_beat():
            await log_failures(service.beat(), beating)


def _beating() -> LoggedState:
    return LoggedState("the server's beat cannot be saved", "the server's beat is saved again")


async def _keep_reaping(service: Service) -> None:
    state = LoggedState("the reaper cannot look: leases that run out are not taken back", "the reaper looks again")
    saving = LoggedState("when workers were seen cannot be saved", "when workers were seen is saved again")
    cutting = LoggedState("the write-ahead log cannot be cut", "the write-ahead log can be cut again")
    expired = leases_expired.value()
    tick = 0
    while True:
        await asyncio.sleep(PERIOD_SECONDS)
        tick += 1
        await log_failures(reap_once(service), state)
        expired = _tell_of_expired(expired)
        if tick % SAVE_SEEN_EVERY == 0:
            await log_failures(service.save_seen_workers(), saving)
        if tick % CUT_LOG_EVERY == 0:
            await log_failures(asyncio.to_thread(service.database.cut_log), cutting)


async def reap_once(service: Service) -> None:
    """Expire what is overdue. A study where that fails does not hold up the others; its error is raised last."""
    overdue = await asyncio.to_thread(service.database.read, lambda record: record.overdue())
    faults: list[Exception] = []
    for start in range(0, len(overdue), EXPIRED_AT_ONCE):
        some = overdue[start : start + EXPIRED_AT_ONCE]
        tried = await asyncio.gather(*(fault_of(service.expire_overdue([name])) for name in some))
        faults += [fault for fault in tried if fault is not None]
    if faults:
        raise faults[0]
    service.reaped_at = time.monotonic()


def _tell_of_expired(before: float) -> float:
    """Say how many leases have run out since the last time: a line a second, not one each."""
    now = leases_expired.value()
    if now > before:
        log.info("leases have run out", leases=int(now - before))
    return now
