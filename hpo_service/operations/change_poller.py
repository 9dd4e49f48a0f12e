"""One poll of the database for all that wait: for what is overdue, and for what other servers have written.

However many wait, there are two polls a second, and none while nobody waits. This server's own writes wake at once.
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
    """overdue: studies with a lease or limit that has run out; changed: by other servers; gone: deleted ones."""

    overdue: list[str]
    changed: list[StudyChange]
    gone: list[str]
    draining: frozenset[str]


class ChangePoller:
    """A task that polls as long as an ask or an event stream waits."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._task: asyncio.Task[None] | None = None
        self._outage = LoggedState("nobody can look for those who wait", "those who wait are looked for again")
        self._known: dict[str, tuple[int, int]] = {}  # id and revision of the studies that are waited for

    def begin(self) -> None:
        """Called when somebody begins to wait: start polling, if need be."""
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
            service.asks.notify(change)
            service.feeds.notify(change.study.name)
        for name in seen.gone:
            service.asks.deleted(name)
            service.feeds.notify(name)
        service.asks.wake_draining(seen.draining)
        if service.database.is_shared:
            for awaited in service.asks.kinds_of_any:
                service.asks.wake_any(awaited, len(await service.studies_to_ask(awaited, FEW_TO_ASK)))
        # Last: the changes above are read only once, and an overdue study that is locked must not hold them back.
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
        draining = record.workers.draining()
        self._known = found  # last: if a read fails, the next poll finds these changes again
        return PollResult(overdue, changed, gone, draining)

    def _was_changed_elsewhere(self, name: str, now: tuple[int, int]) -> bool:
        """Whether another server has written the study since the last poll, and this one does not know of it yet."""
        if self._known.get(name) == now:
            return False
        study = self._service.database.remembered(name)
        return study is None or (study.id, study.revision) < now

    def _change(self, record: Record, name: str) -> StudyChange:
        study = record.study(name)
        return StudyChange(study, record.round(study, study.round))
