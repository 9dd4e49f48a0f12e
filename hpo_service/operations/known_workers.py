"""All workers that were ever seen: to list them, and to drain one."""

from __future__ import annotations

from collections.abc import Collection

from hpo_service.domain.json_types import Json
from hpo_service.operations.service import Service
from hpo_service.reading.resources import worker_resource
from hpo_service.store.record import Record


async def page(
    service: Service, after: str, size: int, only: Collection[str] | None = None
) -> tuple[list[Json], str | None]:
    """Return up to `size` workers after that id, and the id to go on after. only: of studies of these names."""

    def listed(record: Record) -> tuple[list[Json], str | None]:
        found = record.workers.page(after, size + 1, only)
        more = len(found) > size
        return [worker_resource(worker) for worker in found[:size]], found[size - 1].worker_id if more else None

    await service.save_seen_workers()
    return await service.read_all(listed)


async def drain(service: Service, worker_id: str) -> Json:
    await service.save_seen_workers()
    await service.write(lambda record: record.drain_worker(worker_id))
    service.asks.wake_draining([worker_id])
    return await service.reads.in_thread(lambda record: worker_resource(record.workers.one(worker_id)))
