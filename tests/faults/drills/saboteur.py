"""Breaks one guarantee of a server before it serves: what shows that a drill can fail.

Only the process of the drill is changed, never the product. Where it can be, the change is made to the SQL that goes to
the database, which stays the same when the code around it is rebuilt. A change that no longer finds its place raises
or has no effect; either way the run that expects violations says so.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any


def put_in(name: str) -> None:
    SABOTAGES[name]()


def no_attempt_check() -> None:
    """Whoever ever held a trial may report and tell."""
    from hpo_service.domain.trial import Lifecycle

    assert hasattr(Lifecycle, "_check_holder")
    Lifecycle._check_holder = lambda self, attempt: None  # type: ignore[method-assign]


def leases_never_end() -> None:
    """A trial whose worker died stays RUNNING for ever."""
    from hpo_service.domain.trial import Lease

    Lease.is_expired = lambda self, now, outages=(): False  # type: ignore[method-assign]


def no_clock_clamp() -> None:
    """A lease ends at its end, however far away a clock that has stepped back made it."""
    from hpo_service.domain.trial import Lease

    Lease.is_expired = lambda self, now, outages=(): self.ends_at(outages) <= now  # type: ignore[method-assign]


def answer_before_commit() -> None:
    """The answer leaves a moment before the commit."""
    import asyncio

    from hpo_service.operations.service import Service
    from hpo_service.store.inline_lane import InlineLane
    from hpo_service.store.pipeline_lane import PipelineLane

    begin = Service.begin

    def hasty(self: Any, work: Callable[[Any], Any], studies: Any, done: Any, **how: Any) -> None:
        loop = asyncio.get_running_loop()

        finish = how.pop("finish", None)

        def say(result: Any, error: BaseException | None) -> None:
            answer = result if error is not None or finish is None else finish(result)
            if asyncio.iscoroutine(answer):
                self.run_in_task(answer, done)
            else:
                done(answer, error)

        def answering(record: Any) -> Any:
            try:
                result = work(record)
            except BaseException as error:
                loop.call_soon_threadsafe(say, None, error)
                raise
            loop.call_soon_threadsafe(say, result, None)
            time.sleep(0.02)
            return result

        begin(self, answering, studies, lambda *_: None, **how)

    Service.begin = hasty  # type: ignore[method-assign]
    for lane in (InlineLane, PipelineLane):
        lane.take = lambda self, calls: 0  # type: ignore[method-assign]


def commit_errors_swallowed() -> None:
    """A commit that fails is taken for one that did not."""
    from sqlalchemy.engine.default import DefaultDialect

    commit = DefaultDialect.do_commit

    def cheerful(self: Any, connection: Any) -> None:
        try:
            commit(self, connection)
        except Exception:
            connection.rollback()

    DefaultDialect.do_commit = cheerful  # type: ignore[method-assign]


def forgets_answers() -> None:
    """A repeated ask is a new one."""
    from hpo_service.operations import asking

    first = iter(range(2**62))
    look = asking.ask_in_transaction

    def forgetful(service: Any, name: str, ask: Any, transaction: Any) -> Any:
        renamed = ask.model_copy(update={"request_id": f"as-if-new-{next(first)}"})
        return look(service, name, renamed, transaction)

    asking.ask_in_transaction = forgetful


def replays_refused() -> None:
    """A tell that is repeated counts as a second result."""
    from hpo_service.domain.trial import Told

    Told.same = lambda self, other: False  # type: ignore[method-assign]


def no_fsync() -> None:
    """SQLite leaves it to the operating system when anything reaches the disk."""
    import sqlite3

    connect = sqlite3.connect

    class Careless(sqlite3.Connection):
        def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
            return super().execute(statement.replace("synchronous=FULL", "synchronous=NORMAL"), *arguments)

    def opened(*arguments: Any, **options: Any) -> sqlite3.Connection:
        return connect(*arguments, **{**options, "factory": Careless})

    sqlite3.connect = opened  # type: ignore[assignment]
    sqlite3.dbapi2.connect = opened  # type: ignore[assignment]


def postgres_commits_later() -> None:
    """PostgreSQL acknowledges commits that it has not written yet."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    @event.listens_for(Engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = off")
        connection.commit()


