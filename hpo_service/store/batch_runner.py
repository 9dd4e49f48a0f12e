"""Runs batches on the writer's one connection, one at a time, in the thread that holds the write lock."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Collection, Sequence

import sqlalchemy as sa

from hpo_service.domain.errors import Unavailable
from hpo_service.store.batch_notes import BatchNotes
from hpo_service.store.database_file import DatabaseFile
from hpo_service.store.engine import (
    Clock,
    begin,
    in_words_of_the_store,
    is_full,
    is_lock_timeout,
    is_locked,
    one_line,
    translated_error,
)
from hpo_service.store.held_studies import refusal
from hpo_service.store.one_round_trip import NotThisSession
from hpo_service.store.study_cache import StudyCache
from hpo_service.store.study_lock import StudyLockTimeout, WouldBlock
from hpo_service.store.transaction import Transaction
from hpo_service.store.write_batch import WriteBatch
from hpo_service.store.write_call import (
    FinishedBatch,
    Outcome,
    Parts,
    Work,
    WriteCall,
    all_failed,
    is_refused,
    studies_and_requests,
)

CONNECTION_IDLE_SECONDS = 1.0
LOCKED_PATIENCE_SECONDS = 10.0
LOOK_AGAIN_SECONDS = 0.005

OnRollback = Callable[[Collection[int]], None]


class Locked(Exception):
    """Another process holds the lock of SQLite's file, and `wait_for_lock` is false."""


