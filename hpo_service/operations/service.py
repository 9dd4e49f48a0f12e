"""The service: the record, the tuners, and who is waiting; what the operations share."""

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
Done = Callable[[Any, BaseException | None], None]
Where = Callable[[Callable[[Record], Any]], Awaitable[Any]]  # a read runs: `reads.in_thread` or `reads.in_process`
Finish = Callable[[Any], Any]  # makes an answer of what a transaction returned, or a coroutine that has it later

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
        """reading: who reads for the server, by the database's own clock; drawing: who draws; without them threads do.

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
        self._running_tasks: set[asyncio.Task[None]] = set()  # calls that were not ready
        self.asks = WaitingAsks()
        self.feeds = Feeds()
        self.change_poller = ChangePoller(self)
        self._to_ask = SharedReadings(self._read_studies_to_ask)
        self.is_shutting_down = False
        self.reaped_at = time.monotonic()  # when the reaper last finished a look
        self.long_polls = 0  # asks that wait
        self.streams = 0  # of events
        self._seen: dict[str, SeenWorker] = {}
        self._known: set[str] = set()
        self._seen_lock = threading.Lock()
        self._saving = asyncio.Lock()

    def begin_shutdown(self) -> None:
        """Send everybody home who waits: the server is about to stop."""
        self.is_shutting_down = True
        self.asks.wake_all()
        self.feeds.wake_all()

    def close(self) -> None:
        self.database.close()

    # -- one study ----------------------------------------------------------------------------------------

    async def change(self, name: str, work: Callable[[StudyWork], T]) -> T:
        """Run `work` on the study in one transaction, after what time has changed, and settle it."""
        return await self.write(partial(self.changed, name, work), [name])

    def changed(self, name: str, work: Callable[[StudyWork], T], record: Transaction) -> T:
        """The same, inside a transaction."""
        changing = self.work_on(record, record.study(name))
        result = work(changing)
        changing.update_and_save()
        return result

    def work_on(self, record: Transaction, study: Study) -> StudyWork:
        """Begin to work on a study: first take back what has lapsed."""
        work = StudyWork(record, study, self.tuners)
        work.expire()
        test = record.sql().test(study) if study.sealed else None
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
        done: Done,
        *,
        runs_in_loop: bool = False,
        request_id: str | None = None,
        finish: Finish | None = None,
        again: bool = False,
    ) -> None:
        """Write without a task that waits: `done` takes the result or the error, later, in the event loop.

        runs_in_loop: the work is short and needs nothing but what is in memory. request_id: of an ask. finish: makes
        the answer of the result, right after the commit; a coroutine has it later. again: the second try, after another
        server has written the same rows in that moment; now the work reads them.
        """

        def written(outcome: Outcome) -> None:
            result, error, changes = outcome
            self._wake(changes, studies)
            if error is None:
                answer = result if finish is None else finish(result)
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
        """draws: that the call brings along."""
        trace = tracing.context()
        if trace is not None and not isinstance(work, Parts):
            work = tracing.carried(work)
        since = time.perf_counter()
        self.database.submit(WriteCall(work, studies, done, False, runs_in_loop, request_id, draws, since, trace))

    def _wake(self, changes: Sequence[StudyChange], studies: Sequence[str]) -> None:
        """Wake whoever waits for what a call has changed."""
        if changes and self.asks:
            for change in changes:
                self.asks.changed(change)
        if self.feeds:
            for name in studies:
                self.feeds.changed(name)

    @property
    def calls_waiting(self) -> int:
        """How many writing calls have no answer yet."""
        return self.database.calls_waiting

    # -- what is long to compute --------------------------------------------------------------------------

    def run_in_task(self, work: Coroutine[Any, Any, Any], done: Done) -> None:
        """Run the rest of a call as a task of its own."""

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
        """Make ready what the call lacks, and run it again; again, when something else has changed meanwhile."""
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
        async with self.long_draws.turn(needed.study) as at_once:
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
            result = outcome.result
            if outcome.error is None and finish is not None and not answer.done():
                result = finish(result)  # here: before the outcomes of later batches are delivered
            set_answer(answer, result, outcome.error)

        self._submit(work, studies, written, request_id=request_id, draws=draws)
        return await answer

    async def _read_history(self, study: Study) -> None:
        """Show the writer's tuner what is in the record, read elsewhere."""
        tuner, seen = await self.long_draws.history(study, draws=not self.tuners.needs(study).slow_draws)
        await self.write(lambda _: self.tuners.adopt(study, tuner, seen))

    async def _in_two(self, two: SplitTellAndAsk, studies: Sequence[str], request_id: str | None) -> Any:
        """What is told is kept, whatever becomes of the ask."""
        told = await self.write(two.tell, studies)
        try:
            asked = await self.write(two.ask, studies, request_id)
        except HpoError as error:
            log.warning("told, but nothing could be given out", studies=list(studies), error=error.detail)
            return two.joined(told, None)
        return two.joined(told, asked)

    def can_run_in_loop(self, name: str) -> bool:
        """Whether a worker's call on this study needs nothing but what is in memory, and no long computation."""
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
        """Read across studies, in a thread, after what time has changed."""
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
        """Some that may have something to give, and how many trials of each run; one reading for all who ask now."""
        return await self._to_ask.of((awaited, limit))

    async def _read_studies_to_ask(self, wanted: tuple[AnyStudy, int]) -> dict[str, int]:
        (kinds, only, has), limit = wanted
        return dict(await self.read_all(lambda record: record.studies_to_ask(kinds, only, dict(has), limit)))

    # -- time ---------------------------------------------------------------------------------------------

    async def expire_overdue(self, names: Sequence[str]) -> None:
        """Do what time alone asks for: take back lapsed leases, end studies whose seconds are over."""
        for name in names:
            await self.write(partial(self._expire_overdue_in, name), [name])

    async def expire_overdue_unless_held(self, names: Sequence[str]) -> None:
        """The same, but a study that somebody else holds is left as it stands: it keeps none of the others waiting."""
        for start in range(0, len(names), EXPIRED_AT_ONCE):
            some = names[start : start + EXPIRED_AT_ONCE]
            free = [name for name in some if name not in self.database.held_studies]
            outcomes = await asyncio.gather(*(self.expire_overdue([name]) for name in free), return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException) and not isinstance(outcome, StudyHeld):
                    raise outcome

    def _expire_overdue_in(self, name: str, record: Transaction) -> None:
        study = record.find_study(name)
        if study is not None:
            self.work_on(record, study).update_and_save()

    async def beat(self) -> None:
        """Show that this server can serve; what it has missed before counts in no lease."""
        self.database.uptime.beaten(await self.write(lambda record: record.beat()))

    # -- workers ------------------------------------------------------------------------------------------

    def record_worker_seen(self, worker_id: str, now: float, labels: Mapping[str, str] | None = None) -> None:
        """Note that the worker was heard of; it is saved later, in a transaction of its own.

        labels: that it has said; None: it has said nothing of them.
        Inside a call's transaction two servers could wait for each other's new workers in a circle.
        """
        with self._seen_lock:
            before = self._seen.get(worker_id)
            if labels is None and before is not None:
                labels = before.labels
            self._seen[worker_id] = SeenWorker(now, labels)

    def knows(self, worker_id: str) -> bool:
        return worker_id in self._known

    async def save_new_worker(self, worker_id: str) -> None:
        """Save what was heard at once when it comes from a worker not heard of before, or else a little later."""
        if self.knows(worker_id):
            return
        with contextlib.suppress(Unavailable):  # its row may be in the hands of a server that was stopped
            await self.save_seen_workers()

    async def save_seen_workers(self) -> None:
        async with self._saving:
            with self._seen_lock:
                seen, self._seen = self._seen, {}
            if not seen:
                return
            try:
                await self.write(lambda record: record.sql().workers.see(seen))
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
