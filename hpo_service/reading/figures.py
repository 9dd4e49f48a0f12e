"""Figures of the record for the metrics: read once a second at most; the last known ones if the database is down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hpo_service.domain.errors import HpoError
from hpo_service.store import totals
from hpo_service.store.database import Database
from hpo_service.store.record import Record

FRESH_SECONDS = 1.0
PATIENCE_SECONDS = 2.0  # how long `latest` waits for the database
REST = 10  # times as long as the last read took, until the next
LONGEST_REST_SECONDS = 30.0


@dataclass(frozen=True)
class Figures:
    """Figures of the record, and of the database's files; None: the server does not see the files."""

    trials: Mapping[str, int] = field(default_factory=dict)
    studies: Mapping[str, int] = field(default_factory=dict)
    oldest_waiting_seconds: float = 0.0
    workers_wanted: int = 0
    wal_bytes: int | None = None
    free_bytes: int | None = None


class KnownFigures:
    """The last figures that were read; for one event loop. One read at a time, which concurrent callers share."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._figures = Figures()
        self._reached = False
        self._next_read = 0.0
        self._reading: asyncio.Task[None] | None = None

    async def latest(self) -> tuple[Figures, bool]:
        """The figures, and whether the database has answered the last read in time."""
        if self._reading is None and time.monotonic() >= self._next_read:
            self._reading = asyncio.create_task(self._read())
        if self._reading is not None:
            await asyncio.wait({self._reading}, timeout=PATIENCE_SECONDS)
        return self._figures, self._reached and self._reading is None

    async def _read(self) -> None:
        began = time.monotonic()
        try:
            wal_bytes, free_bytes = await asyncio.to_thread(self._database.sizes)
            self._figures = replace(self._figures, wal_bytes=wal_bytes, free_bytes=free_bytes)
            of_record = await asyncio.to_thread(self._database.read, _of_record)
            self._figures = replace(of_record, wal_bytes=wal_bytes, free_bytes=free_bytes)
            self._reached = True
            took = time.monotonic() - began
            self._next_read = time.monotonic() + min(max(FRESH_SECONDS, REST * took), LONGEST_REST_SECONDS)
        except (HpoError, OSError):
            self._reached = False
            self._next_read = time.monotonic() + FRESH_SECONDS
        finally:
            self._reading = None


def _of_record(record: Record) -> Figures:
    trials, studies = totals.counts_by_state(record)
    since = totals.oldest_waiting_since(record) if trials["WAITING"] else None
    waiting = 0.0 if since is None else max(0.0, record.now - since)
    return Figures(trials, studies, waiting, totals.workers_wanted(record))
