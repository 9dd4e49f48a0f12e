"""What the operations share: the database, the tuners, and the callers that wait."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from types import CoroutineType
from typing import Any, TypeVar

import structlog

from hpo_service import tracing
from hpo_service.domain.errors import HpoError, StudyHeld, Unavailable
from hpo_service.domain.study import Study
from hpo_service.operations.change_poller import ChangePoller
from hpo_service.operations.drawing_process import DrawingProcess
from hpo_service.operations.feeds import Feeds
from hpo_service.operations.long_draws import PATIENCE_SECONDS, LongDraws, too_slow
from hpo_service.operations.not_ready import Draws, NotReady, SplitTellAndAsk
from hpo_service.operations.shared_readings import SharedReadings
from hpo_service.operations.study_work import StudyWork
from hpo_service.operations.tuners import Tuners
from hpo_service.operations.waiting import AnyStudy, WaitingAsks
from hpo_service.reading import readings
from hpo_service.reading.figures import KnownFigures
from hpo_service.reading.reading_process import ReadingProcess
from hpo_service.reading.reads import Reads
from hpo_service.store.database import Database
from hpo_service.store.engine import Clock, WrittenMeanwhile
from hpo_service.store.record import Record, StudyChange
from hpo_service.store.transaction import Transaction
from hpo_service.store.worker_rows import SeenWorker
from hpo_service.store.write_call import NO_DRAWS, Outcome, Parts, Work, WriteCall

log = structlog.get_logger()

T = TypeVar("T")
Answered = Callable[[Any, BaseException | None], None]
Where = Callable[[Callable[[Record], Any]], Awaitable[Any]]  # runs a read: `reads.in_thread` or `reads.in_process`
Finish = Callable[[Any], Any]  # turns a transaction's result into the answer, or a coroutine that returns it

MOST_WORKERS_IN_MEMORY = 100_000
EXPIRED_AT_ONCE = 50  # studies
FEW_PARTS = 16  # of one call, in the event loop


class Service:
    """Open for one server process; its methods are coroutines of one event loop."""

    def __init__(
        self,
        database_url: str,
        clock: Clock | None = None,
        reading: ReadingProcess | None = None,
        drawing: DrawingProcess | None = None,
    ) -> None:
        """reading, drawing: the processes that read, by the database's clock, and draw; without them threads do.

        Raise DatabaseInUse, SchemaTooNew, Unavailable, ValueError (the URL).
        """
        self.tuners = Tuners()
        self.database = Database(database_url, clock, self.tuners.forget_all_of)
        self.reading = reading
        self.reads = Reads(self.database, reading)
        for process in (reading, drawing):
            if process is not None and self.database.file is not None:
                process.file = self.database.file.identity
        self.figures = KnownFigures(self.database)
        self.long_draws = LongDraws(self.database, drawing)
        self._running_tasks: set[asyncio.Task[None]] = set()  # what is left of calls after their transaction
        self.asks = WaitingAsks()
        self.feeds = Feeds()
        self.change_poller = ChangePoller(self)
        self._to_ask = SharedReadings(self._read_studies_to_ask)
        self.is_shutting_down = False
        self.reaped_at = time.monotonic()  # when the reaper last finished a pass
        self.long_polls = 0  # asks that wait
        self.streams = 0  # of events
        self._seen: dict[str, SeenWorker] = {}
        self._known: set[str] = set()
        self._seen_lock = threading.Lock()
        self._saving = asyncio.Lock()

    def begin_shutdown(self) -> None:
        """Wake all callers that wait, so that they get an answer before the server stops."""
        self.is_shutting_down = True
        self.asks.wake_all()
        self.feeds.wake_all()

    def close(self) -> None:
        self.database.close()

    # -- one study ----------------------------------------------------------------------------------------

    async def change(self, name: str, work: Callable[[StudyWork], T]) -> T:
        """Expire the study's leases, run `work`, update and save the study: all in one transaction."""
        return await self.write(partial(self.change_in, name, work), [name])

    def change_in(self, name: str, work: Callable[[StudyWork], T], transaction: Transaction) -> T:
        """The same, inside a transaction."""
        changing = self.work_on(transaction, transaction.study(name))
        result = work(changing)
        changing.update_and_save()
        return result

    def work_on(self, transaction: Transaction, study: Study) -> StudyWork:
        """Begin to work on a study: first take back the leases that have run out."""
        work = StudyWork(transaction, study, self.tuners)
        work.expire()
        test = transaction.sql().test(study) if study.sealed else None
        if test is not None:
            work.expire_test_lease(test)
        return work

    async def write(
        self,
        work: Callable[[Transaction], T],
        studies: Sequence[str] = (),
        request_id: str | None = None,
        finish: Finish | None = None,
    ) -> T:
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.begin(work, studies, partial(set_answer, answer), request_id=request_id, finish=finish)
        return await answer

    async def write_parts(self, parts: Parts, studies: Sequence[str]) -> list[Outcome]:
        """Several in one commit, each with its own outcome."""
        answer: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        runs_in_loop = (
            len(parts) <= FEW_PARTS and not self.database.is_shared and all(map(self.can_run_in_loop, studies))
        )

        def written(outcome: Outcome) -> None:
            self._wake(outcome.changes, studies)
            set_answer(answer, outcome.result, outcome.error)

        self._submit(parts, studies, written, runs_in_loop)
        return await answer

    def begin(
        self,
        work: Work,
        studies: Sequence[str],
        done: Answered,
        *,
        runs_in_loop: bool = False,
        request_id: str | None = None,
        finish: Finish | None = None,
        again: bool = False,
    ) -> None:
        """Submit a write without a task for it; `done` is called later with the result or the error, in the event loop.

        runs_in_loop: the work is short and needs nothing but what is in memory. request_id: of an ask. finish: called
        with the result right after the commit; returns the answer, or a coroutine that does. again: the second try,
        after another server has written the same rows at that moment: now the work reads them.
        """

        def written(outcome: Outcome) -> None:
            result, error, changes = outcome
            self._wake(changes, studies)
            if error is None:
                try:
                    answer = result if finish is None else finish(result)
                except Exception as fault:
                    done(None, fault)
                    return
                if isinstance(answer, CoroutineType):
                    self.run_in_task(answer, done)
                else:
                    done(answer, None)
            elif isinstance(error, NotReady | SplitTellAndAsk):
                self.run_in_task(self._made_ready(work, studies, request_id, error, finish), done)
            elif isinstance(error, WrittenMeanwhile) and not again:
                self.begin(work, studies, done, request_id=request_id, finish=finish, again=True)
            else:
                done(None, error)

        self._submit(work, studies, written, runs_in_loop, request_id)

    def _submit(
        self,
        work: Work | Parts,
        studies: Sequence[str],
        done: Callable[[Outcome], None],
        runs_in_loop: bool = False,
        request_id: str | None = None,
        draws: Draws = NO_DRAWS,
    ) -> None:
        """draws: computed before, for the call to use."""
        trace = tracing.context()
        if trace is not None and not isinstance(work, Parts):
            work = tracing.carried(work)
        since = time.perf_counter()
        self.database.submit(WriteCall(work, studies, done, False, runs_in_loop, request_id, draws, since, trace))

    def _wake(self, changes: Sequence[StudyChange], studies: Sequence[str]) -> None:
        """Wake the asks and event streams that wait for what a call has changed."""
        if changes and self.asks:
            for change in changes:
                self.asks.notify(change)
        if self.feeds:
            for name in studies:
                self.feeds.notify(name)

    @property
    def calls_waiting(self) -> int:
        """How many writing calls have no answer yet."""
        return self.database.calls_waiting

    # -- what is long to compute --------------------------------------------------------------------------

    def run_in_task(self, work: Coroutine[Any, Any, Any], done: Answered) -> None:
        """Run the rest of a call in a task; call `done` with its result or error."""

        async def rest() -> None:
            try:
                result = await work
            except BaseException as error:
                done(None, error)
                if not isinstance(error, Exception):
                    raise
            else:
                done(result, None)

        task = asyncio.create_task(rest())
        self._running_tasks.add(task)
        task.add_done_callback(self._running_tasks.discard)

    async def _made_ready(
        self,
        work: Work,
        studies: Sequence[str],
        request_id: str | None,
        needed: NotReady | SplitTellAndAsk,
        finish: Finish | None,
    ) -> Any:
        """Compute or read what the call lacks, outside of the writer, and run it again, repeatedly if need be."""
        if isinstance(needed, SplitTellAndAsk):
            result = await self._in_two(needed, studies, request_id)
            answer = result if finish is None else finish(result)
        elif needed.wanted:
            answer = await self._with_draws(work, studies, request_id, needed, finish)
        else:
            await self._read_history(needed.study)
            answer = await self.write(work, studies, request_id, finish)
        return await answer if isinstance(answer, CoroutineType) else answer

    async def _with_draws(
        self, work: Work, studies: Sequence[str], request_id: str | None, needed: NotReady, finish: Finish | None
    ) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        async with self.long_draws.draw_lock(needed.study) as at_once:
            lacks = needed if at_once else None  # a call before may have changed what is lacking
            draws: Draws = NO_DRAWS
            again = False
            while True:
                if lacks is not None and lacks.wanted:
                    draws = await self.long_draws.draws(lacks, deadline)
                elif lacks is not None:
                    await self._read_history(lacks.study)
                try:
                    return await self._written(work, studies, request_id, draws, finish)
                except WrittenMeanwhile:
                    if again:
                        raise
                    lacks, again = None, True
                except NotReady as error:
                    lacks = error
                    if time.monotonic() > deadline:
                        raise too_slow(lacks.study) from None

    async def _written(
        self, work: Work, studies: Sequence[str], request_id: str | None, draws: Draws, finish: Finish | None
    ) -> Any:
        """Write once; return what `finish` makes of the result, a coroutine too. Raise NotReady as any other error."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def written(outcome: Outcome) -> None:
            self._wake(outcome.changes, studies)
            result, error = outcome.result, outcome.error
            if error is None and finish is not None and not answer.done():
                try:
                    result = finish(result)  # here: before the outcomes of later batches are delivered
                except Exception as fault:
                    error = fault
            set_answer(answer, result, error)

        self._submit(work, studies, written, request_id=request_id, draws=draws)
        return await answer

    async def _read_history(self, study: Study) -> None:
        """Read the study's history outside of the writer, into a tuner that the writer then takes."""
        known = await self.long_draws.history(study, draws=not self.tuners.needs(study).slow_draws)
        await self.write(lambda _: self.tuners.adopt(study, *known))

    async def _in_two(self, two: SplitTellAndAsk, studies: Sequence[str], request_id: str | None) -> Any:
        """Write the tell, then the ask. If the ask fails, the tell is kept."""
        told = await self.write(two.tell, studies)
        try:
            asked = await self.write(two.ask, studies, request_id)
        except HpoError as error:
            log.warning("told, but nothing could be given out", studies=list(studies), error=error.detail)
            return two.joined(told, None)
        return two.joined(told, asked)

    def can_run_in_loop(self, name: str) -> bool:
        """Whether study and tuner are in memory, so that a worker's call may run in the event loop. Only a hint."""
        study = self.database.remembered(name)
        return study is not None and self.tuners.has_nothing_to_read(study)

    # -- reading ------------------------------------------------------------------------------------------

    async def read(self, name: str, work: Callable[[Record, Study], T]) -> T:
        """Read the study as it is now, in a thread: a lease that has run out is taken back first."""
        return await self._read(name, work, self.reads.in_thread)

    async def read_in_process(self, name: str, work: Callable[[Record, Study], T]) -> T:
        """The same in the reading process."""
        return await self._read(name, work, self.reads.in_process)

    async def _read(self, name: str, work: Callable[[Record, Study], T], where: Where) -> T:
        overdue, result = await where(partial(readings.unless_overdue, name, work))
        if not overdue:
            return result  # type: ignore[no-any-return]
        await self.expire_overdue([name])
        return await where(partial(readings.of_study, name, work))  # type: ignore[no-any-return]

    async def read_all(self, work: Callable[[Record], T]) -> T:
        """Read across studies, in a thread; overdue leases and limits of seconds are dealt with first."""
        return await self._read_all(work, self.reads.in_thread)

    async def read_all_in_process(self, work: Callable[[Record], T]) -> T:
        """The same in the reading process."""
        return await self._read_all(work, self.reads.in_process)

    async def _read_all(self, work: Callable[[Record], T], where: Where) -> T:
        overdue, result = await where(partial(readings.unless_any_overdue, work))
        if not overdue:
            return result  # type: ignore[no-any-return]
        await self.expire_overdue_unless_held(overdue)
        return await where(work)  # type: ignore[no-any-return]

    async def studies_to_ask(self, awaited: AnyStudy, limit: int) -> dict[str, int]:
        """Some studies that may have trials to give, each with how many run; one read for all who ask now."""
        return await self._to_ask.of((awaited, limit))

    async def _read_studies_to_ask(self, wanted: tuple[AnyStudy, int]) -> dict[str, int]:
        (kinds, only, has), limit = wanted
        return dict(await self.read_all(lambda record: record.studies_to_ask(kinds, only, dict(has), limit)))

    # -- time ---------------------------------------------------------------------------------------------

    async def expire_overdue(self, names: Sequence[str]) -> None:
        """Take back leases that have run out, and end studies whose limit of seconds is reached."""
        for name in names:
            await self.write(partial(self._expire_overdue_in, name), [name])

    async def expire_overdue_unless_held(self, names: Sequence[str]) -> None:
        """The same, without studies that another transaction holds: the others do not wait for these."""
        for start in range(0, len(names), EXPIRED_AT_ONCE):
            some = names[start : start + EXPIRED_AT_ONCE]
            free = [name for name in some if name not in self.database.held_studies]
            outcomes = await asyncio.gather(*(self.expire_overdue([name]) for name in free), return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException) and not isinstance(outcome, StudyHeld):
                    raise outcome

    def _expire_overdue_in(self, name: str, transaction: Transaction) -> None:
        study = transaction.find_study(name)
        if study is not None:
            self.work_on(transaction, study).update_and_save()

    async def beat(self) -> None:
        """Record that this server serves; an outage before does not count against leases."""
        self.database.uptime.beaten(await self.write(lambda transaction: transaction.beat()))

    # -- workers ------------------------------------------------------------------------------------------

    def record_worker_seen(self, worker_id: str, now: float, labels: Mapping[str, str] | None = None) -> None:
        """Note in memory that the worker has called; `save_seen_workers` writes it, in another transaction.

        labels: None if the call says nothing of them.
        If calls wrote the rows of new workers in their own transactions, two servers could deadlock.
        """
        with self._seen_lock:
            before = self._seen.get(worker_id)
            if labels is None and before is not None:
                labels = before.labels
            self._seen[worker_id] = SeenWorker(now, labels)

    def knows(self, worker_id: str) -> bool:
        return worker_id in self._known

    async def save_new_worker(self, worker_id: str) -> None:
        """Save at once that a worker was seen, if it is a new one; the others are saved a little later."""
        if self.knows(worker_id):
            return
        with contextlib.suppress(Unavailable):  # its row may be locked by a server that was stopped
            await self.save_seen_workers()

    async def save_seen_workers(self) -> None:
        async with self._saving:
            with self._seen_lock:
                seen, self._seen = self._seen, {}
            if not seen:
                return
            try:
                await self.write(lambda transaction: transaction.sql().workers.see(seen))
            except BaseException:
                with self._seen_lock:
                    newer, self._seen = self._seen, seen
                for worker_id, again in newer.items():
                    self.record_worker_seen(worker_id, *again)
                raise
            if len(self._known) >= MOST_WORKERS_IN_MEMORY:
                self._known.clear()
            self._known.update(seen)


def set_answer(answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)
