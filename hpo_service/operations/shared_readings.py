"""One read for all calls that want the same at once: 200 asks woken together do not read 200 times."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SharedReadings(Generic[K, V]):
    """A read begins after all calls of `of` that get its result, so that none gets an older state."""

    def __init__(self, read: Callable[[K], Awaitable[V]]) -> None:
        self._read = read
        self._following: dict[K, asyncio.Task[V]] = {}
        self._under_way: dict[K, asyncio.Task[Any]] = {}

    async def of(self, key: K) -> V:
        following = self._following.get(key)
        if following is None:
            following = self._following[key] = asyncio.create_task(self._read_after(self._under_way.get(key), key))
        return await asyncio.shield(following)

    async def _read_after(self, before: asyncio.Task[Any] | None, key: K) -> V:
        if before is not None:
            await asyncio.wait([before])
        this = self._under_way[key] = self._following.pop(key)
        try:
            return await self._read(key)
        finally:
            if self._under_way.get(key) is this:
                del self._under_way[key]
