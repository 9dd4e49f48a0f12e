"""The record as Optuna's storage interface needs it: plain rows by id, only read."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from typing import Any

import sqlalchemy as sa

from hpo_service.store.record import Record
from hpo_service.store.tables import reports, rounds, studies, trials

# The names of the studies that the present caller may see; None: all.
seen_studies: ContextVar[frozenset[str] | None] = ContextVar("seen_studies", default=None)


def _there() -> sa.ColumnElement[bool]:
    seen = seen_studies.get()
    there = sa.not_(studies.c.deleted)
    return there if seen is None else sa.and_(there, studies.c.name.in_(seen))


@dataclass(frozen=True)
class StudyRow:
    id: int
    name: str
    revision: int
    spec: dict[str, Any]
    created_with: str
    user_attrs: dict[str, Any]
    system_attrs: dict[str, Any]


@dataclass(frozen=True)
class TrialRow:
    """reports: (step, value), NULL where it is NaN, by rising step."""

    id: int
    study_id: int
    number: int
    state: str
    params: dict[str, Any]
    distributions: dict[str, Any] | None
    values: list[Any] | None
    value: float | None
    started_at: float | None
    finished_at: float | None
    metrics: dict[str, Any] | None
    user_attrs: dict[str, Any]
    system_attrs: dict[str, Any]
    revision: int
    reports: tuple[tuple[int, float | None], ...] = ()


_STUDY_COLUMNS = tuple(studies.c[field.name] for field in fields(StudyRow))
_TRIAL_COLUMNS = tuple(trials.c[field.name] for field in fields(TrialRow) if field.name != "reports")


class OptunaRows:
    """Reads inside the transaction of a Record. An id that does not exist is a KeyError."""

    def __init__(self, record: Record) -> None:
        self._db = record._db

    def studies(self) -> list[StudyRow]:
        query = sa.select(*_STUDY_COLUMNS).where(_there()).order_by(studies.c.id)
        return [StudyRow(*row) for row in self._db.execute(query)]

    def study(self, study_id: int) -> StudyRow:
        row = self._db.execute(sa.select(*_STUDY_COLUMNS).where(studies.c.id == study_id, _there())).one_or_none()
        if row is None:
            raise KeyError(f"there is no study with id {study_id}")
        return StudyRow(*row)

    def study_id(self, name: str) -> int:
        found = self._db.execute(sa.select(studies.c.id).where(studies.c.name == name, _there())).scalar()
        if found is None:
            raise KeyError(f"there is no study {name!r}")
        return int(found)

    def revision(self, study_id: int) -> int:
        found = self._db.execute(sa.select(studies.c.revision).where(studies.c.id == study_id, _there())).scalar()
        if found is None:
            raise KeyError(f"there is no study with id {study_id}")
        return int(found)

    def search_spaces(self, study_id: int) -> list[dict[str, Any]]:
        """Those of all rounds."""
        query = sa.select(rounds.c.search_space).where(rounds.c.study_id == study_id).order_by(rounds.c.round)
        return list(self._db.execute(query).scalars())

    def study_of_trial(self, trial_id: int) -> int:
        found = self._db.execute(sa.select(trials.c.study_id).where(trials.c.id == trial_id)).scalar()
        if found is None:
            raise KeyError(f"there is no trial with id {trial_id}")
        return int(found)

    def trials_since(self, study_id: int, revision: int) -> list[TrialRow]:
        """The trials written after this revision of the study, with their reports; no replicates."""
        changed = sa.and_(trials.c.study_id == study_id, trials.c.revision > revision, trials.c.replicate_of.is_(None))
        steps: dict[int, list[tuple[int, float | None]]] = {}
        query = (
            sa.select(reports.c.trial_id, reports.c.step, reports.c.value)
            .join(trials, trials.c.id == reports.c.trial_id)
            .where(changed)
            .order_by(reports.c.trial_id, reports.c.step)
        )
        for trial_id, step, value in self._db.execute(query):
            steps.setdefault(trial_id, []).append((step, value))
        rows = self._db.execute(sa.select(*_TRIAL_COLUMNS).where(changed).order_by(trials.c.number))
        return [replace(TrialRow(*row), reports=tuple(steps.get(row.id, ()))) for row in rows]
