"""Makes what calls raise NotReady for: draws that take long, and tuners with a long history to read.

Meanwhile the writer and the event loop are free for other calls. Calls that need a draw of the same study take turns,
since each draw has to know of the trials before it. A call that has waited too long is refused; its draw goes on, for
the next call.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from hpo_service.domain.errors import DrawFailed, HpoError
from hpo_service.domain.study import Study
from hpo_service.instruments import drawing as draw_timed
from hpo_service.operations import drawings
from hpo_service.operations.drawing_process import DrawingProcess
from hpo_service.operations.not_ready import Draws, NotReady, Ready, Wanted, draw_failed
from hpo_service.reading.reading_process import ReadingProcessEnded
from hpo_service.store.database import Database
from hpo_service.tuning.tuner import Tuner

PATIENCE_SECONDS = 10.0  # how long a call waits for its draw
HANGS_SECONDS = 60.0  # a draw that takes longer is ended
KEPT_SECONDS = 60.0  # how long a draw is kept for a repeated call

log = structlog.get_logger()


@dataclass
class _Study:
    """lock: held by the call that draws. wanted, drawing: the draws that are under way or kept."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    calls: int = 0
    wanted: tuple[Wanted, ...] = ()
    drawing: asyncio.Task[Draws] | None = None


class LongDraws:
    """Its methods are coroutines of one event loop."""

    def __init__(self, database: Database, process: DrawingProcess | None) -> None:
        """process: without it threads draw, which nothing can end."""
        self._database = database
        self._process = process
        self._drawer = drawings.Drawer()
        self._studies: dict[int, _Study] = {}
        self._histories: dict[int, asyncio.Task[tuple[Tuner, int, int]]] = {}

    def expect(self) -> None:
        """Start the drawing process: there is a study whose draws take long."""
        if self._process is not None:
            self._process.want()

    @contextlib.asynccontextmanager
    async def draw_lock(self, study: Study) -> AsyncIterator[bool]:
        """Hold the study's draw lock; yield whether it was free at once. Raise DrawFailed after PATIENCE_SECONDS."""
        here = self._studies.setdefault(study.id, _Study())
        is_free = not here.calls  # not `lock.locked()`: a released lock may be another call's already
        here.calls += 1
        try:
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await here.lock.acquire()
            except TimeoutError:
                raise too_slow(study) from None
            try:
                yield is_free
            finally:
                here.lock.release()
        finally:
            here.calls -= 1
            if not here.calls and here.drawing is None:
                self._studies.pop(study.id, None)

    async def draws(self, needed: NotReady, deadline: float) -> Draws:
        """Called with the draw lock held. Raise DrawFailed, NotFound, Unavailable.

        It is the lock of the study before, if that was deleted and made anew meanwhile: then two may draw the same.
        """
        here = self._studies.setdefault(needed.study.id, _Study())
        if here.drawing is not None and here.wanted != needed.wanted:
            await _end_of(here.drawing, needed.study, deadline)  # of a call that has given up
            here.drawing = None
        drawing = here.drawing
        if drawing is None:
            here.wanted = needed.wanted
            drawing = here.drawing = asyncio.create_task(self._draw(needed))
            drawing.add_done_callback(partial(self._drawn, needed.study.id))
        await _end_of(drawing, needed.study, deadline)
        here.drawing = None
        return drawing.result()

    def _drawn(self, study_id: int, drawing: asyncio.Task[Draws]) -> None:
        """Done callback: keep the draws for a while, in case the call that wanted them has given up."""
        failed = drawing.cancelled() or drawing.exception() is not None
        if failed:
            self._forget(study_id, drawing)
        else:
            asyncio.get_running_loop().call_later(KEPT_SECONDS, self._forget, study_id, drawing)

    def _forget(self, study_id: int, drawing: asyncio.Task[Draws]) -> None:
        here = self._studies.get(study_id)
        if here is None:
            return
        if here.drawing is drawing:
            here.drawing = None
        if not here.calls and here.drawing is None:
            del self._studies[study_id]

    async def _draw(self, needed: NotReady) -> Draws:
        try:
            with draw_timed():
                async with asyncio.timeout(HANGS_SECONDS):
                    return await self._draw_here_or_there(needed)
        except TimeoutError:
            log.error("a draw hangs", study=needed.study.name, wanted=[each.number for each in needed.wanted])
            if self._process is not None:
                self._process.kill()
            raise too_slow(needed.study) from None
        except HpoError:
            raise
        except Exception as error:
            raise draw_failed(needed.study, needed.wanted[0].number, error) from error

    async def _draw_here_or_there(self, needed: NotReady) -> Draws:
        study = needed.study
        work = partial(drawings.draws, name=study.name, study_id=study.id, wanted=needed.wanted)
        for _ in range(2):  # it may die of what it draws for another study
            if self._process is None or not await self._process.is_there():
                break
            with contextlib.suppress(ReadingProcessEnded):
                return _by_number([ready async for ready in self._process.items(work)])
        else:
            raise DrawFailed("the process that draws has died twice; try again")
        return await asyncio.to_thread(self._draw_here, needed)

    def _draw_here(self, needed: NotReady) -> Draws:
        study = needed.study
        return _by_number(list(self._drawer.draws(study.name, study.id, needed.wanted, self._database)))

    async def history(self, study: Study, *, draws: bool) -> tuple[Tuner, int, int]:
        """A tuner that knows the study, up to which revision, its history in bytes; read once for all waiting calls."""
        reading = self._histories.get(study.id)
        if reading is None:
            reading = asyncio.create_task(asyncio.to_thread(self._read, study, draws))
            self._histories[study.id] = reading
            reading.add_done_callback(lambda _: self._histories.pop(study.id, None))
        return await asyncio.shield(reading)

    def _read(self, study: Study, draws: bool) -> tuple[Tuner, int, int]:
        known = drawings.KnownStudy(study, draws=draws)
        study = known.catch_up(self._database)
        if draws:
            known.warm_up(study, self._database)
        return known.tuner, known.seen, known.history_bytes


def _by_number(drawn: list[Ready]) -> Draws:
    return {ready.wanted.number: ready for ready in drawn}


async def _end_of(drawing: asyncio.Task[Any], study: Study, deadline: float) -> None:
    await asyncio.wait([drawing], timeout=max(deadline - time.monotonic(), 0.0))
    if not drawing.done():
        raise too_slow(study)


def too_slow(study: Study) -> DrawFailed:
    return DrawFailed(
        f"the sampler {study.spec.sampler.name} of study {study.name!r} has not drawn within {PATIENCE_SECONDS:.0f} "
        "seconds; nothing was given out; ask again: it goes on meanwhile"
    )