def no_row_locks() -> None:
    """Two servers work on one study at once."""
    from hpo_service.store import one_round_trip

    _rewrite_sql((" FOR UPDATE", ""))
    numbered = one_round_trip._numbered  # what goes to PostgreSQL past SQLAlchemy
    one_round_trip._numbered = lambda text: numbered(text.replace(" FOR UPDATE", ""))  # type: ignore[assignment]


def no_migration_lock() -> None:
    """Servers that start at once migrate at once."""
    _rewrite_sql(("pg_advisory_xact_lock(", "abs("))


def no_file_lock() -> None:
    """Several servers open one SQLite file."""
    import fcntl

    from hpo_service.store import inode_lock

    assert hasattr(inode_lock, "_locked")
    inode_lock._locked = lambda descriptor: True
    fcntl.flock = lambda *_: None


def deaf() -> None:
    """SIGTERM does nothing."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def slow_ones_stay() -> None:
    """No deadline for a request, and nobody makes room."""
    from hpo_service.api.connections import ConnectionLimiter

    assert hasattr(ConnectionLimiter, "close_overdue")
    assert hasattr(ConnectionLimiter, "close_least_useful")
    ConnectionLimiter.close_overdue = lambda self, now: None  # type: ignore[method-assign]
    ConnectionLimiter.close_least_useful = lambda self: False  # type: ignore[method-assign]


def frameworks_refusals() -> None:
    """A call that breaks the rules is refused by the framework, in its own words."""
    from fastapi.exceptions import RequestValidationError

    from hpo_service.api import problems

    install = problems.install

    def careless(app: Any) -> None:
        install(app)
        app.exception_handlers.pop(RequestValidationError)

    problems.install = careless


def scopes_unchecked() -> None:
    """Any key opens every route."""
    from hpo_service.api import auth

    assert hasattr(auth, "_check_scope")
    auth._check_scope = lambda *_: None


def keys_by_count() -> None:
    """The keys are read again only when there are more or fewer of them, or of the revoked ones."""
    import sqlalchemy as sa

    from hpo_service.store import key_table

    counts = sa.text("SELECT count(*), count(revoked_at) FROM hpo_keys")
    assert key_table._STATE
    key_table._STATE = dict.fromkeys(key_table._STATE, counts)


def hasty_end() -> None:
    """SIGTERM ends the process in the middle of whatever it does, with answers that left before their commit."""
    answer_before_commit()
    uvicorn = importlib.import_module("uvicorn")
    uvicorn.Server.handle_exit = lambda *_: os._exit(0)


def says_nothing() -> None:
    """What fails is answered, and nobody else hears of it."""
    from hpo_service import log_format
    from hpo_service.api import request_log
    from hpo_service.logged_state import LoggedState

    assert hasattr(request_log, "failed")
    assert hasattr(LoggedState, "failed")
    log_format.limited.allows = lambda kind: False  # type: ignore[method-assign]
    log_format.limited.tell = lambda: None  # type: ignore[method-assign]
    LoggedState.failed = lambda self, **says: None  # type: ignore[method-assign]


def takes_all_that_comes() -> None:
    """A connection parses requests before their turn, and keeps trailers of any number and size."""
    from hpo_service.api import connections
    from hpo_service.api.fast_path import Trailers

    connection: Any = connections.BoundedConnection
    for name in ("_is_occupied", "_body_waits", "_count_buffered"):
        assert hasattr(connection, name)
    connection._is_occupied = lambda self: False
    connection._body_waits = lambda self: bool(self.pipeline)  # as uvicorn pauses: until one of them is answered
    connection._count_buffered = lambda self: None
    connections.LARGEST_END = connections.DRAINED_AND_KEPT = 2**40
    Trailers.append = list.append  # type: ignore[assignment, method-assign]


def checks_each_time() -> None:
    """Every call of /readyz is a commit."""
    import asyncio

    from hpo_service.api.readiness import Readiness

    assert hasattr(Readiness, "faults")
    Readiness.faults = lambda self: asyncio.to_thread(self._check)  # type: ignore[method-assign]


def absence_is_silence() -> None:
    """A lease ends at its end, though nobody could have renewed it."""
    from hpo_service.domain.trial import Lease

    assert hasattr(Lease, "ends_at")
    Lease.ends_at = lambda self, outages=(): self.expires_at  # type: ignore[method-assign]


def locks_are_waited_for() -> None:
    """The writer waits for a lock for as long as somebody holds it, and all studies with it."""
    from hpo_service.store import engine

    assert hasattr(engine, "LOCK_SECONDS")
    engine.LOCK_SECONDS, engine.IDLE_IN_TRANSACTION_SECONDS = 0.0, 30


def locks_names() -> None:
    """The file beside the database is locked, which has a name and not an inode."""
    from hpo_service.store import inode_lock

    assert hasattr(inode_lock, "_locked")
    inode_lock._locked = lambda descriptor: False
    inode_lock.InodeLock.lock_file = property(  # type: ignore[method-assign,assignment]
        lambda self: self._said.with_name(self._said.name + ".lock")
    )


def file_unwatched() -> None:
    """Nobody looks whether the database is where it was opened."""
    from hpo_service.store import database_file

    for name in ("check", "check_all"):
        assert hasattr(database_file.DatabaseFile, name)
        setattr(database_file.DatabaseFile, name, lambda self: None)


def unbounded_trials() -> None:
    """Whatever a body holds is kept with its trial, and every answer about the trial carries all of it."""
    import asyncio

    from hpo_service.domain import sizes
    from hpo_service.operations import events
    from hpo_service.reading import trial_pieces
    from hpo_service.reading.reading_process import ReadingProcess
    from hpo_service.store import report_rows, study_cache, trial_reports, trial_rows

    endless = 2**40
    sizes.REPORT_METRICS = endless
    for module, names in (
        (trial_reports, ("TRIAL_REPORTS", "CARRIED_REPORTS", "MOST_STEPS")),
        (report_rows, ("PIECE", "CARRIED_REPORTS")),
        (trial_rows, ("PIECE",)),
        (events, ("CARRIED_REPORTS",)),
        (trial_pieces, ("PIECE", "PAGE")),
        (study_cache, ("MOST_BYTES",)),
    ):
        for name in names:
            assert hasattr(module, name)
            setattr(module, name, endless)

    async def never(_self: Any) -> None:
        await asyncio.Event().wait()

    ReadingProcess.keep = never  # type: ignore[method-assign, assignment]  # it would have the bounds


def deletes_in_one_go() -> None:
    """A study's rows are deleted in the transaction that deletes it."""
    import sqlalchemy as sa

    from hpo_service.store.record import Record
    from hpo_service.store.tables import answers, attempts, reports, rounds, studies, tests, trials

    def delete_study(self: Any, study: Any) -> None:
        ids = sa.select(trials.c.id).where(trials.c.study_id == study.id).scalar_subquery()
        for table in (reports, attempts):
            self._db.execute(sa.delete(table).where(table.c.trial_id.in_(ids)))
        for table in (answers, tests, rounds, trials):
            self._db.execute(sa.delete(table).where(table.c.study_id == study.id))
        self._db.execute(sa.delete(studies).where(studies.c.id == study.id))

    assert hasattr(Record, "delete_study")
    Record.delete_study = delete_study  # type: ignore[method-assign]


