"""Our record as a storage that Optuna may write, so that its own contract suite runs on it: all that is read there
has been written by Optuna. The product has no such thing; there the server alone writes.

A study made this way carries created_with = "optuna" and is STOPPED: nothing is ever given out from it.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo_service.domain import measure, trial
from hpo_service.domain.choices import index_of_choice
from hpo_service.domain.errors import StudyExists
from hpo_service.domain.study import StudyState
from hpo_service.store.optuna_rows import _STUDY_COLUMNS, _TRIAL_COLUMNS, OptunaRows, StudyRow, TrialRow, _there
from hpo_service.store.record import Record
from hpo_service.store.rows import COUNTER_OF_STATE
from hpo_service.store.tables import FROM_OPTUNA, reports, rounds, studies, trials
from hpo_service.tuning.storage import _NOT_JSON, RecordStorage

T = TypeVar("T")

_NO_PREFIX = "no-name-"  # Optuna's own prefix for a study without a name


class WritableRows(OptunaRows):
    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self.now = record.now

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
        """Return the study, locked until the transaction ends."""
        query = sa.select(*_STUDY_COLUMNS).where(studies.c.id == study_id, _there()).with_for_update()
        row = self._db.execute(query).one_or_none()
        if row is None:
            raise KeyError(f"there is no study with id {study_id}")
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
        row |= {"seed": trial.trial_seed(0, counters.next_number - 1), "attempt": 0, "lapsed": 0, "round": 0, **fields}
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
        """Move the study's counts and revision; return the row as it is then."""
        changes: dict[str, Any] = {"revision": studies.c.revision + 1, **also}
        if before != after:
            if before is not None:
                changes[_field(before)] = studies.c[_field(before)] - 1
            changes[_field(after)] = studies.c[_field(after)] + 1
        counted = sa.update(studies).where(studies.c.id == study_id).values(changes)
        return self._db.execute(counted.returning(studies.c.revision, studies.c.next_number)).one()


def _field(state: str) -> str:
    return COUNTER_OF_STATE.get(trial.TrialState(state), "queued")


