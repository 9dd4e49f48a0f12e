"""The database: one writer with group commit, readers beside it, and the clock by which leases end."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from typing import TypeVar

from hpo_service import tracing
from hpo_service.domain.errors import HpoError
from hpo_service.domain.study import Study
from hpo_service.store import write_ahead_log
from hpo_service.store.batch_runner import BatchRunner, OnRollback
from hpo_service.store.database_file import DatabaseFile
from hpo_service.store.engine import Clock, database_errors_translated, database_url, sqlite_file, writing_engine
from hpo_service.store.outages import Uptime
from hpo_service.store.reader import Reader
from hpo_service.store.record import Record
from hpo_service.store.schema import current_revision, upgrade_engine
from hpo_service.store.study_cache import StudyCache
from hpo_service.store.transaction import Transaction
from hpo_service.store.write_call import Outcome, WriteCall
from hpo_service.store.write_scheduler import WriteScheduler

T = TypeVar("T")

LEAST_FREE_BYTES = 16 * 2**20


def _nothing(_: object) -> None: ...


class Database:
    """Open for one server process. `write` runs a function on a Transaction, `read` on a Record."""

    def __init__(self, url: str, clock: Clock | None = None, on_rollback: OnRollback = _nothing) -> None:
        """clock: seconds since 1970 for tests; by default the database's own.

        on_rollback: called with the ids of the studies whose tuners saw trials that were not committed
        (`Transaction.changed_tuners`).
        Raise DatabaseInUse, SchemaTooNew, Unavailable, ValueError (the URL).
        """
        self.url = database_url(url)
        self._open = ExitStack()
        self._path = sqlite_file(self.url)
        with ExitStack() as opening:
            self.file: DatabaseFile | None = None
            if self._path is not None:
                # The kernel may still hold the lock of a process that was killed a moment ago.
                self.file = opening.enter_context(closing(DatabaseFile(self._path, patience_seconds=1.0)))
            upgrade_engine(self.url)
            if self.file is not None:
                self.file.watch()
            self._write_engine = writing_engine(self.url, waits=False)
            opening.callback(self._write_engine.dispose)
            self._reader = Reader(self.url, clock)
            opening.callback(self._reader.close)
            self._cache = StudyCache()
            self._runner = BatchRunner(self._write_engine, self._cache, clock, self.file, on_rollback)
            self._scheduler = WriteScheduler(self._runner)
            opening.callback(self._scheduler.thread.close)
            if self.file is not None:
                opening.callback(self.file.before_closing)
            self._open = opening.pop_all()

    def close(self) -> None:
        self._open.close()

    def write(self, work: Callable[[Transaction], T], studies: Sequence[str] = ()) -> Future[T]:
        """Run `work` in a transaction that holds these studies. The result comes after the commit, from any thread."""
        answer: Future[T] = Future()

        def done(outcome: Outcome) -> None:
            if not answer.set_running_or_notify_cancel():
                return
            if outcome.error is not None:
                answer.set_exception(outcome.error)
            else:
                answer.set_result(outcome.result)

        call = WriteCall(work, studies, done, done_in_thread=True, since=time.perf_counter(), trace=tracing.context())
        self._scheduler.thread.put([call])
        return answer

    def submit(self, call: WriteCall) -> None:
        """Queue a call from the event loop, where its `done` is called, too."""
        self._scheduler.submit(call)

    @property
    def calls_waiting(self) -> int:
        """How many calls of the event loop have no answer yet."""
        return self._scheduler.waiting

    @property
    def is_shared(self) -> bool:
        """Whether other servers may write it, too."""
        return self._path is None

    def remembered(self, name: str) -> Study | None:
        """The study as the writer has it in memory; maybe a moment old, and None where it would have to be read."""
        cached = self._cache.studies.get(self._cache.ids.get(name, -1))
        return None if cached is None else cached.study

    @property
    def uptime(self) -> Uptime:
        """When this server was able to serve."""
        return self._cache.uptime

    @property
    def held_studies(self) -> frozenset[str]:
        """Studies that somebody else holds, so that calls on them will most likely be refused."""
        return self._scheduler.thread.held_studies.names

    def read(self, work: Callable[[Record], T]) -> T:
        """Run `work` on a snapshot; it must not write."""
        return self._reader.read(work)

    def faults(self) -> list[str]:
        """What keeps this database from taking writes now; empty when it is ready."""
        found = []
        try:
            self.write(lambda transaction: transaction.sql().check_writable()).result(timeout=5)
            with database_errors_translated(), self._reader.engine.connect() as connection:
                if current_revision(connection) is None:
                    found.append("the database has no schema")
        except HpoError as error:
            found.append(error.detail)
        except TimeoutError:
            found.append("the database has not answered within 5 seconds")
        if self._path is not None and self._path.exists():
            free = shutil.disk_usage(write_ahead_log.log_of(self._path).parent).free
            if free < LEAST_FREE_BYTES:
                found.append(f"only {free // 2**20} MiB are free on the database's disk")
            found += write_ahead_log.faults(self._write_engine, self._path)
        return found

    def sizes(self) -> tuple[int | None, int | None]:
        """Bytes of SQLite's write-ahead log, and free ones on its disk; None on PostgreSQL."""
        if self._path is None:
            return None, None
        log = write_ahead_log.log_of(self._path)
        return write_ahead_log.size(log), shutil.disk_usage(log.parent).free

    def cut_log(self) -> None:
        """Make SQLite's write-ahead log small again where it has grown."""
        if self._path is not None:
            with database_errors_translated():
                write_ahead_log.cut(self._write_engine, self._path)
