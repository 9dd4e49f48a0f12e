"""One look for all who wait: at what time has changed, and at what other servers have written.

However many wait, there are two looks a second, and none while nobody waits. What this server writes wakes by itself.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from hpo_service.logged_state import LoggedState, carefully
from hpo_service.store.record import Change, Record

if TYPE_CHECKING:
    from hpo_service.operations.service import Service

LOOK_EVERY_SECONDS = 0.5

FEW_TO_ASK = 16  # studies


class Seen(NamedTuple):
    """overdue: studies in which time has changed something; changed: by others; gone: names that are no more."""

    overdue: list[str]
    changed: list[Change]
    gone: list[str]
    draining: frozenset[str]


class Watch:
    """Looks as long as somebody waits."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._looking: asyncio.Task[None] | None = None
        self._outage = LoggedState("nobody can look for those who wait", "those who wait are looked for again")
        self._known: dict[str, tuple[int, int]] = {}  # id and revision of the studies that are waited for

    def begin(self) -> None:
        """Somebody waits from now on."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_on())

    async def _look_on(self) -> None:
        service = self._service
        try:
            while (service.asks or service.feeds) and not service.leaving:
                await asyncio.sleep(LOOK_EVERY_SECONDS)
                await carefully(self.look(), self._outage)
        finally:
            self._looking = None
            self._known.clear()

    async def look(self) -> None:
        service = self._service
        names = sorted({*service.asks.studies, *service.feeds.studies})
        seen = await asyncio.to_thread(service.database.read, lambda record: self._see(record, names))
        for change in seen.changed:
            service.asks.changed(change)
            service.feeds.changed(change.study.name)
        for name in seen.gone:
            service.asks.gone(name)
            service.feeds.changed(name)
        service.asks.drain(seen.draining)
        if service.database.is_shared:
            for awaited in service.asks.kinds_of_any:
                service.asks.may_be_served(awaited, len(await service.studies_to_ask(awaited, FEW_TO_ASK)))
        # Last: what was seen is seen once, and whoever holds a study that is overdue keeps it from nobody.
        await service.look_after_those_free(seen.overdue)

    def _see(self, record: Record, names: list[str]) -> Seen:
        found = record.revisions(names)
        overdue = (
            record.overdue() if self._service.asks.kinds_of_any else record.overdue([id for id, _ in found.values()])
        )
        if not self._service.database.is_shared:
            return Seen(overdue, [], [], frozenset())
        changed = [self._change(record, name) for name in found if self._is_others(name, found[name])]
        gone = [name for name in names if name not in found]
        self._known = found
        return Seen(overdue, changed, gone, record.workers.draining())

    def _is_others(self, name: str, now: tuple[int, int]) -> bool:
        """Whether another server has written the study since the last look, or since this one has used it."""
        if self._known.get(name) == now:
            return False
        study = self._service.database.remembered(name)
        return study is None or (study.id, study.revision) < now

    def _change(self, record: Record, name: str) -> Change:
        study = record.study(name)
        return Change(study, record.round(study, study.round))
