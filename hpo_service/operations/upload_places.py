"""Places for so many uploads at once; where others wait for one, a slow upload gives way.

Only the time between the parts of an upload is limited, so that one may last for hours, and a single key for one study
may take all places. So while somebody waits, the slowest upload below SLOW is broken off. Its sender is told to send it
again, and then waits behind the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hpo_service.domain.errors import Unavailable

SLOW = 2**20  # bytes a second
BEGIN_SECONDS = 5.0  # before an upload's speed counts
WAIT_SECONDS = 1.0  # between two checks for a slow one

_GAVE_WAY = "the upload came slowly while others waited for its place: send it again"


class UploadUnderWay:
    """An upload that has a place. It can be broken off while it waits for its sender's next piece."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._size = 0
        self.gives_way = False
        self._next: asyncio.Timeout | None = None

    def is_slow(self) -> bool:
        return self._seconds() >= BEGIN_SECONDS and self.speed() < SLOW

    def speed(self) -> float:
        """Bytes a second."""
        return self._size / max(self._seconds(), 1e-3)

    def give_way(self) -> None:
        self.gives_way = True
        if self._next is not None:
            self._next.reschedule(self._loop.time())

    async def received(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The pieces as they come. Raise Unavailable where it has to give way."""
        while (piece := await self._one(pieces)) is not None:
            self._size += len(piece)
            yield piece

    async def _one(self, pieces: AsyncIterator[bytes]) -> bytes | None:
        try:
            async with asyncio.timeout(0 if self.gives_way else None) as self._next:
                return await anext(pieces, None)
        except TimeoutError:
            raise Unavailable(_GAVE_WAY) from None
        finally:
            self._next = None

    def _seconds(self) -> float:
        return self._loop.time() - self._began


class UploadPlaces:
    """Of one server."""

    def __init__(self, number: int) -> None:
        self._free = asyncio.Semaphore(number)
        self._under_way: set[UploadUnderWay] = set()

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[UploadUnderWay]:
        await self._wait()
        upload = UploadUnderWay()
        self._under_way.add(upload)
        try:
            yield upload
        finally:
            self._under_way.discard(upload)
            self._free.release()

    async def _wait(self) -> None:
        waiting = asyncio.ensure_future(self._free.acquire())
        try:
            while not (await asyncio.wait({waiting}, timeout=WAIT_SECONDS))[0]:
                self._make_room()
        except asyncio.CancelledError:
            if not waiting.cancel() and waiting.done() and not waiting.cancelled():
                self._free.release()
            raise

    def _make_room(self) -> None:
        slow = [upload for upload in self._under_way if upload.is_slow()]
        if slow and not any(upload.gives_way for upload in self._under_way):  # one at a time: it takes a moment
            min(slow, key=UploadUnderWay.speed).give_way()
