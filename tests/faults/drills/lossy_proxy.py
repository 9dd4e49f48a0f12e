"""A bad network in one small TCP proxy: it loses replies, cuts connections, delays, and can let nothing through."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter


class LossyProxy:
    """Listens on a port of its own in front of a server; a thread with an event loop runs it."""

    def __init__(self, target_port: int, seed: int) -> None:
        self.faults: Counter[str] = Counter()
        self.share = 0.0  # of the replies, how many something happens to
        self._let_through = True
        self._target_port = target_port
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def cut_off(self) -> None:
        """From now on nothing comes through, in silence, and neither side is told."""
        self._let_through = False

    def restore(self) -> None:
        self._let_through = True

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        both = [asyncio.create_task(self._requests(reader, back)), asyncio.create_task(self._replies(there, writer))]
        try:
            # Cancelled only at the end of the drill, and that is no error of this connection.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            for stream in (writer, back):
                with contextlib.suppress(OSError):
                    stream.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not await self._passes():
                continue
            back.write(data)
            await back.drain()

    async def _replies(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await there.read(65536):
            if not await self._passes():
                continue
            if self._random.random() < self.share:
                kind = self._random.choice(("reply lost", "connection cut", "reply cut short", "reply late"))
                self.faults[kind] += 1
                if kind == "reply lost":
                    continue
                if kind == "connection cut":
                    return
                if kind == "reply cut short":
                    writer.write(data[: len(data) // 2])
                    await writer.drain()
                    return
                await asyncio.sleep(self._random.uniform(0.2, 1.5))
            writer.write(data)
            await writer.drain()

    async def _passes(self) -> bool:
        if not self._let_through:
            self.faults["packet lost in the cut"] += 1
        return self._let_through
