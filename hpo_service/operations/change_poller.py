"""One look for all who wait: at what time has changed, and at what other servers have written.

However many wait, there are two looks a second, and none while nobody waits. What this server writes wakes by itself.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from hpo_service.logged_state import LoggedState, log_failures
from hpo_service.store.record import Record, StudyChange

if TYPE_CHECKING:
    from hpo_service.operations.service import Service

POLL_SECONDS = 0.5

FEW_TO_ASK = 16  # studies


class PollResult(NamedTuple):
    """overdue: studies in which time has changed something; changed: by others; gone: names that are no more."""

    overdue: list[str]
    changed: list[StudyChange]
    gone: list[str]
    draining: frozenset[str]


class ChangePoller:
    """Looks as long as somebody waits."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._task: asyncio.Task[None] | None = None
        self._outage = LoggedState("nobody can look for those who wait", "those who wait are looked for again")
        self._known: dict[str, tuple[int, int]] = {}  # id and revision of the studies that are waited for

    def begin(self) -> None:
        """Somebody waits from now on."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_polling())

    async def _keep_polling(self) -> None:
        service = self._service
        try:
            while (service.asks or service.feeds) and not service.is_shutting_down:
                await asyncio.sleep(POLL_SECONDS)
                await log_failures(self.poll(), self._outage)
        finally:
            self._task = None
            self._known.clear()

    async def poll(self) -> None:
        service = self._service
        names = sorted({*service.asks.studies, *service.feeds.studies})
        seen = await asyncio.to_thread(service.database.read, lambda record: self._read_changes(record, names))
        for change in seen.changed:
            service.asks.changed(change)
            service.feeds.changed(change.study.name)
        for name in seen.gone:
            service.asks.deleted(name)
            service.feeds.changed(name)
        service.asks.drain(seen.draining)
        if service.database.is_shared:
            for awaited in service.asks.kinds_of_any:
                service.asks.wake_any(awaited, len(await service.studies_to_ask(awaited, FEW_TO_ASK)))
        # Last: what was seen is seen once, and whoever holds a study that is overdue keeps it from nobody.
        await service.expire_overdue_unless_held(seen.overdue)

    def _read_changes(self, record: Record, names: list[str]) -> PollResult:
        found = record.revisions(names)
        overdue = (
            record.overdue() if self._service.asks.kinds_of_any else record.overdue([id for id, _ in found.values()])
        )
        if not self._service.database.is_shared:
            return PollResult(overdue, [], [], frozenset())
        changed = [self._change(record, name) for name in found if self._was_changed_elsewhere(name, found[name])]
        gone = [name for name in names if name not in found]
        self._known = found
        return PollResult(overdue, changed, gone, record.workers.draining())

    def _was_changed_elsewhere(self, name: str, now: tuple[int, int]) -> bool:
        """Whether another server has written the study since the last look, or since this one has used it."""
        if self._known.get(name) == now:
            return False
        study = self._service.database.remembered(name)
        return study is None or (study.id, study.revision) < now

    def _change(self, record: Record, name: str) -> StudyChange:
        study = record.study(name)
        return StudyChange(study, record.round(study, study.round))