def reads_the_whole_curve() -> None:
    """Each call that is judged begins with all reports of its trial."""
    from hpo_service.operations import workers
    from hpo_service.store.transaction import Transaction

    assert hasattr(Transaction, "reports")
    judge = workers._report_to_pruner

    def judge_all(work: Any, trial: Any, new: Any) -> Any:
        reports = {report.step: report.value for report in work.transaction.reports(work.study, trial)}
        max(reports, default=0)
        min(reports.values(), default=0.0)
        return judge(work, trial, new)

    workers._report_to_pruner = judge_all


def commands_outlive() -> None:
    """A command of `hpo agent` knows nothing of the agent's end."""
    from pathlib import Path

    from hpo_worker import command

    assert command.WATCHDOG.exists()
    command.WATCHDOG = Path(__file__).with_name("unwatched_command.py")


def nobody_sweeps() -> None:
    """What a server was writing when it died stays where it is."""
    from hpo_service.operations.artifacts import Artifacts

    async def sweep(_self: Any) -> None: ...

    assert hasattr(Artifacts, "sweep")
    Artifacts.sweep = sweep  # type: ignore[method-assign, assignment]


def keeps_what_was_lost() -> None:
    """An artifact is acknowledged though its folder or its bucket did not take all of it."""
    from hpo_service.domain.errors import Unavailable
    from hpo_service.objects import bucket_store, folder_store

    for upload in (bucket_store._BucketUpload, folder_store._FileUpload):
        for name in ("write", "keep"):
            setattr(upload, name, _whatever_comes(getattr(upload, name), Unavailable))


