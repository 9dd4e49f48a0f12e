"""How much each parameter mattered: PED-ANOVA by Optuna (Watanabe et al., 2023, arXiv:2304.10255), as shares of 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optuna.importance import PedAnovaImportanceEvaluator

from hpo_service.domain.search_space import CategoricalParameter, Value
from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.axes import AnyParameter, axis
from hpo_service.tuning.optuna_study import StudyInMemory, frozen


def importances(spec: StudySpec, trials: Sequence[HistoryTrial]) -> dict[str, float]:
    """The share of every parameter in what the COMPLETE trials reached; of several directions, in the first.

    A parameter with one value has no share. Where nothing can be told, all others have the same.
    """
    complete = [
        trial
        for trial in trials
        if trial.state is TrialState.COMPLETE and trial.values and math.isfinite(trial.values[0])
    ]
    axes = {
        name: axis(name, _covering(parameter, [trial.params.get(name) for trial in complete]), parameter)
        for name, parameter in spec.search_space.items()
    }
    distributions = {name: some.distribution() for name, some in axes.items()}
    past = []
    for trial in complete:
        assert trial.values
        numbers = {name: axes[name].number_of(value) for name, value in trial.params.items() if name in axes}
        known = {name: number for name, number in numbers.items() if number is not None}
        past.append(frozen(trial.number, trial.state, known, distributions, trial.values[:1]))
    shares = PedAnovaImportanceEvaluator().evaluate(StudyInMemory(spec.directions[:1], past)) if past else {}
    total = sum(shares.values())
    if total > 0 and math.isfinite(total):
        return {name: shares.get(name, 0.0) / total for name in axes}
    variable = [name for name, some in axes.items() if some.size != 1] or list(axes)
    return {name: 1 / len(variable) if name in variable else 0.0 for name in axes}


def _covering(parameter: AnyParameter, values: Sequence[Value]) -> AnyParameter:
    """The range widened to what was tried: rounds that expanded, and enqueued params."""
    if isinstance(parameter, CategoricalParameter):
        return parameter
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if all(parameter.low <= number <= parameter.high for number in numbers):
        return parameter
    # Off its grid of `step` too, perhaps.
    return parameter.model_copy(
        update={"low": min([parameter.low, *numbers]), "high": max([parameter.high, *numbers]), "step": None}
    )
