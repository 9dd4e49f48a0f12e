"""The database: one writer with group commit, readers beside it, and the clock that decides."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from functools import partial
from typing import Any, TypeVar

from hpo_service import tracing
from hpo_service.domain.errors import HpoError
from hpo_service.domain.study import Study
from hpo_service.store import write_ahead_log
from hpo_service.store.database_file import DatabaseFile
from hpo_service.store.engine import (
    Clock,
    database_errors_translated,
    database_url,
    sqlite_file,
    writing_engine,
)
from hpo_service.store.outages import Beat, Uptime
from hpo_service.store.reader import Reader
from hpo_service.store.record import Record
from hpo_service.store.schema import current_revision, upgrade_engine
from hpo_service.store.writer import Call, Listener, NobodyListens, Watch, Writer
from hpo_service.store.writing_record import Group, Memory, WritingRecord

T = TypeVar("T")

LEAST_FREE_BYTES = 16 * 2**20


class Database:
    """Open for one server process. `write` and `read` run a function on the Record of one transaction."""

    def __init__(
        self,
        url: str,
        clock: Clock | None = None,
        listener: Listener | None = None,
    ) -> None:
        """clock: seconds since 1970 for tests; by default the database's own.

        Raise DatabaseInUse, SchemaTooNew, Unavailable, ValueError (the URL).
        """
        self.url = database_url(url)
        self._clock = clock
        self._open = ExitStack()
        self._path = sqlite_file(self.url)
        with ExitStack() as opening:
            self.file: DatabaseFile | None = None
            if self._path is not None:
                # A process killed a moment ago may not be gone from the kernel's books yet.
                self.file = opening.enter_context(closing(DatabaseFile(self._path, patience_seconds=1.0)))
            upgrade_engine(self.url)
            if self.file is not None:
                self.file.watch()
            self._write_engine = writing_engine(self.url, waits=False)
            opening.callback(self._write_engine.dispose)
            self._reader = Reader(self.url, clock)
            opening.callback(self._reader.close)
            self._memory = Memory()
            self._writer = Writer(self._write_engine, self._memory, listener or NobodyListens(), self.file)
            opening.callback(self._writer.close)
            if self.file is not None:
                opening.callback(self.file.before_closing)
            self._open = opening.pop_all()

    def close(self) -> None:
        self._open.close()

    def write(self, work: Callable[[WritingRecord], T], studies: Sequence[str] = ()) -> Future[T]:
        """Run `work` in a transaction that holds these studies. The result comes after the commit."""
        return self._writer.submit(partial(self._in_transaction, work), studies)

    def call(
        self,
        work: Callable[[WritingRecord], Any],
        studies: Sequence[str],
        done: Callable[[Any, BaseException | None], None],
        request_id: str | None = None,
    ) -> Call:
        """The same, to be written together with others.

        done: is told in the thread that has run it. request_id: of an ask, which may have been answered before.
        """
        in_transaction = partial(self._in_transaction, tracing.carried(work))
        return Call(in_transaction, studies, done, request_id, time.perf_counter(), tracing.context())

    def write_here(self, calls: Sequence[Call], watch: Watch) -> int:
        """Write the first of them in this thread, and return how many; the others could take long, for `write_all`.

        watch: for the event loop to say when PostgreSQL has answered, and the calls with it.
        """
        return self._writer.run_here(calls, watch)

    @property
    def is_shared(self) -> bool:
        """Whether other servers may write it, too."""
        return self._path is None

    @property
    def is_writing(self) -> bool:
        """Whether calls are being written now; at their end the listener is told."""
        return self._writer.is_at_work

    @property
    def commit_seconds(self) -> float:
        """What a commit of the writer's takes, on the average of the last few."""
        return self._writer.commit_seconds

    def remembered(self, name: str) -> Study | None:
        """The study as the writer has it in memory; maybe a moment old, and None where it would have to be read."""
        mirror = self._memory.mirrors.get(self._memory.ids.get(name, -1))
        return None if mirror is None else mirror.study

    @property
    def uptime(self) -> Uptime:
        """What is known of this server's being able to serve."""
        return self._memory.uptime

    def beat(self, record: WritingRecord) -> Beat:
        return record.beat(self._clock)

    @property
    def studies_aside(self) -> frozenset[str]:
        """Studies that somebody else holds, so that calls on them will most likely be refused."""
        return self._writer.studies_aside

    def write_all(self, calls: Sequence[Call]) -> None:
        """Raise Unavailable: none of them will run."""
        self._writer.submit_all(calls)

    def _in_transaction(self, work: Callable[[WritingRecord], T], group: Group) -> T:
        return work(WritingRecord(group, group.now(self._clock)))

    def read(self, work: Callable[[Record], T]) -> T:
        """Run `work` on a snapshot; it must not write."""
        return self._reader.read(work)

    def faults(self) -> list[str]:
        """What keeps this database from taking writes now; empty when it is ready."""
        found = []
        try:
            self.write(lambda record: record.check_writable()).result(timeout=5)
            with database_errors_translated(), self._reader.engine.connect() as connection:
                if current_revision(connection) is None:
                    found.append("the database has no schema")
        except HpoError as error:
            found.append(error.detail)
        except TimeoutError:
            found.append("the database has not answered within 5 seconds")
        if self._path is not None and self._path.exists():
            free = shutil.disk_usage(self._path.parent).free
            if free < LEAST_FREE_BYTES:
                found.append(f"only {free // 2**20} MiB are free on the database's disk")
            found += write_ahead_log.faults(self._write_engine, self._path)
        return found

    def sizes(self) -> tuple[int | None, int | None]:
        """Bytes of SQLite's write-ahead log, and free ones on its disk; PostgreSQL's are not to be seen from here."""
        if self._path is None:
            return None, None
        return write_ahead_log.size(write_ahead_log.log_of(self._path)), shutil.disk_usage(self._path.parent).free

    def cut_log(self) -> None:
        """Make SQLite's write-ahead log small again where it has grown."""
        if self._path is not None:
            with database_errors_translated():
                write_ahead_log.cut(self._write_engine, self._path)
