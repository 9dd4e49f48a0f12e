"""Rows that wait for the end of the batch: each study, round and trial is written once, however many calls changed it.

The statements go to the driver as they are; through SQLAlchemy's compiler each would cost more than the database takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import chain
from typing import Any

import sqlalchemy as sa

from hpo_service.domain.study import Round, Study
from hpo_service.domain.trial import AttemptEnd, Trial
from hpo_service.store import one_round_trip
from hpo_service.store.engine import as_sqlalchemy, commit
from hpo_service.store.rows import (
    CHANGING_COLUMNS,
    STUDY_CHANGING_COLUMNS,
    TRIAL_COLUMNS,
    changing_cells,
    counter_cells,
    json_text,
    trial_cells,
)
from hpo_service.store.trial_reports import KeptReport

TrialKey = tuple[int, int]  # study id, number
KnownId = Callable[[int, int], int | None]
AttemptKey = tuple[int, int, int]
# worker, started, ended, how it ended: None for attempt 0, the time until the first attempt
EndedAttempt = tuple[str | None, float | None, float, AttemptEnd | None]

MOST_ROWS = 500  # in one INSERT: databases limit the number of parameters


class PendingRows:
    """What calls have changed and not yet written."""

    __slots__ = ("answers", "ended", "new_trials", "reports", "rounds", "studies", "trials")

    def __init__(self) -> None:
        self.studies: dict[int, Study] = {}
        self.rounds: dict[tuple[int, int], Round] = {}
        self.new_trials: dict[TrialKey, Trial] = {}
        self.trials: dict[TrialKey, Trial] = {}
        self.reports: dict[tuple[int, int, int], KeptReport] = {}
        # None: the attempt goes on after all, or its end is the trial's.
        self.ended: dict[AttemptKey, EndedAttempt | None] = {}
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {}

    def _all(self) -> Iterable[dict[Any, Any]]:
        return self.studies, self.rounds, self.new_trials, self.trials, self.reports, self.ended, self.answers

    def add(self, later: PendingRows) -> None:
        """Take what a later call has changed."""
        self.studies.update(later.studies)
        self.new_trials.update(later.new_trials)
        for key, trial in later.trials.items():
            (self.new_trials if key in self.new_trials else self.trials)[key] = trial
        if later.rounds:
            self.rounds.update(later.rounds)
        if later.reports:
            self.reports.update(later.reports)
        if later.ended:
            self.ended.update(later.ended)
        if later.answers:
            self.answers.update(later.answers)

    def commit(self, connection: sa.Connection, known: KnownId) -> dict[TrialKey, int]:
        """Write all pending rows and commit, on PostgreSQL in one round trip. Return the ids of the new trials."""
        if connection.dialect.name == "sqlite" or connection.in_transaction() or self.others_need_ids():
            ids = self._write(connection, known)
            commit(connection)
            return ids
        answers = one_round_trip.run(connection, [*self.statements(known), ("COMMIT", ())])
        return self.were_written(answers)

    def statements(self, known: KnownId) -> list[one_round_trip.Statement]:
        """The statements of all pending rows for PostgreSQL, unless some of them need ids of new trials."""
        sql = _STATEMENTS["postgresql"]
        inserts = [_insert(sql, part) for part in self._parts()]
        return inserts + [(text, row) for text, rows in self._rest(sql, {}, known) for row in rows]

    def were_written(self, answers: Sequence[one_round_trip.Rows]) -> dict[TrialKey, int]:
        """Read the results of these statements; return the ids of the new trials."""
        ids: dict[TrialKey, int] = {}
        for rows in answers[: len(self._parts())]:
            _take_ids(rows, ids)
        return ids

    def flush(self, connection: sa.Connection, known: KnownId) -> dict[TrialKey, int]:
        """Write all pending rows, and drop them here. Return the ids of the new trials.

        known: the id of a trial that was written before.
        """
        if not any(self._all()):
            return {}
        ids = self._write(connection, known)
        for rows in self._all():
            rows.clear()
        return ids

    def _write(self, connection: sa.Connection, known: KnownId) -> dict[TrialKey, int]:
        """In the order of the foreign keys."""
        ids: dict[TrialKey, int] = {}
        sql = _STATEMENTS[connection.dialect.name]
        cursor = connection.connection.cursor()
        try:
            for part in self._parts():
                cursor.execute(*_insert(sql, part))
                _take_ids(cursor.fetchall(), ids)
            with _in_one_go(connection):
                for text, rows in self._rest(sql, ids, known):
                    if len(rows) == 1:
                        cursor.execute(text, rows[0])
                    else:
                        cursor.executemany(text, rows)
        except Exception as error:
            raise as_sqlalchemy(connection, error) from error
        finally:
            cursor.close()
        return ids

    def _parts(self) -> list[list[tuple[TrialKey, Trial]]]:
        new = list(self.new_trials.items())
        return [new[start : start + MOST_ROWS] for start in range(0, len(new), MOST_ROWS)]

    def others_need_ids(self) -> bool:
        """Whether a pending report or attempt belongs to a new trial, which has no id before its INSERT."""
        if not self.new_trials:
            return False
        return any(key[:2] in self.new_trials for rows in (self.reports, self.ended) for key in rows)

    def _rest(
        self, sql: _Statements, ids: dict[TrialKey, int], known: KnownId
    ) -> Iterator[tuple[str, list[Sequence[Any]]]]:
        """All but the new trials: each statement with the rows of its values."""

        def id_of(study_id: int, number: int) -> int:
            found = ids.get((study_id, number)) or known(study_id, number)
            assert found is not None
            return found

        if self.trials:
            yield sql.update_trial, [(*changing_cells(trial), id_of(*key)) for key, trial in self.trials.items()]
        for (study_id, number, attempt), end in self.ended.items():
            its_key = (id_of(study_id, number), attempt)
            if end is None:
                yield sql.delete_attempt, [its_key]
            else:
                yield sql.upsert_attempt, [(*its_key, *end[:3], end[3] and str(end[3]))]
        if self.reports:
            yield (
                sql.upsert_report,
                [(id_of(s, n), step, *_report_cells(report)) for (s, n, step), report in self.reports.items()],
            )
        if self.answers:
            yield (
                sql.insert_answer,
                [(call, request, key, json_text(answer)) for (call, request), (key, answer) in self.answers.items()],
            )
        if self.rounds:
            yield (
                sql.update_round,
                [
                    (round_.first_trial, round_.trials, round_.finished, round_.revision, *of_study)
                    for of_study, round_ in self.rounds.items()
                ],
            )
        if self.studies:
            yield sql.update_study, [(*counter_cells(study), study.id) for study in self.studies.values()]


def _insert(sql: _Statements, part: Sequence[tuple[TrialKey, Trial]]) -> tuple[str, list[Any]]:
    cells = chain.from_iterable((*key, *trial_cells(trial)) for key, trial in part)
    return sql.insert_trials(len(part)), list(cells)


def _take_ids(rows: Iterable[Sequence[Any]], ids: dict[TrialKey, int]) -> None:
    """rows: id, study and number of each new trial."""
    for key, study_id, number in rows:
        ids[int(study_id), int(number)] = int(key)


def _in_one_go(connection: sa.Connection) -> AbstractContextManager[Any]:
    """On PostgreSQL, send the statements without waiting for the result of each."""
    if connection.dialect.name == "sqlite":
        return nullcontext()
    pipeline: AbstractContextManager[Any] = connection.connection.dbapi_connection.pipeline()  # type: ignore[union-attr]
    return pipeline


def _report_cells(report: KeptReport) -> tuple[float | None, str | None]:
    value = None if math.isnan(report.value) else report.value
    return value, None if report.metrics is None else report.metrics.decode()


class _Statements:
    """The statements of one dialect, with its bind marks."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._trial_columns = ["study_id", "number", *TRIAL_COLUMNS]
        self.update_trial = self._update("hpo_trials", CHANGING_COLUMNS, ["id"])
        self.upsert_attempt = (
            self._insert("hpo_attempts", ["trial_id", "attempt", "worker_id", "started_at", "ended_at", "end"])
            + ' ON CONFLICT (trial_id, attempt) DO UPDATE SET ended_at = excluded.ended_at, "end" = excluded."end"'
        )
        self.delete_attempt = f"DELETE FROM hpo_attempts WHERE trial_id = {mark} AND attempt = {mark}"  # noqa: S608
        self.upsert_report = (
            self._insert("hpo_reports", ["trial_id", "step", "value", "metrics"])
            + " ON CONFLICT (trial_id, step) DO UPDATE SET value = excluded.value, metrics = excluded.metrics"
        )
        self.insert_answer = self._insert("hpo_answers", ["call", "request_id", "study_id", "answer"])
        self.update_round = self._update(
            "hpo_rounds", ["first_trial", "trials", "finished", "revision"], ["study_id", "round"]
        )
        self.update_study = self._update("hpo_studies", STUDY_CHANGING_COLUMNS, ["id"])

    @cache  # noqa: B019  # one object a dialect, never freed
    def insert_trials(self, rows: int) -> str:
        return self._insert("hpo_trials", self._trial_columns, rows) + " RETURNING id, study_id, number"

    def _insert(self, table: str, columns: Sequence[str], rows: int = 1) -> str:
        names = ", ".join(f'"{name}"' for name in columns)
        values = f"({', '.join([self._mark] * len(columns))})"
        return f"INSERT INTO {table} ({names}) VALUES {', '.join([values] * rows)}"  # noqa: S608

    def _update(self, table: str, columns: Sequence[str], keys: Sequence[str]) -> str:
        changes = ", ".join(f'"{name}" = {self._mark}' for name in columns)
        where = " AND ".join(f'"{name}" = {self._mark}' for name in keys)
        return f"UPDATE {table} SET {changes} WHERE {where}"  # noqa: S608


_STATEMENTS = {"sqlite": _Statements("?"), "postgresql": _Statements("%s")}
