"""The advice on a study, most important first; what is not certain is not said."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hpo_service.domain.advice_input import Advice, AdviceInput
from hpo_service.domain.advice_on_failures import failures, workers
from hpo_service.domain.advice_on_pruning import pruning
from hpo_service.domain.advice_on_ranges import constants, edges, hardly_matters, log_scales
from hpo_service.domain.advice_on_results import few_trials, stagnation, within_noise

# In the order in which they are told.
_KINDS: tuple[Callable[[AdviceInput], Iterator[Advice]], ...] = (
    workers,
    failures,
    edges,
    within_noise,
    few_trials,
    log_scales,
    stagnation,
    pruning,
    hardly_matters,
    constants,
)


def advice(seen: AdviceInput) -> list[Advice]:
    return [item for kind in _KINDS for item in kind(seen)]