class BatchRunner:
    """write_lock: held while a batch runs, until its calls have their outcomes.

    thread_is_waiting: the writer thread wants the lock. The event loop takes no batch then, or it would never get it.
    """

    def __init__(
        self,
        engine: sa.Engine,
        cache: StudyCache,
        clock: Clock | None,
        file: DatabaseFile | None,
        on_rollback: OnRollback,
    ) -> None:
        """clock: None is the database's own. file: SQLite's, checked to be in its place after each commit.
        on_rollback: called with the ids of studies whose tuner has seen trials that were not committed.
        """
        self.engine = engine
        self.is_shared = engine.dialect.name != "sqlite"  # other servers may write the same database
        self.write_lock = threading.Lock()
        self.thread_is_waiting = False
        self.commit_seconds = 0.0  # average of the last commits
        self.notes = BatchNotes()
        self._cache = cache
        self._clock = clock
        self._file = file
        self._on_rollback = on_rollback
        self._connection: sa.Connection | None = None
        self._used_at = 0.0

    @property
    def is_busy(self) -> bool:
        return self.thread_is_waiting or self.write_lock.locked()

    def run(self, calls: Sequence[WriteCall], *, wait_for_lock: bool) -> FinishedBatch:
        """Run the calls in one transaction and commit. What the database refuses is an outcome of its call.

        wait_for_lock: for SQLite's file lock; else raise Locked. Raise StudyLockTimeout.
        """
        batch = None
        try:
            connection = self._begun(wait_for_lock)
            has_begun = time.perf_counter()
            batch = WriteBatch(connection, self._cache, self._clock, shared=self.is_shared)
            batch.lock(*studies_and_requests(calls))
            outcomes = [self._run_call(batch, call) for call in calls]
            began = time.perf_counter()
            batch.commit()
            took = time.perf_counter() - began
            self.commit_seconds += 0.2 * (took - self.commit_seconds)
            if self._file is not None:
                self._file.check()
        except Locked:
            raise
        except BaseException as error:
            self.release_connection()
            if isinstance(error, StudyLockTimeout):
                raise
            self.forget(batch)
            if isinstance(error, NotThisSession):
                return self.run(calls, wait_for_lock=True)
            if len(calls) > 1 and (is_full(error) or isinstance(error, sa.exc.IntegrityError | sa.exc.DataError)):
                # A call's rows were refused at the end, or did not fit on the disk: run each call by itself to find it.
                return self._each_alone(calls)
            error = translated_error(error)
            self.notes.failed(calls, error)
            return self.record_refusals(all_failed(calls, in_words_of_the_store(error)))
        self.notes.committed(calls, has_begun, took, len(calls))
        return self.record_refusals(FinishedBatch(calls, outcomes))

    def _each_alone(self, calls: Sequence[WriteCall]) -> FinishedBatch:
        written = []
        for call in calls:
            try:
                written.append(self.run([call], wait_for_lock=True))
            except StudyLockTimeout:
                written.append(self.record_refusals(all_failed([call], refusal(call.studies))))
        return FinishedBatch(calls, [outcome for one in written for outcome in one.outcomes])

    def run_optimistically(self, calls: Sequence[WriteCall]) -> tuple[WriteBatch, list[Outcome]] | None:
        """Run the calls on the cache, without a lock, up to the first one that needs SQL. Nothing is sent yet.

        Return the batch to be sent and the outcomes of the calls in it; None if already the first one needs SQL.
        """
        connection = self._connection_at_hand()
        if connection is None:
            return None
        batch = WriteBatch(connection, self._cache, self._clock, shared=True, optimistic=True)
        outcomes: list[Outcome] = []
        try:
            batch.lock(*studies_and_requests(calls))
            for call in calls:
                outcomes.append(self._run_call(batch, call))  # noqa: PERF401 - those before one that fails are kept
        except WouldBlock:
            pass
        except BaseException:
            self.forget(batch)
            raise
        return (batch, outcomes) if outcomes else None

    def record_refusals(self, written: FinishedBatch) -> FinishedBatch:
        """Record calls refused with Unavailable or StudyHeld: leases of their studies are prolonged by that time."""
        for call, outcome in zip(written.calls, written.outcomes, strict=True):
            if is_refused(call, outcome):
                for study in call.studies:
                    self._cache.refusals.note(study, time.perf_counter() - call.since if call.since else 0.0)
        return written

    def forget(self, batch: WriteBatch | None) -> None:
        """The batch failed: empty the study cache, and drop the tuners that have seen its trials."""
        self._cache.forget_all()
        if batch is not None:
            self.discard_tuners(batch)

    def discard_tuners(self, batch: WriteBatch) -> None:
        if batch.changed_tuners:
            self._on_rollback(batch.changed_tuners)

    def _run_call(self, batch: WriteBatch, call: WriteCall) -> Outcome:
        if isinstance(call.work, Parts):
            parts = [self._run_work(batch, call, part) for part in call.work]
            return Outcome(parts, None, [change for part in parts for change in part.changes])
        return self._run_work(batch, call, call.work)

    def _run_work(self, batch: WriteBatch, call: WriteCall, work: Work) -> Outcome:
        transaction = Transaction(batch, call.draws)
        try:
            result = work(transaction)
        except BaseException as error:
            self._refuse(batch, transaction, error)
            if not isinstance(error, Exception):
                raise
            if is_lock_timeout(error) and transaction.has_savepoint:
                return Outcome(None, Unavailable(f"somebody else holds what the call needs: {one_line(error)}"))
            return Outcome(None, in_words_of_the_store(error))
        transaction.merge_into_batch()
        return Outcome(result, None, transaction.changes)

    def _refuse(self, batch: WriteBatch, transaction: Transaction, error: BaseException) -> None:
        """Roll back one refused call. Raise its error, which fails the whole batch, if it is the connection's or the
        disk's, or if rows of earlier calls could not be written.
        """
        if transaction.changed_tuners:
            self._on_rollback(transaction.changed_tuners)
        if batch.failure is not None:
            raise batch.failure
        refuses_rows = isinstance(error, sa.exc.IntegrityError | sa.exc.DataError)
        waited = is_lock_timeout(error) and transaction.has_savepoint
        if isinstance(error, sa.exc.DBAPIError) and not refuses_rows and not waited:
            raise error
        transaction.refuse()

    # -- the connection -----------------------------------------------------------------------------------

    def _begun(self, wait_for_lock: bool) -> sa.Connection:
        """Begin a transaction on the connection of the last batch, unless that failed or was long ago.

        Taking one from the pool costs as much as a call. A connection that was idle for a second goes back there
        first, since the pool checks that it is alive.
        """
        if self._file is not None and self._file.is_gone:
            self._file.check_all()
        connection = self._connection_at_hand()
        if connection is None:
            self.release_connection()
            self._connection = connection = self.engine.connect()
            self._used_at = time.monotonic()
        self._begin(connection, wait_for_lock)
        return connection

    def _connection_at_hand(self) -> sa.Connection | None:
        now = time.monotonic()
        if now - self._used_at > CONNECTION_IDLE_SECONDS or (self.is_shared and self._has_been_ended()):
            return None
        self._used_at = now
        return self._connection

    def _begin(self, connection: sa.Connection, wait_for_lock: bool) -> None:
        """BEGIN; while SQLite's file is locked, try again every 5 ms for up to 10 s, or raise Locked at once."""
        deadline = time.monotonic() + LOCKED_PATIENCE_SECONDS
        while True:
            try:
                begin(connection)
                return
            except sa.exc.OperationalError as error:
                if not is_locked(error):
                    self.release_connection()
                    raise
                if not wait_for_lock:
                    raise Locked from None
                if time.monotonic() > deadline:
                    raise
            self.notes.locked(time.monotonic() - deadline + LOCKED_PATIENCE_SECONDS)
            time.sleep(LOOK_AGAIN_SECONDS)

    def _has_been_ended(self) -> bool:
        """Whether the idle connection is readable: PostgreSQL is closing it, or has closed it."""
        if self._connection is None:
            return False
        heard = select.poll()
        heard.register(self._connection.connection.dbapi_connection.fileno(), select.POLLIN)  # type: ignore[union-attr]
        return bool(heard.poll(0))

    def release_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