class WritingStorage(RecordStorage):
    def _write(self, work: Callable[[WritableRows], T]) -> T:
        return self._database.write(lambda record: work(WritableRows(record.sql()))).result()

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        name = f"{_NO_PREFIX}{uuid.uuid4()}" if study_name is None else study_name
        try:
            return self._write(lambda rows: rows.add_study(name, _empty_spec(name, directions)))
        except StudyExists as error:
            raise DuplicatedStudyError(error.detail) from None

    def delete_study(self, study_id: int) -> None:
        self._write(lambda rows: rows.delete_study(study_id))
        self._forget(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._write(lambda rows: rows.set_study_attr(study_id, "user_attrs", key, _kept(value)))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._write(lambda rows: rows.set_study_attr(study_id, "system_attrs", key, _kept(value)))

    def _forget(self, study_id: int) -> None:
        with self._lock:
            self._drop(study_id)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        def work(rows: WritableRows) -> int:
            now = rows.now
            if template_trial is None:
                fields = {"state": "RUNNING", "params": {}, "distributions": {}, "started_at": now}
                return rows.add_trial(study_id, fields | {"user_attrs": {}, "system_attrs": {}}, ())
            for name, distribution in template_trial.distributions.items():
                _learn(rows, study_id, name, distribution)
            steps = [(step, _null_if_nan(value)) for step, value in template_trial.intermediate_values.items()]
            return rows.add_trial(study_id, _columns(template_trial), steps)

        return self._write(work)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        def work(rows: WritableRows) -> None:
            before = _unfinished(rows.trial(trial_id))
            _learn(rows, before.study_id, param_name, distribution)
            value = _transport(distribution.to_external_repr(param_value_internal))
            known = [distribution_to_json(distribution), measure.to_json(float(param_value_internal))]
            rows.save_trial(
                before,
                params={**before.params, param_name: value},
                distributions={**(before.distributions or {}), param_name: known},
            )

        self._write(work)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        def work(rows: WritableRows) -> bool:
            before = _unfinished(rows.trial(trial_id))
            fields: dict[str, Any] = {}
            if values is not None:
                fields |= _values(values)
            taken = state is not TrialState.RUNNING or before.state == "WAITING"
            if taken:
                fields["state"] = state.name
                if state is TrialState.RUNNING:
                    fields["started_at"] = rows.now
                if state.is_finished():
                    fields["finished_at"] = rows.now
            rows.save_trial(before, **fields)
            return taken

        return self._write(work)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        value = _null_if_nan(intermediate_value)
        self._write(lambda rows: rows.put_report(_unfinished(rows.trial(trial_id)), step, value))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        def work(rows: WritableRows) -> None:
            before = _unfinished(rows.trial(trial_id))
            rows.save_trial(before, user_attrs={**before.user_attrs, key: _kept(value)})

        self._write(work)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        def work(rows: WritableRows) -> None:
            before = _unfinished(rows.trial(trial_id))
            rows.save_trial(before, system_attrs={**before.system_attrs, key: _kept(value)})

        self._write(work)


# -- from Optuna to the record ----------------------------------------------------------------------------


def _kept(value: Any) -> Any:
    """An attribute as JSON; one that JSON cannot say as the text that Python's parser takes."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return {_NOT_JSON: json.dumps(value)}
    return value


def _transport(value: Any) -> Any:
    return measure.to_json(value) if isinstance(value, float) else value


def _null_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _values(values: Sequence[float] | None) -> dict[str, Any]:
    if not values:
        return {"values": None, "value": None}
    return {"values": [measure.to_json(float(value)) for value in values], "value": float(values[0])}


def _columns(trial: FrozenTrial) -> dict[str, Any]:
    started, finished = trial.datetime_start, trial.datetime_complete
    numbers = {name: trial.distributions[name].to_internal_repr(value) for name, value in trial.params.items()}
    return {
        "state": trial.state.name,
        "params": {name: _transport(value) for name, value in trial.params.items()},
        "distributions": {
            name: [distribution_to_json(trial.distributions[name]), measure.to_json(float(number))]
            for name, number in numbers.items()
        },
        **_values(trial.values),
        "started_at": None if started is None else started.timestamp(),
        "finished_at": None if finished is None else finished.timestamp(),
        "user_attrs": {key: _kept(value) for key, value in trial.user_attrs.items()},
        "system_attrs": {key: _kept(value) for key, value in trial.system_attrs.items()},
    }


def _unfinished(row: TrialRow) -> TrialRow:
    if TrialState[row.state].is_finished():
        raise UpdateFinishedTrialError(f"trial {row.number} has finished as {row.state} and cannot be changed")
    return row


def _empty_spec(name: str, directions: Sequence[StudyDirection]) -> dict[str, Any]:
    """A study's JSON before its first param is known; the ranges come with the trials."""
    return {
        "name": name,
        "directions": [direction.name.lower() for direction in directions],
        "search_space": {},
        "sampler": {"name": "random", "seed": 0, "params": {}},
        "pruner": {"name": "none", "params": {}},
        "limits": {"trials": None, "running": None, "seconds": None, "target": None, "attempts": 3, "failures": 20},
        "lease_seconds": 60.0,
        "narrowing": None,
        "objective": None,
        "metadata": {"distributions": {}},
    }


def _learn(rows: WritableRows, study_id: int, name: str, distribution: BaseDistribution) -> None:
    """Take a param's distribution into the study; raise ValueError for one that contradicts the one before."""
    study = rows.writable(study_id)
    spec = study.spec
    known: dict[str, str] = spec["metadata"]["distributions"]
    if name in known:
        before = json_to_distribution(known[name])
        if before == distribution:
            return
        check_distribution_compatibility(before, distribution)
    parameter = _parameter(distribution, spec["search_space"].get(name))
    rows.set_spec(
        study_id,
        spec
        | {"search_space": spec["search_space"] | ({} if parameter is None else {name: parameter})}
        | {"metadata": {"distributions": known | {name: distribution_to_json(distribution)}}},
    )


def _parameter(distribution: BaseDistribution, before: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A distribution as a parameter of our search space; None for one that we cannot say."""
    if isinstance(distribution, CategoricalDistribution):
        choices = list(distribution.choices)
        unique = all(index_of_choice(choices, choice) == place for place, choice in enumerate(choices))
        speakable = all(not isinstance(choice, float) or math.isfinite(choice) for choice in choices)
        return {"type": "categorical", "choices": choices, "when": None} if unique and speakable else None
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    if before is not None:
        low, high = min(low, before["low"]), max(high, before["high"])
    if not math.isfinite(high - low):
        return None
    whole = isinstance(distribution, IntDistribution)
    step = None if distribution.log or (distribution.step == 1 and whole) else distribution.step
    return {"log": distribution.log, "when": None, "type": "int" if whole else "float"} | {
        "low": low,
        "high": high,
        "step": step,
    }
