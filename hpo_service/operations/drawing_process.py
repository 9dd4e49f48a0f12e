"""A process beside the server for draws that take long: such a draw holds up only the calls that need it.

It is started when it is first needed. It is killed if a sampler hangs, and dies if one takes too much memory.
"""

from __future__ import annotations

import asyncio
import os
import signal

from hpo_service.reading.reading_process import ReadingProcess

START_SECONDS = 5.0  # how long a draw waits for the process to start


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
        """Have `keep` start the process: it may be needed soon."""
        self._is_wanted.set()

    async def is_there(self) -> bool:
        """Whether it is up, after some time for its start."""
        self.want()
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        while not self.is_up and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        return self.is_up

    def kill(self) -> None:
        """Kill the process with all its draws; `keep` starts another one."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
