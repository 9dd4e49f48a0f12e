"""A process beside the server that draws what takes long, so that a draw holds up nobody but who asked for it.

It is started when it is first needed. A sampler that hangs, or takes all the memory there is for it, ends with it.
"""

from __future__ import annotations

import asyncio
import os
import signal

from hpo_service.reading.reading_process import ReadingProcess

START_SECONDS = 5.0  # so long a draw waits for its start


class DrawingProcess(ReadingProcess):
    name = "the drawing process"
    niceness = 5
    imports = ("hpo_service.operations.drawings", "hpo_service.tuning.auto")
    most_bytes = 2 * 2**30
    restarts = None

    def __init__(self, database_url: str) -> None:
        super().__init__(database_url)
        self._is_wanted = asyncio.Event()

    async def keep(self) -> None:
        """Run until cancelled: start the process when it is wanted, and again when it has died."""
        await self._is_wanted.wait()
        await super().keep()

    def want(self) -> None:
        """It may be needed soon."""
        self._is_wanted.set()

    async def is_there(self) -> bool:
        """Whether it is up, after some time for its start."""
        self.want()
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        while not self.is_up and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        return self.is_up

    def kill(self) -> None:
        """End it with all that it is at; another one follows."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
