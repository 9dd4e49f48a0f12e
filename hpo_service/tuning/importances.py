"""How much each parameter mattered: PED-ANOVA by Optuna (Watanabe et al., 2023, arXiv:2304.10255), as shares of 1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress

from optuna.importance import PedAnovaImportanceEvaluator

from hpo_service.domain.search_space import AnyParameter, CategoricalParameter, Value
from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.axes import Axis, axis
from hpo_service.tuning.optuna_study import InMemoryStudy, frozen

# The best of the trials: a tenth, or of few trials as many as tell something, at most half. With 50 random trials of
# six parameters the one that matters most comes out first in 20 of 20 studies, and by a tenth alone in 13; with 20
# trials in 17 and 9, and where a sampler has narrowed down in 11 and 1 (benchmarks/importances.py).
BEST, FEWEST_BEST, MOST_BEST = 0.1, 15, 0.5


def importances(spec: StudySpec, trials: Sequence[HistoryTrial]) -> dict[str, float | None]:
    """The share of every parameter in what the COMPLETE trials reached; of several directions, in the first.

    A parameter is judged among the trials that have it. None: it never varied there. Where nothing can be told, all
    that did have the same share.
    """
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE and trial.values]
    axes = {
        name: axis(name, _covering(parameter, [trial.params.get(name) for trial in complete]), parameter)
        for name, parameter in spec.search_space.items()
    }
    judged: dict[str, float] = {}
    for names, having in _together(axes, complete):
        finite = [trial for trial in having if trial.values and math.isfinite(trial.values[0])]
        judged |= dict.fromkeys(names, 0.0)
        if finite:
            judged |= _divergences(spec, {name: axes[name] for name in names}, finite)
    total = sum(judged.values())
    if not total > 0 or not math.isfinite(total):
        judged, total = dict.fromkeys(judged, 1.0), float(len(judged))
    return {name: judged[name] / total if name in judged else None for name in axes}


def _together(
    axes: Mapping[str, Axis], complete: Sequence[HistoryTrial]
) -> Iterator[tuple[list[str], list[HistoryTrial]]]:
    """The parameters that vary, those of the same trials together, with these trials."""
    groups: dict[bytes, list[str]] = {}
    for name, some in axes.items():
        has = bytes(name in trial.params for trial in complete)
        numbers = {some.number_of(trial.params[name]) for trial in complete if name in trial.params}
        if len(numbers - {None}) > 1:
            groups.setdefault(has, []).append(name)
    for has, names in groups.items():
        yield names, list(compress(complete, has))


def _divergences(spec: StudySpec, axes: Mapping[str, Axis], trials: Sequence[HistoryTrial]) -> dict[str, float]:
    """How far the best of the trials differ from all in each parameter."""
    best = max(BEST, min(MOST_BEST, FEWEST_BEST / len(trials)))
    distributions = {name: some.distribution() for name, some in axes.items()}
    past = []
    for trial in trials:
        assert trial.values
        numbers = {name: some.number_of(trial.params[name]) for name, some in axes.items()}
        known = {name: number for name, number in numbers.items() if number is not None}
        past.append(frozen(trial.number, trial.state, known, distributions, trial.values[:1]))
    found = PedAnovaImportanceEvaluator(target_quantile=best).evaluate(InMemoryStudy(spec.directions[:1], past))
    # Optuna scales all by the square of how many trials were among the best, which differs from group to group.
    share = _share_of_best(best, [trial.values[0] for trial in trials if trial.values], maximize=spec.maximizes)
    return {name: found.get(name, 0.0) / share**2 for name in axes}


def _share_of_best(best: float, values: Sequence[float], *, maximize: bool) -> float:
    """The share of trials at least as good as the last of the best; equals of it all count."""
    worst = sorted(values, reverse=maximize)[math.ceil(best * len(values)) - 1]
    return sum(value >= worst if maximize else value <= worst for value in values) / len(values)


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
