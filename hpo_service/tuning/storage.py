"""The record as a storage of Optuna's: samplers, visualization, `load_study` and the dashboard read it through this.

Read-only, every write is refused. Read-write, it makes studies of its own, which appear in our tables; the studies that
are served over HTTP stay closed to it, since only the operations keep leases, limits and attempts right.
What it has read it keeps, and asks the database only for what has been written since: a poll of a study in which
nothing has happened costs one small query.
"""

from __future__ import annotations

import copy
import json
import math
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from hpo_service.domain import measure
from hpo_service.domain.errors import StudyExists
from hpo_service.domain.search_space import index_of_choice
from hpo_service.store import Database
from hpo_service.store.optuna_rows import NotMadeByOptuna, OptunaRows, StudyRow, TrialRow

T = TypeVar("T")
MOST_STUDIES = 8

_NO_PREFIX = "no-name-"  # Optuna's own prefix for a study without a name
_NOT_JSON = "$json"

# The databases that are open in this process: a storage that is unpickled here joins them.
_open: WeakValueDictionary[str, Database] = WeakValueDictionary()


class ReadOnly(StorageInternalError):
    """The record was opened for reading, or the study is served by us."""


@dataclass
class _Known:
    """What has been read of one study, up to a revision."""

    revision: int = -1
    study: StudyRow | None = None
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)
    trials: dict[int, FrozenTrial] = field(default_factory=dict)  # by number


