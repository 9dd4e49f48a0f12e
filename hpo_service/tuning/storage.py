"""The record as a storage of Optuna's: visualization, `load_study` and the dashboard read it through this.

Every write is refused: only the operations keep leases, limits and attempts right. It caches what it has read, and asks
the database only for what has been written since: a poll of a study in which nothing happened is one small query.
"""

from __future__ import annotations

import copy
import json
import math
import threading
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
    json_to_distribution,
)
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo_service.domain import measure
from hpo_service.domain.choices import index_of_choice
from hpo_service.store import Database
from hpo_service.store.optuna_rows import OptunaRows, StudyRow, TrialRow
from hpo_service.tuning.optuna_study import FrozenStudy

T = TypeVar("T")
MOST_STUDIES = 8

_NOT_JSON = "$json"

# The databases that are open in this process: a storage that is unpickled here joins them.
_open: WeakValueDictionary[str, Database] = WeakValueDictionary()


class ReadOnly(StorageInternalError):
    """Studies and trials are written by the server alone."""


@dataclass
class _Known:
    """What has been read of one study, up to a revision."""

    revision: int = -1
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)
    trials: dict[int, FrozenTrial] = field(default_factory=dict)  # by number


class RecordStorage(BaseStorage):
    """Reads only: studies and trials are written by the server alone."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._known: OrderedDict[int, _Known] = OrderedDict()
        self._study_of: dict[int, tuple[int, int]] = {}  # trial id -> study id, number
        _open[_url(database)] = database

    def __getstate__(self) -> dict[str, Any]:
        return {"url": _url(self._database)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        database = _open.get(state["url"]) or Database(state["url"])
        self.__init__(database)  # type: ignore[misc]

    def _read(self, work: Callable[[OptunaRows], T]) -> T:
        return self._database.read(lambda record: work(OptunaRows(record)))

    def _refused(self, *_: Any, **__: Any) -> Any:
        raise ReadOnly("the record is open for reading only: studies and trials are written by the server alone")

    create_new_study = delete_study = set_study_user_attr = set_study_system_attr = _refused
    create_new_trial = set_trial_param = set_trial_state_values = set_trial_intermediate_value = _refused
    set_trial_user_attr = set_trial_system_attr = _refused

    # -- studies ------------------------------------------------------------------------------------------

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
        known.revision = study.revision

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
        return CategoricalDistribution([_hashable(choice) for choice in first["choices"]])
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
        started = row.finished_at  # it ended before it was given out
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
        user_attrs={**_told(row.user_attrs), **(row.metrics or {})},
        system_attrs=_told(row.system_attrs),
        intermediate_values={step: math.nan if value is None else value for step, value in row.reports},
    )


def _param(value: Any, parameter: Mapping[str, Any]) -> Any:
    if parameter["type"] == "categorical":
        index = index_of_choice(parameter["choices"], value)
        return _hashable(value if index is None else parameter["choices"][index])
    return int(value) if parameter["type"] == "int" else float(value)


def _hashable(choice: Any) -> Any:
    """A list as its JSON: Optuna's dashboard and pictures put choices into sets."""
    return json.dumps(choice, ensure_ascii=False) if isinstance(choice, list) else choice


def _local(seconds: float | None) -> datetime | None:
    """Optuna's times are naive, in the reader's local time."""
    return None if seconds is None else datetime.fromtimestamp(seconds)  # noqa: DTZ006


def _told(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: json.loads(value[_NOT_JSON]) if isinstance(value, dict) and _NOT_JSON in value else value
        for key, value in attrs.items()
    }
