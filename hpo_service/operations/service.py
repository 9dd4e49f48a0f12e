"""The service: the record, the tuners, and who is waiting; what the operations share."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from hpo_service.domain.study import Study
from hpo_service.operations.study_work import StudyWork
from hpo_service.operations.tuners import Tuners
from hpo_service.store.database import Clock, Database
from hpo_service.store.record import Record
from hpo_service.store.writing_record import WritingRecord

T = TypeVar("T")

MOST_WORKERS_IN_MEMORY = 100_000


class Service:
    """Open for one server process; its methods are coroutines of one event loop."""

    def __init__(self, database_url: str, clock: Clock | None = None) -> None:
        """Raise DatabaseInUse, SchemaTooNew, Unavailable, ValueError (the URL)."""
        self.tuners = Tuners()
        self._answers = Answers()
        self.database = Database(database_url, clock, _Listener(self.tuners, self._answers))
        self.changes = Changes()
        self.leaving = False
        self._seen: dict[str, float] = {}
        self._known: set[str] = set()
        self._seen_lock = threading.Lock()
        self._saving = asyncio.Lock()

    def leave(self) -> None:
        """Send everybody home who waits: the server is about to stop."""
        self.leaving = True
        self.changes.announce()

    def close(self) -> None:
        self.database.close()

    # -- one study ----------------------------------------------------------------------------------------

    async def change(self, name: str, work: Callable[[StudyWork], T]) -> T:
        """Run `work` on the study in one transaction, after what time has changed, and settle it."""

        def in_transaction(record: WritingRecord) -> T:
            changing = self.work_on(record, record.study(name))
            result = work(changing)
            changing.settle()
            return result

        return await self.write(in_transaction, [name])

    def work_on(self, record: WritingRecord, study: Study) -> StudyWork:
        """Begin to work on a study: first take back what has lapsed."""
        work = StudyWork(record, study, self.tuners)
        work.lapse()
        test = record.test(study) if study.sealed else None
        if test is not None:
            work.lapse_test(test)
        return work

    async def write(self, work: Callable[[WritingRecord], T], studies: Sequence[str] = ()) -> T:
        def in_transaction(record: WritingRecord) -> tuple[T, bool]:
            return work(record), record.wakes

        result, wakes = await self._answers.of(self.database.write(in_transaction, studies))
        if wakes:
            self.changes.announce()
        return result

    async def read(self, name: str, work: Callable[[Record, Study], T]) -> T:
        """Read the study as it is now: a lease that has run out is taken back first."""

        def look(record: Record) -> tuple[bool, T | None]:
            study = record.study(name)
            if record.overdue([study]):
                return True, None
            return False, work(record, study)

        overdue, result = await asyncio.to_thread(self.database.read, look)
        if not overdue:
            return result  # type: ignore[return-value]
        await self.look_after([name])
        return await asyncio.to_thread(self.database.read, lambda record: work(record, record.study(name)))

    async def read_all(self, work: Callable[[Record], T]) -> T:
        """Read across studies, after what time has changed."""
        overdue = await asyncio.to_thread(self.database.read, lambda record: record.overdue())
        await self.look_after(overdue)
        return await asyncio.to_thread(self.database.read, work)

    async def look_after(self, names: Sequence[str]) -> None:
        """Do what time alone asks for: take back lapsed leases, end studies whose seconds are over."""
        for name in names:
            await self.write(partial(self._look_after, name), [name])

    def _look_after(self, name: str, record: WritingRecord) -> None:
        study = record.find_study(name)
        if study is not None:
            self.work_on(record, study).settle()

    # -- workers ------------------------------------------------------------------------------------------

    def heard_of(self, worker_id: str, record: Record) -> None:
        """Note that the worker was heard of; it is saved later, in a transaction of its own.

        Inside a call's transaction two servers could wait for each other's new workers in a circle.
        """
        with self._seen_lock:
            self._seen[worker_id] = record.now

    async def save_new_worker(self, worker_id: str) -> None:
        """Save what was heard at once when it comes from a worker not heard of before."""
        if worker_id in self._known:
            return
        await self.save_seen_workers()

    async def save_seen_workers(self) -> None:
        async with self._saving:
            with self._seen_lock:
                seen, self._seen = self._seen, {}
            if not seen:
                return
            try:
                await self.write(lambda record: record.see_workers(seen))
            except BaseException:
                with self._seen_lock:
                    self._seen = {**seen, **self._seen}
                raise
            if len(self._known) >= MOST_WORKERS_IN_MEMORY:
                self._known.clear()
            self._known.update(seen)


class Answers:
    """Brings the writer's answers to the event loop: those of one group together, since waking it is a system call."""

    def __init__(self) -> None:
        self._arrived: deque[tuple[Future[Any], asyncio.Future[Any]]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._more_follow = False

    async def of(self, writing: Future[T]) -> T:
        self._loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = self._loop.create_future()

        def arrived(written: Future[T]) -> None:
            self._arrived.append((written, answer))
            if not self._more_follow:
                self._wake()

        writing.add_done_callback(arrived)
        return await answer

    def answering(self) -> None:
        self._more_follow = True

    def answered(self) -> None:
        self._more_follow = False
        if self._arrived:
            self._wake()

    def _wake(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        while self._arrived:
            written, answer = self._arrived.popleft()
            if answer.cancelled():
                continue
            error = written.exception()
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(written.result())


class _Listener:
    """Who listens to the writer: the tuners to what is kept and undone, the answers to when they come."""

    def __init__(self, tuners: Tuners, answers: Answers) -> None:
        self.call_kept, self.call_refused = tuners.call_kept, tuners.call_refused
        self.committed, self.rolled_back = tuners.committed, tuners.rolled_back
        self.answering, self.answered = answers.answering, answers.answered


class Changes:
    """Wakes who waits for the record to change. Waiting holds no thread and no database connection."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def announce(self) -> None:
        self._next.set()
        self._next = asyncio.Event()

    def following(self) -> asyncio.Event:
        """Take this before looking; it is set by the first change after."""
        return self._next
