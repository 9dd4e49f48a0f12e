"""An Optuna study without a storage: just the trials that a sampler shall see, and the attributes that it writes.

Optuna's samplers read a study's trials through a thread-local cache: on another thread than the one that the trial
began on, they see an old list. This study has no cache: it is made with its trials for each draw.

Private parts of Optuna's samplers and studies (names with an underscore) are used in this module: any minor release may
change them, so that pyproject.toml admits none that this module has not been tried with.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from optuna._transform import _SearchSpaceTransform as SearchSpaceTransform
from optuna.distributions import BaseDistribution
from optuna.samplers import CmaEsSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from hpo_service.domain.trial import TrialState as State

__all__ = [
    "DIRECTIONS",
    "STATES",
    "AttrRecorder",
    "FrozenStudy",
    "InMemoryStudy",
    "ResumedCmaEs",
    "SearchSpaceTransform",
]
__all__ += ["WORSE_THAN_ANY", "frozen", "tpe_with_n_good"]

DIRECTIONS = {"minimize": StudyDirection.MINIMIZE, "maximize": StudyDirection.MAXIMIZE}

# A trial that waits to be given out again has its params: it repels others as a running one does.
STATES = {state: TrialState[state.name] for state in State} | {State.WAITING: TrialState.RUNNING}

# Samplers and pruners look at no times, but FrozenTrial requires them.
_SOME_TIME = datetime(2020, 1, 1)  # noqa: DTZ001 - Optuna's times have no zone


# TPE ranks a trial whose constraints are violated behind all others.
WORSE_THAN_ANY: dict[str, Any] = {"constraints": [1.0]}


class AttrRecorder:
    """Takes the place of Optuna's storage, and records the attributes that an algorithm writes."""

    def __init__(self, study_attrs: dict[str, Any] | None = None) -> None:
        self.of_trial: dict[str, Any] = {}
        self.of_study: dict[str, Any] = {}
        self._study_attrs = study_attrs or {}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.of_trial[key] = value

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.of_study[key] = value

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return {**self._study_attrs, **self.of_study}


class InMemoryStudy(Study):
    def __init__(
        self, directions: Sequence[str], trials: list[FrozenTrial], name: str = "", notes: AttrRecorder | None = None
    ) -> None:
        self.study_name = name
        self._study_id = 0
        self._directions = [DIRECTIONS[direction] for direction in directions]
        self._trials = trials
        self.notes = notes or AttrRecorder()
        self._storage = cast(BaseStorage, self.notes)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = self._trials if states is None else [trial for trial in self._trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials


class ResumedCmaEs(CmaEsSampler):
    """Optuna's sampler, continued from an optimizer in memory instead of a pickle."""

    optimizer: Any = None

    def new_optimizer(self, transform: SearchSpaceTransform, direction: str) -> Any:
        return self._init_optimizer(transform, DIRECTIONS[direction])

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        return copy.deepcopy(self.optimizer)


def tpe_with_n_good(good: int, **options: Any) -> TPESampler:
    """Optuna's sampler with so many good trials, instead of a tenth of those that it sees."""
    sampler = TPESampler(**options)
    sampler._gamma = lambda _: good
    return sampler


def frozen(
    number: int,
    state: State,
    params: dict[str, Any],
    distributions: Mapping[str, BaseDistribution],
    values: Sequence[float] | None = None,
    reports: Mapping[int, float] | None = None,
    system_attrs: dict[str, Any] | None = None,
) -> FrozenTrial:
    return FrozenTrial(
        number=number,
        state=STATES[state],
        value=None,
        values=values,
        datetime_start=_SOME_TIME,
        datetime_complete=_SOME_TIME if state.is_finished else None,
        params=params,
        distributions={name: distributions[name] for name in params},
        user_attrs={},
        system_attrs=system_attrs or {},
        intermediate_values=dict(reports or {}),
        trial_id=number,
    )
