"""The service: the record, the tuners, and who is waiting; what the operations share."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from hpo_service.domain.errors import HpoError
from hpo_service.domain.study import Study
from hpo_service.operations import readings
from hpo_service.operations.reading_process import ReadingProcess, ReadingProcessEnded
from hpo_service.operations.study_work import StudyWork
from hpo_service.operations.tuners import Tuners
from hpo_service.store.database import Database
from hpo_service.store.engine import Clock
from hpo_service.store.reader import Readable
from hpo_service.store.record import Record
from hpo_service.store.writer import LARGEST_GROUP, Call
from hpo_service.store.writing_record import WritingRecord

T = TypeVar("T")
Done = Callable[[Any, BaseException | None], None]

MOST_WORKERS_IN_MEMORY = 100_000
# More than a round of four callers takes on two cores; the event loop counts in whole milliseconds.
GATHERING_SECONDS = 0.002


class Service:
    """Open for one server process; its methods are coroutines of one event loop."""

    def __init__(self, database_url: str, clock: Clock | None = None, reading: ReadingProcess | None = None) -> None:
        """reading: who reads for the server, by the database's own clock; without it threads do.

        Raise DatabaseInUse, SchemaTooNew, Unavailable, ValueError (the URL).
        """
        self.tuners = Tuners()
        self._exchange = Exchange()
        self.database = Database(database_url, clock, _Listener(self.tuners, self._exchange))
        self.reading = reading
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
        return await self.write(partial(self.changed, name, work), [name])

    def changed(self, name: str, work: Callable[[StudyWork], T], record: WritingRecord) -> T:
        """The same, inside a transaction."""
        changing = self.work_on(record, record.study(name))
        result = work(changing)
        changing.settle()
        return result

    def work_on(self, record: WritingRecord, study: Study) -> StudyWork:
        """Begin to work on a study: first take back what has lapsed."""
        work = StudyWork(record, study, self.tuners)
        work.lapse()
        test = record.test(study) if study.sealed else None
        if test is not None:
            work.lapse_test(test)
        return work

    async def write(self, work: Callable[[WritingRecord], T], studies: Sequence[str] = ()) -> T:
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        self.begin(work, studies, done)
        return await answer

    def begin(
        self,
        work: Callable[[WritingRecord], Any],
        studies: Sequence[str],
        done: Done,
        *,
        light: bool = False,
        request_id: str | None = None,
    ) -> None:
        """The same without a task that waits: `done` takes the result or the error, later, in the event loop.

        light: whether the work is short enough for the event loop itself. request_id: of an ask.
        """

        def in_transaction(record: WritingRecord) -> tuple[Any, bool]:
            return work(record), record.wakes

        def written(outcome: tuple[Any, bool] | None, error: BaseException | None) -> None:
            result, wakes = outcome or (None, False)
            if wakes:
                self.changes.announce()
            done(result, error)

        self._exchange.submit(self.database, in_transaction, studies, written, light=light, request_id=request_id)

    def is_light(self, name: str) -> bool:
        """Whether a worker's call on this study needs nothing but what is in memory, and no long computation."""
        study = self.database.remembered(name)
        return study is not None and self.tuners.is_quick(study)

    # -- reading ------------------------------------------------------------------------------------------

    async def read(self, name: str, work: Callable[[Record, Study], T]) -> T:
        """Read the study as it is now, in a thread: a lease that has run out is taken back first."""
        overdue, result = await self._in_thread(partial(readings.unless_overdue, name, work))
        if not overdue:
            return result  # type: ignore[return-value]
        await self.look_after([name])
        return await self._in_thread(partial(readings.of_study, name, work))

    async def read_apart(self, name: str, work: Callable[[Record, Study], T]) -> T:
        """The same in the reading process: `work` and what it returns can be pickled, as a module's functions can."""
        overdue, result = await self.snapshot_apart(partial(readings.unless_overdue, name, work))
        if not overdue:
            return result  # type: ignore[return-value]
        await self.look_after([name])
        return await self.snapshot_apart(partial(readings.of_study, name, work))

    async def read_all(self, work: Callable[[Record], T]) -> T:
        """Read across studies, in a thread, after what time has changed."""
        overdue = await self._in_thread(lambda record: record.overdue())
        await self.look_after(overdue)
        return await self._in_thread(work)

    async def read_all_apart(self, work: Callable[[Record], T]) -> T:
        """The same in the reading process."""
        overdue, result = await self.snapshot_apart(partial(readings.unless_any_overdue, work))
        if not overdue:
            return result  # type: ignore[return-value]
        await self.look_after(overdue)
        return await self.snapshot_apart(work)

    async def snapshot_apart(self, work: Callable[[Record], T]) -> T:
        """Read in the reading process, whatever time has changed; without it, or when it dies, in a thread."""
        if self.reading is not None and self.reading.is_up:
            with contextlib.suppress(ReadingProcessEnded):
                return await self.reading.read(work)
        return await self._in_thread(work)

    async def items_apart(self, work: Callable[[Readable], Iterator[T]]) -> AsyncGenerator[T, None]:
        """What `work` yields in the reading process.

        If that dies before the first item a thread begins anew; later ReadingProcessEnded is raised.
        """
        begun = False
        if self.reading is not None and self.reading.is_up:
            try:
                async with contextlib.aclosing(self.reading.items(work)) as items:
                    async for item in items:
                        begun = True
                        yield item
                return
            except ReadingProcessEnded:
                if begun:
                    raise
        iterator = await asyncio.to_thread(work, self.database)
        while some := await asyncio.to_thread(lambda: list(itertools.islice(iterator, 1))):
            yield some[0]

    async def _in_thread(self, work: Callable[[Record], T]) -> T:
        return await asyncio.to_thread(self.database.read, work)

    # -- time ---------------------------------------------------------------------------------------------

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

    def knows(self, worker_id: str) -> bool:
        return worker_id in self._known

    async def save_new_worker(self, worker_id: str) -> None:
        """Save what was heard at once when it comes from a worker not heard of before."""
        if self.knows(worker_id):
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