class RecordStorage(BaseStorage):
    def __init__(self, database: Database, *, read_only: bool = True) -> None:
        self._database = database
        self._read_only = read_only
        self._lock = threading.Lock()
        self._known: OrderedDict[int, _Known] = OrderedDict()
        self._study_of: dict[int, tuple[int, int]] = {}  # trial id -> study id, number
        _open[_url(database)] = database

    def __getstate__(self) -> dict[str, Any]:
        return {"url": _url(self._database), "read_only": self._read_only}

    def __setstate__(self, state: dict[str, Any]) -> None:
        database = _open.get(state["url"]) or Database(state["url"])
        self.__init__(database, read_only=state["read_only"])  # type: ignore[misc]

    def _read(self, work: Callable[[OptunaRows], T]) -> T:
        return self._database.read(lambda record: work(OptunaRows(record)))

    def _write(self, work: Callable[[OptunaRows], T]) -> T:
        if self._read_only:
            raise ReadOnly("the record is open for reading only: studies and trials are written by the server alone")
        try:
            return self._database.write(lambda record: work(OptunaRows(record.sql()))).result()
        except NotMadeByOptuna as error:
            raise ReadOnly(f"study {str(error)!r} is served by the server, which alone writes its trials") from None

    # -- studies ------------------------------------------------------------------------------------------

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

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._read(lambda rows: rows.study_id(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._study(study_id).name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return _directions(self._study(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return _told(self._study(study_id).user_attrs)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return _told(self._study(study_id).system_attrs)

    def get_all_studies(self) -> list[FrozenStudy]:
        return [
            FrozenStudy(
                study_name=row.name,
                direction=None,
                directions=_directions(row),
                user_attrs=_told(row.user_attrs),
                system_attrs=_told(row.system_attrs),
                study_id=row.id,
            )
            for row in self._read(OptunaRows.studies)
        ]

    def _study(self, study_id: int) -> StudyRow:
        return self._read(lambda rows: rows.study(study_id))

    # -- trials -------------------------------------------------------------------------------------------

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        def work(rows: OptunaRows) -> int:
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
        def work(rows: OptunaRows) -> None:
            before = _unfinished(rows.trial(trial_id))
            _learn(rows, before.study_id, param_name, distribution)
            value = _wire(distribution.to_external_repr(param_value_internal))
            known = [distribution_to_json(distribution), measure.to_json(float(param_value_internal))]
            rows.save_trial(
                before,
                params={**before.params, param_name: value},
                distributions={**(before.distributions or {}), param_name: known},
            )

        self._write(work)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        def work(rows: OptunaRows) -> bool:
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
        def work(rows: OptunaRows) -> None:
            before = _unfinished(rows.trial(trial_id))
            rows.save_trial(before, user_attrs={**before.user_attrs, key: _kept(value)})

        self._write(work)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        def work(rows: OptunaRows) -> None:
            before = _unfinished(rows.trial(trial_id))
            rows.save_trial(before, system_attrs={**before.system_attrs, key: _kept(value)})

        self._write(work)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        with self._lock:
            place = self._study_of.get(trial_id)
        study_id = self._read(lambda rows: rows.study_of_trial(trial_id)) if place is None else place[0]
        try:
            known = self._up_to_date(study_id)
            with self._lock:
                return known.trials[self._study_of[trial_id][1]]
        except KeyError:
            raise KeyError(f"there is no trial with id {trial_id}") from None

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        known = self._up_to_date(study_id)
        with self._lock:
            found = [known.trials[number] for number in sorted(known.trials)]
        if states is not None:
            found = [trial for trial in found if trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def _up_to_date(self, study_id: int) -> _Known:
        with self._lock:
            known = self._known.setdefault(study_id, _Known())
            self._known.move_to_end(study_id)
            while len(self._known) > MOST_STUDIES:
                self._drop(next(iter(self._known)))
            try:
                self._read(lambda rows: self._catch_up(rows, study_id, known))
            except KeyError:
                self._drop(study_id)
                raise
            return known

    def _catch_up(self, rows: OptunaRows, study_id: int, known: _Known) -> None:
        if rows.revision(study_id) == known.revision:
            return
        study = rows.study(study_id)
        spaces = [study.spec.get("search_space", {}), *rows.search_spaces(study_id)]
        distributions = {name: _covering(name, spaces) for name in spaces[0]}
        if distributions != known.distributions:
            known.distributions, known.revision = distributions, -1
        for row in rows.trials_since(study_id, known.revision):
            known.trials[row.number] = _frozen(row, distributions, study.spec.get("search_space", {}))
            self._study_of[row.id] = study_id, row.number
        known.study, known.revision = study, study.revision

    def _forget(self, study_id: int) -> None:
        with self._lock:
            self._drop(study_id)

    def _drop(self, study_id: int) -> None:
        known = self._known.pop(study_id, None)
        for trial in known.trials.values() if known is not None else ():
            self._study_of.pop(trial._trial_id, None)


def _url(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


# -- from the record to Optuna ----------------------------------------------------------------------------


def _directions(row: StudyRow) -> list[StudyDirection]:
    return [StudyDirection[direction.upper()] for direction in row.spec["directions"]]


def _covering(name: str, spaces: Sequence[Mapping[str, Any]]) -> BaseDistribution:
    """The range first given, widened to what later rounds have expanded to: one distribution for one name."""
    first = spaces[0][name]
    if first["type"] == "categorical":
        return CategoricalDistribution(first["choices"])
    ranges = [space[name] for space in spaces if name in space]
    low, high = min(some["low"] for some in ranges), max(some["high"] for some in ranges)
    log, step = first.get("log", False), first.get("step")
    if first["type"] == "int":
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(low, high, log=log, step=step)


def _frozen(row: TrialRow, distributions: Mapping[str, BaseDistribution], space: Mapping[str, Any]) -> FrozenTrial:
    params: dict[str, Any] = {}
    own: dict[str, BaseDistribution] = {}
    for name, value in row.params.items():
        if row.distributions is not None and name in row.distributions:
            text, number = row.distributions[name]
            own[name] = json_to_distribution(text)
            params[name] = own[name].to_external_repr(measure.from_json(number))
        elif name in distributions:
            own[name] = distributions[name]
            params[name] = _param(value, space[name])
    state = TrialState[row.state]
    started = row.started_at
    if started is None and state.is_finished():
        started = row.finished_at  # it was ended before it began
    return FrozenTrial(
        number=row.number,
        trial_id=row.id,
        state=state,
        value=None,
        values=None if row.values is None else [measure.from_json(value) for value in row.values],
        datetime_start=_local(started),
        datetime_complete=_local(row.finished_at) if state.is_finished() else None,
        params=params,
        distributions=own,
        user_attrs=_told(row.user_attrs),
        system_attrs=_told(row.system_attrs),
        intermediate_values={step: math.nan if value is None else value for step, value in row.reports},
    )


def _param(value: Any, parameter: Mapping[str, Any]) -> Any:
    if parameter["type"] == "categorical":
        index = index_of_choice(parameter["choices"], value)
        return value if index is None else parameter["choices"][index]
    return int(value) if parameter["type"] == "int" else float(value)


def _local(seconds: float | None) -> datetime | None:
    """Optuna's times are those of the reader's clock on the wall."""
    return None if seconds is None else datetime.fromtimestamp(seconds)  # noqa: DTZ006


def _told(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: json.loads(value[_NOT_JSON]) if isinstance(value, dict) and _NOT_JSON in value else value
        for key, value in attrs.items()
    }


# -- from Optuna to the record ----------------------------------------------------------------------------


def _kept(value: Any) -> Any:
    """An attribute as JSON; one that JSON cannot say as the text that Python's parser takes."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return {_NOT_JSON: json.dumps(value)}
    return value


def _wire(value: Any) -> Any:
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
        "params": {name: _wire(value) for name, value in trial.params.items()},
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


def _learn(rows: OptunaRows, study_id: int, name: str, distribution: BaseDistribution) -> None:
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
