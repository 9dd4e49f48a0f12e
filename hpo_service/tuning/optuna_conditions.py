"""Under which choice a parameter exists: Optuna's studies do not say, but their trials show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optuna.trial import FrozenTrial, TrialState

from hpo_service.domain.choices import identity
from hpo_service.domain.json_types import Json


def conditions(space: Mapping[str, Json], trials: Sequence[FrozenTrial]) -> tuple[dict[str, Json], list[str]]:
    """Return `when` for each parameter whose presence follows a categorical asked for before it, and those without.

    A trial that ended early may have lacked a parameter for that; only COMPLETE ones show that it does not exist.
    """
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    found: dict[str, Json] = {}
    lost = []
    for name in space:
        having = [trial for trial in trials if name in trial.params]
        lacking = [trial for trial in complete if name not in trial.params]
        if not lacking:
            continue
        when = _followed(name, space, having, lacking)
        if when is None:
            lost.append(name)
        else:
            found[name] = when
    return found, lost


def _followed(
    name: str, space: Mapping[str, Json], having: Sequence[FrozenTrial], lacking: Sequence[FrozenTrial]
) -> Json | None:
    before = _asked_before(name, having)
    candidates = []
    for parent in before:
        if space[parent]["type"] != "categorical":
            continue
        under = {identity(trial.params[parent]) for trial in having}
        without = {identity(trial.params[parent]) for trial in lacking if parent in trial.params}
        if under & without or not any(parent in trial.params for trial in lacking):
            continue
        # The one that explains the most; of equals the one that was asked for last.
        unexplained = sum(parent not in trial.params for trial in lacking)
        candidates.append((unexplained, -before.index(parent), parent, under))
    if not candidates:
        return None
    _, _, parent, wanted = min(candidates, key=lambda candidate: candidate[:2])
    return {parent: [choice for choice in space[parent]["choices"] if identity(choice) in wanted]}


def _asked_before(name: str, having: Sequence[FrozenTrial]) -> list[str]:
    """The parameters that every trial with this one has, and had before it."""
    common: list[str] | None = None
    for trial in having:
        names = list(trial.params)
        earlier = names[: names.index(name)]
        common = earlier if common is None else [each for each in common if each in earlier]
    return common or []