def _whatever_comes(method: Callable[..., None], error: type[Exception]) -> Callable[..., None]:
    def careless(*arguments: Any) -> None:
        with contextlib.suppress(error):
            method(*arguments)

    return careless


def _rewrite_sql(*changes: tuple[str, str]) -> None:
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    @event.listens_for(Engine, "before_cursor_execute", retval=True)
    def rewritten(_c: Any, _cursor: Any, statement: str, parameters: Any, _ctx: Any, _many: bool) -> tuple[str, Any]:
        for before, after in changes:
            statement = statement.replace(before, after)
        return statement, parameters


def every_change_wakes_all() -> None:
    """Whatever changes wakes whoever waits, each stream reads by itself, and all look twice a second anyway."""
    import itertools

    from hpo_service.domain.fast_replace import fast_replace
    from hpo_service.operations import feeds
    from hpo_service.operations.change_poller import ChangePoller
    from hpo_service.operations.waiting import WaitingAsks

    ids = itertools.count(2**40)
    followed = feeds.Feeds.followed

    def change_all(self: Any, _name: str = "") -> None:
        for of_one in self._of.values():
            for feed in of_one.values():
                feed.change()

    async def poll(self: Any) -> None:
        self._service.asks.wake_all()
        change_all(self._service.feeds)

    assert hasattr(WaitingAsks, "notify")
    assert hasattr(ChangePoller, "poll")
    WaitingAsks.notify = lambda self, change: self.wake_all()  # type: ignore[method-assign]
    ChangePoller.poll = poll  # type: ignore[method-assign]
    feeds.Feeds.notify = change_all  # type: ignore[method-assign, assignment]
    feeds.Feeds.followed = lambda self, study, read: followed(self, fast_replace(study, id=next(ids)), read)  # type: ignore[method-assign]
    feeds.READ_EVERY_SECONDS = 0.0


def draws_in_the_writer() -> None:
    """Every draw is made inside of its call's transaction."""
    from hpo_service.operations import tuners

    assert hasattr(tuners, "is_quick")
    tuners.is_quick = lambda spec: True


def retried_replicates_forgotten() -> None:
    """A confirmation does not wait for a replicate that was given back."""
    from hpo_service.domain import confirmation

    assert "retries" in confirmation._WAITING
    confirmation._WAITING = ("queued",)  # type: ignore[assignment]


SABOTAGES: dict[str, Callable[[], None]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        no_attempt_check,
        leases_never_end,
        no_clock_clamp,
        answer_before_commit,
        commit_errors_swallowed,
        forgets_answers,
        replays_refused,
        no_fsync,
        postgres_commits_later,
        no_row_locks,
        no_migration_lock,
        no_file_lock,
        deaf,
        slow_ones_stay,
        frameworks_refusals,
        scopes_unchecked,
        hasty_end,
        says_nothing,
        keys_by_count,
        takes_all_that_comes,
        checks_each_time,
        absence_is_silence,
        locks_are_waited_for,
        locks_names,
        file_unwatched,
        unbounded_trials,
        deletes_in_one_go,
        reads_the_whole_curve,
        commands_outlive,
        every_change_wakes_all,
        draws_in_the_writer,
        retried_replicates_forgotten,
        nobody_sweeps,
        keeps_what_was_lost,
    )
}

if __name__ != "__main__" and "HPO_DRILL_SABOTAGE" in os.environ and "pytest" in sys.modules:
    put_in(os.environ["HPO_DRILL_SABOTAGE"])  # loaded as a plugin, to break the guarantee in a run of tests
