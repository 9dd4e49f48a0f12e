"""What trials have reported, and their attempts, in SQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import sqlalchemy as sa
from pydantic_core import from_json

from hpo_service.domain.sizes import CARRIED_REPORTS
from hpo_service.domain.trial import Report, Trial
from hpo_service.store.rows import nan_if_null
from hpo_service.store.tables import attempts, reports
from hpo_service.store.trial_reports import KeptReport, kept_report, report_text
from hpo_service.store.worker_rows import batches

# Fetch rows as they are consumed, not all at once.
AS_TAKEN = {"stream_results": True, "max_row_buffer": 64}
PIECE = 2**20  # bytes: about so much of large data is read at once

_b = sa.bindparam
_METRICS_TEXT = sa.cast(reports.c.metrics, sa.Text)  # as it was written
_OF_TRIAL = sa.select(reports.c.step, reports.c.value, _METRICS_TEXT).where(reports.c.trial_id == _b("trial_id"))
_REPORTS = _OF_TRIAL.where(reports.c.step >= _b("first")).order_by(reports.c.step)
_REPORTS_BACKWARDS = _OF_TRIAL.order_by(reports.c.step.desc())
_BYTES_BESIDE_METRICS = 60


@dataclass(frozen=True)
class AttemptRow:
    attempt: int
    worker_id: str
    started_at: float
    ended_at: float | None
    end: str | None


class ReportRows:
    """Inside the transaction of a Record."""

    def __init__(self, connection: sa.Connection) -> None:
        self._db = connection

    def of(self, trial: Trial, first: int | None = None) -> list[Report]:
        """By rising step, from this step on."""
        return [
            Report(step, report.value, {} if report.metrics is None else from_json(report.metrics))
            for step, report in self.kept(trial, first)
        ]

    def kept(self, trial: Trial, first: int | None = None) -> Iterator[tuple[int, KeptReport]]:
        found = self._db.execute(_REPORTS, {"trial_id": trial.id, "first": -(2**31) if first is None else first})
        for step, value, metrics in found:
            yield step, kept_report(step, nan_if_null(value), None if metrics is None else metrics.encode())

    def texts(self, trial: Trial, first: int | None = None) -> tuple[list[bytes], int | None]:
        """Reports as they read, from this step on: about PIECE bytes of them, and the step with which to go on."""
        found: list[bytes] = []
        left = PIECE
        values = {"trial_id": trial.id, "first": -(2**31) if first is None else first}
        with closing(self._db.execute(_REPORTS, values, execution_options=AS_TAKEN)) as rows:
            for step, value, metrics in rows:
                if left < 0:
                    return found, step
                found.append(_text(step, value, metrics))
                left -= len(found[-1])
        return found, None

    def last_texts(self, trial: Trial) -> list[bytes]:
        """The last ones that fit into CARRIED_REPORTS, by rising step."""
        found: list[bytes] = []
        left = CARRIED_REPORTS
        values = {"trial_id": trial.id}
        with closing(self._db.execute(_REPORTS_BACKWARDS, values, execution_options=AS_TAKEN)) as rows:
            for step, value, metrics in rows:
                text = _text(step, value, metrics)
                left -= len(text) + 1
                if left < 0:
                    break
                found.append(text)
        return found[::-1]

    def texts_of(self, some: Sequence[Trial]) -> dict[int, list[bytes]]:
        """Those of all of these, by number, by rising step."""
        found: dict[int, list[bytes]] = {}
        numbers = {trial.id: trial.number for trial in some}
        for ids in batches(list(numbers)):
            query = (
                sa.select(reports.c.trial_id, reports.c.step, reports.c.value, _METRICS_TEXT)
                .where(reports.c.trial_id.in_(ids))
                .order_by(reports.c.trial_id, reports.c.step)
            )
            for key, step, value, metrics in self._db.execute(query):
                found.setdefault(numbers[key], []).append(_text(step, value, metrics))
        return found

    def bytes_of(self, some: Sequence[Trial]) -> dict[int, int]:
        """About how many bytes their reports take, by number."""
        found: dict[int, int] = {}
        numbers = {trial.id: trial.number for trial in some}
        size = sa.func.coalesce(sa.func.sum(sa.func.length(_METRICS_TEXT)), 0)
        for ids in batches(list(numbers)):
            query = (
                sa.select(reports.c.trial_id, sa.func.count() * _BYTES_BESIDE_METRICS + size)
                .where(reports.c.trial_id.in_(ids))
                .group_by(reports.c.trial_id)
            )
            found.update({numbers[key]: int(size) for key, size in self._db.execute(query)})
        return found

    def drop(self, trial: Trial) -> None:
        self._db.execute(sa.delete(reports).where(reports.c.trial_id == trial.id))

    def attempts(self, trial: Trial) -> list[AttemptRow]:
        """By their numbers. The last one has a row of its own only when it ended and the trial did not."""
        query = sa.select(attempts).where(attempts.c.trial_id == trial.id, attempts.c.end.is_not(None))
        found = [
            AttemptRow(row.attempt, row.worker_id, row.started_at, row.ended_at, row.end)
            for row in self._db.execute(query.order_by(attempts.c.attempt))
        ]
        last, ended = trial.lifecycle.attempt, trial.lifecycle.ended
        if (found and found[-1].attempt == last) or trial.worker_id is None or trial.started_at is None:
            return found
        at = None if ended is None else trial.finished_at
        return [*found, AttemptRow(last, trial.worker_id, trial.started_at, at, ended)]


def _text(step: int, value: float | None, metrics: str | None) -> bytes:
    return report_text(step, nan_if_null(value), None if metrics is None else metrics.encode())
