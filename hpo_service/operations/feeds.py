"""The changes of a study as events, read once for all streams that follow it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

from hpo_service.domain.errors import HpoError, NotFound
from hpo_service.domain.study import Study

# How often a study that changes all the time is read.
READ_EVERY_SECONDS = 0.1
AGAIN_SECONDS = 1.0
MOST_EVENTS = 1_000
MOST_BYTES = 2**20


class EncodedEvent(NamedTuple):
    revision: int
    sent: bytes


class Page(NamedTuple):
    """upto: the revision up to which these events are all; more: whether there are later ones already."""

    events: list[EncodedEvent]
    upto: int
    more: bool


ReadPage = Callable[[int], Awaitable[Page]]  # what comes after a revision; raises NotFound


class Feed:
    """Of one study. It keeps the last events for all followers; one that is further back reads for itself."""

    def __init__(self, study: Study, read: ReadPage) -> None:
        self.ended = False
        self.followers = 0
        self.news = asyncio.Event()  # replaced at each wake
        self._read = read
        self._events: list[EncodedEvent] = []
        self._bytes = 0
        self._begins = self._upto = study.revision  # all events between these revisions are kept
        self._changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read_on())

    def change(self) -> None:
        self._changed.set()

    def wake(self) -> None:
        self.news.set()
        self.news = asyncio.Event()

    def close(self) -> None:
        self._reading.cancel()

    def since(self, after: int) -> list[EncodedEvent] | None:
        """The events after that revision; None where it is further back than the feed."""
        if after < self._begins:
            return None
        return self._events[bisect_right(self._events, after, key=lambda event: event.revision) :]

    async def _read_on(self) -> None:
        try:
            while not self.ended:
                self._changed.clear()
                began = time.monotonic()
                if await self._read_page() or self.ended:
                    continue
                await self._changed.wait()
                await asyncio.sleep(max(0.0, began + READ_EVERY_SECONDS - time.monotonic()))
        finally:
            self.ended = True
            self.wake()

    async def _read_page(self) -> bool:
        """Whether there is more to read."""
        try:
            page = await self._read(self._upto)
        except NotFound:
            self.ended = True
            return False
        except HpoError:  # the database is away
            await asyncio.sleep(AGAIN_SECONDS)
            return True
        self._keep(page)
        if page.events:
            self.wake()
        return page.more

    def _keep(self, page: Page) -> None:
        self._events += page.events
        self._bytes += sum(len(event.sent) for event in page.events)
        self._upto = page.upto
        drop = 0
        while drop < len(self._events) and (len(self._events) - drop > MOST_EVENTS or self._bytes > MOST_BYTES):
            self._bytes -= len(self._events[drop].sent)
            drop += 1
        if drop:
            self._begins = self._events[drop - 1].revision
            del self._events[:drop]


class Feeds:
    """Those of all studies that are followed."""

    def __init__(self) -> None:
        self._of: dict[str, dict[int, Feed]] = {}  # by name and id: another study may have got the name

    def __bool__(self) -> bool:
        return bool(self._of)

    @property
    def studies(self) -> list[str]:
        return list(self._of)

    @contextlib.contextmanager
    def followed(self, study: Study, read: ReadPage) -> Iterator[Feed]:
        feeds = self._of.setdefault(study.name, {})
        feed = feeds.get(study.id)
        if feed is None:
            feed = feeds[study.id] = Feed(study, read)
        feed.followers += 1
        try:
            yield feed
        finally:
            feed.followers -= 1
            if not feed.followers:
                feed.close()
                del feeds[study.id]
                if not feeds:
                    self._of.pop(study.name, None)

    def notify(self, name: str) -> None:
        for feed in self._of.get(name, {}).values():
            feed.change()

    def wake_all(self) -> None:
        for feeds in self._of.values():
            for feed in feeds.values():
                feed.wake()
