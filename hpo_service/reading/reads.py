"""Where a read runs: in a thread of the server, or in the reading process, where it delays nobody."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TypeVar

from hpo_service.reading.reading_process import ReadingProcess, ReadingProcessEnded
from hpo_service.store.database import Database
from hpo_service.store.reader import Readable
from hpo_service.store.record import Record

T = TypeVar("T")


class Reads:
    """Runs reads. For the process, `work` and its result must be picklable, as a module's functions are."""

    def __init__(self, database: Database, process: ReadingProcess | None) -> None:
        """process: None, or while it is down: threads read."""
        self._database, self._process = database, process

    async def in_thread(self, work: Callable[[Record], T]) -> T:
        return await asyncio.to_thread(self._database.read, work)

    async def in_process(self, work: Callable[[Record], T]) -> T:
        if self._process is not None and self._process.is_up:
            with contextlib.suppress(ReadingProcessEnded):
                return await self._process.read(work)
        return await self.in_thread(work)

    async def items_in_process(self, work: Callable[[Readable], Iterator[T]]) -> AsyncGenerator[T, None]:
        """Yield what `work` yields.

        If the process dies before the first item, a thread starts over; later, ReadingProcessEnded is raised.
        """
        begun = False
        if self._process is not None and self._process.is_up:
            try:
                async with contextlib.aclosing(self._process.items(work)) as items:
                    async for item in items:
                        begun = True
                        yield item
                return
            except ReadingProcessEnded:
                if begun:
                    raise
        iterator = await asyncio.to_thread(work, self._database)
        while some := await asyncio.to_thread(lambda: list(itertools.islice(iterator, 1))):
            yield some[0]
