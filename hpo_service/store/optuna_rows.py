"""The record as Optuna's storage interface needs it: plain rows by id, and the writes of studies made through it.

A study made through Optuna's own API carries created_with = "optuna". Its trials hold no lease and wait for no worker
of ours, so it is STOPPED: nothing is ever given out from it. Only such studies can be written this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from hpo_service.domain.errors import StudyExists
from hpo_service.domain.study import StudyState
from hpo_service.domain.trial import TrialState, trial_seed
from hpo_service.store.record import FROM_OPTUNA, Record
from hpo_service.store.rows import TALLY_FIELD
from hpo_service.store.tables import reports, rounds, studies, trials

_STUDY_COLUMNS = (
    studies.c.id,
    studies.c.name,
    studies.c.revision,
    studies.c.spec,
    studies.c.created_with,
    studies.c.user_attrs,
    studies.c.system_attrs,
)
_TRIAL_COLUMNS = tuple(
    trials.c[name]
    for name in (
        *("id", "study_id", "number", "state", "params", "distributions", "values", "value"),
        *("started_at", "finished_at", "user_attrs", "system_attrs", "revision"),
    )
)


_THERE = sa.not_(studies.c.deleted)


class NotMadeByOptuna(Exception):
    """This study is served by us: only the operations write its trials."""


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
    user_attrs: dict[str, Any]
    system_attrs: dict[str, Any]
    revision: int
    reports: tuple[tuple[int, float | None], ...] = ()


class OptunaRows:
    """Reads and writes inside the transaction of a Record. An id that does not exist is a KeyError."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._db = record._db

    @property
    def now(self) -> float:
        """The database's clock."""
        return self._record.now

    # -- reading ------------------------------------------------------------------------------------------

    def studies(self) -> list[StudyRow]:
        query = sa.select(*_STUDY_COLUMNS).where(_THERE).order_by(studies.c.id)
        return [StudyRow(*row) for row in self._db.execute(query)]

    def study(self, study_id: int) -> StudyRow:
        row = self._db.execute(sa.select(*_STUDY_COLUMNS).where(studies.c.id == study_id, _THERE)).one_or_none()
        if row is None:
            raise KeyError(f"there is no study with id {study_id}")
        return StudyRow(*row)

    def study_id(self, name: str) -> int:
        found = self._db.execute(sa.select(studies.c.id).where(studies.c.name == name, _THERE)).scalar()
        if found is None:
            raise KeyError(f"there is no study {name!r}")
        return int(found)

    def revision(self, study_id: int) -> int:
        found = self._db.execute(sa.select(studies.c.revision).where(studies.c.id == study_id, _THERE)).scalar()
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
        """The trials written after this revision of the study, with their reports."""
        changed = sa.and_(trials.c.study_id == study_id, trials.c.revision > revision)
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

    # -- writing ------------------------------------------------------------------------------------------

    def add_study(self, name: str, spec: dict[str, Any]) -> int:
        """Raise StudyExists when the name is taken."""
        row: dict[str, Any] = {"name": name, "spec": spec, "created_with": FROM_OPTUNA, "state": StudyState.STOPPED}
        row |= {"created_at": self.now, "lease_seconds": spec["lease_seconds"]}
        try:
            study_id = int(self._db.execute(sa.insert(studies).returning(studies.c.id), row).scalar_one())
        except sa.exc.IntegrityError:
            raise StudyExists(f"there is a study {name!r} already") from None
        empty: list[Any] = []
        first = {"study_id": study_id, "round": 0, "search_space": {}, "trials": 0, "finished": 0}
        self._db.execute(sa.insert(rounds), first | {"from_trials": empty, "changes": empty, "revision": 0})
        return study_id

    def delete_study(self, study_id: int) -> None:
        self.writable(study_id)
        self._db.execute(sa.delete(studies).where(studies.c.id == study_id))  # the rest follows by its foreign keys

    def writable(self, study_id: int) -> StudyRow:
        """Return the study, locked until the transaction ends; raise NotMadeByOptuna."""
        query = sa.select(*_STUDY_COLUMNS).where(studies.c.id == study_id, _THERE).with_for_update()
        row = self._db.execute(query).one_or_none()
        if row is None:
            raise KeyError(f"there is no study with id {study_id}")
        if row.created_with != FROM_OPTUNA:
            raise NotMadeByOptuna(row.name)
        return StudyRow(*row)

    def set_study_attr(self, study_id: int, whose: str, key: str, value: Any) -> None:
        """whose: user_attrs or system_attrs."""
        study = self.writable(study_id)
        attrs = {**getattr(study, whose), key: value}
        self._save_study(study_id, **{whose: attrs})

    def set_spec(self, study_id: int, spec: dict[str, Any]) -> None:
        self._save_study(study_id, spec=spec)
        space = {"search_space": spec["search_space"]}
        self._db.execute(sa.update(rounds).where(rounds.c.study_id == study_id).values(space))

    def _save_study(self, study_id: int, **fields: Any) -> None:
        self._db.execute(
            sa.update(studies)
            .where(studies.c.id == study_id)
            .values(revision=studies.c.revision + 1, version=studies.c.version + 1, **fields)
        )

    def add_trial(self, study_id: int, fields: dict[str, Any], steps: Sequence[tuple[int, float | None]]) -> int:
        """Insert a trial under the next number; fields: the columns of its row but numbers and revision."""
        self.writable(study_id)
        counters = self._count(study_id, None, fields["state"], next_number=studies.c.next_number + 1)
        row = {"study_id": study_id, "number": counters.next_number - 1, "revision": counters.revision}
        row |= {"seed": trial_seed(0, counters.next_number - 1), "attempt": 0, "lapsed": 0, "round": 0, **fields}
        trial_id = int(self._db.execute(sa.insert(trials).returning(trials.c.id), row).scalar_one())
        if steps:
            rows = [{"trial_id": trial_id, "step": step, "value": value} for step, value in steps]
            self._db.execute(sa.insert(reports), rows)
        return trial_id

    def trial(self, trial_id: int) -> TrialRow:
        """The trial without its reports, its study locked until the transaction ends."""
        self.writable(self.study_of_trial(trial_id))
        row = self._db.execute(sa.select(*_TRIAL_COLUMNS).where(trials.c.id == trial_id)).one()
        return TrialRow(*row)

    def save_trial(self, before: TrialRow, **fields: Any) -> None:
        counters = self._count(before.study_id, before.state, fields.get("state", before.state))
        changed = sa.update(trials).where(trials.c.id == before.id)
        self._db.execute(changed.values(revision=counters.revision, **fields))

    def put_report(self, before: TrialRow, step: int, value: float | None) -> None:
        mine = sa.and_(reports.c.trial_id == before.id, reports.c.step == step)
        self._db.execute(sa.delete(reports).where(mine))
        self._db.execute(sa.insert(reports), {"trial_id": before.id, "step": step, "value": value})
        self.save_trial(before)

    def _count(self, study_id: int, before: str | None, after: str, **also: Any) -> Any:
        """Move the study's tally and revision; return the row as it is then."""
        changes: dict[str, Any] = {"revision": studies.c.revision + 1, **also}
        if before != after:
            if before is not None:
                changes[_field(before)] = studies.c[_field(before)] - 1
            changes[_field(after)] = studies.c[_field(after)] + 1
        counted = sa.update(studies).where(studies.c.id == study_id).values(changes)
        return self._db.execute(counted.returning(studies.c.revision, studies.c.next_number)).one()


def _field(state: str) -> str:
    return TALLY_FIELD.get(TrialState(state), "queued")
