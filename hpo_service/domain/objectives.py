"""The objectives that come with the service, by their kind: what a study may ask of one, and what it measures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from hpo_service.domain import neural_network
from hpo_service.domain.errors import Fault
from hpo_service.domain.narrowing import Bounds
from hpo_service.domain.search_space import SearchSpace


@dataclass(frozen=True)
class BuiltInObjective:
    """
    faults        what is wrong with a study's settings and search space, all of it
    bounds        the lowest and the highest value that it takes for a parameter
    value         what a trial's value is called
    step, steps   what a report's step is called, and how many a trial with these params has
    has_test_set  whether a study of it can end with the sealed test
    """

    faults: Callable[[Mapping[str, object], SearchSpace], list[Fault]]
    bounds: Bounds
    value: str
    step: str
    steps: Callable[[Mapping[str, object], Mapping[str, object]], object]
    has_test_set: bool


OBJECTIVES: Mapping[str, BuiltInObjective] = {
    neural_network.KIND: BuiltInObjective(
        faults=neural_network.objective_faults,
        bounds=neural_network.bounds,
        value="validation accuracy",
        step="epoch",
        steps=neural_network.epochs,
        has_test_set=True,
    ),
}
WITH_TEST_SET = frozenset(kind for kind, objective in OBJECTIVES.items() if objective.has_test_set)


def built_in(objective: Mapping[str, object] | None) -> BuiltInObjective | None:
    """The built-in objective that the study names; None if the objective is the study's own."""
    kind = (objective or {}).get("kind")
    return OBJECTIVES.get(kind) if isinstance(kind, str) else None


def shown(kinds: Collection[str] = OBJECTIVES) -> str:
    return " or ".join(map(repr, kinds))