class Exchange:
    """Takes calls from the event loop to the writer and brings the answers back.

    Those of one turn of the loop go together, and those of one group come together: waking a thread costs as much as
    a call's own work. If all of them are light they run at once, here; while the writer is at work, they wait.

    Where a group flies to its commit, those who have just been answered are given a moment to call again: else the
    callers fall into two halves that fly by turns, with twice as many commits.
    """

    def __init__(self) -> None:
        self._leaving: list[Call] = []
        self._all_light = True
        self._arrived: deque[tuple[Done, Any, BaseException | None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writing_in: int | None = None  # the event loop's thread, while it writes: it takes the answers itself
        self._expected = 0  # so many calls may soon be here, after a landing
        self._gathering: asyncio.TimerHandle | None = None

    def submit(
        self,
        database: Database,
        work: Callable[[WritingRecord], Any],
        studies: Sequence[str],
        done: Done,
        *,
        light: bool,
        request_id: str | None,
    ) -> None:
        """In the event loop. done: takes the result and None, or None and the error, in the event loop too."""

        def arrived(result: Any, error: BaseException | None) -> None:
            self._arrived.append((done, result, error))

        if not self._leaving:
            self._database, self._loop = database, asyncio.get_running_loop()
            self._loop.call_soon(self._hand_over)
        self._leaving.append(database.call(work, studies, arrived, request_id))
        if not light:
            self._all_light = False
        if len(self._leaving) == self._expected and self._loop is not None:
            self._loop.call_soon(self._hand_over)

    def answered(self) -> None:
        """At the end of a group, in the thread that has run it."""
        if (self._arrived or self._leaving) and self._loop is not None and self._writing_in != threading.get_ident():
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_over(self) -> None:
        if not self._leaving:
            return
        if self._all_light:
            if len(self._leaving) < self._expected:
                return  # they are handed over when more are here, or have not come
            some = self._leaving[:LARGEST_GROUP]  # others shall not have to wait for a crowd
            self._writing_in = threading.get_ident()
            begun = self._database.write_here(some, self._watch)
            self._writing_in = None
            if begun:
                del self._leaving[:begun]
                self._all_light = begun == len(some)
                self._give_answers()
                if self._leaving and self._loop is not None:
                    self._loop.call_soon(self._hand_over)
                return
            if self._database.is_writing:
                return  # they are handed over when it has finished
        calls, self._leaving, self._all_light = self._leaving, [], True
        try:
            self._database.write_all(calls)
        except HpoError as error:
            for call in calls:
                call.done(None, error)
            self._give_answers()

    def _watch(self, socket: int, writing: bool, heard: Callable[[], None]) -> _Watching:
        assert self._loop is not None

        def in_the_loop() -> None:
            self._writing_in = threading.get_ident()
            try:
                heard()
            finally:
                self._writing_in = None
                if self._arrived:
                    self._gather(len(self._arrived) + len(self._leaving))
                self._hand_out()

        return _Watching(self._loop, socket, writing, in_the_loop)

    def _gather(self, calls: int) -> None:
        """Let so many come together, for a moment."""
        assert self._loop is not None
        if self._gathering is not None:
            self._gathering.cancel()
        self._expected = calls
        self._gathering = self._loop.call_later(GATHERING_SECONDS, self._gathered)

    def _gathered(self) -> None:
        self._expected, self._gathering = 0, None
        self._hand_over()

    def _hand_out(self) -> None:
        self._give_answers()
        self._hand_over()

    def _give_answers(self) -> None:
        while self._arrived:
            done, result, error = self._arrived.popleft()
            done(result, error)


class _Watching:
    """A socket that the event loop watches."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: int, writing: bool, heard: Callable[[], None]) -> None:
        self._loop, self._socket, self._writing = loop, socket, writing
        loop.add_reader(socket, heard)
        if writing:
            loop.add_writer(socket, heard)

    def stop(self) -> None:
        self._loop.remove_reader(self._socket)
        if self._writing:
            self._loop.remove_writer(self._socket)

    @property
    def is_over(self) -> bool:
        return not self._loop.is_running()


class _Listener:
    """Who listens to the writer: the tuners to what is kept and undone, the answers to when they come."""

    def __init__(self, tuners: Tuners, exchange: Exchange) -> None:
        self.call_kept, self.call_refused = tuners.call_kept, tuners.call_refused
        self.committed, self.rolled_back = tuners.committed, tuners.rolled_back
        self.answered = exchange.answered


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
