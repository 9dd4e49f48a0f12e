"""Ordered choices are places on an axis: what was good at one makes its neighbours likely."""

from __future__ import annotations

from typing import Any

import pytest

from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.tuner import Tuner

SIZES = [2**k for k in range(40)]


def untried_neighbours(ordered: bool, seed: int) -> int:
    """How many of 30 draws are sizes next to the best of ten, which is 2 ** 20, that nobody has tried."""
    space = {"size": {"type": "categorical", "choices": SIZES, "ordered": ordered}}
    spec = StudySpec.model_validate({"name": "s", "search_space": space, "sampler": {"name": "tpe", "seed": seed}})
    tuner = Tuner(spec)
    tuner.absorb(
        HistoryTrial(number, TrialState.COMPLETE, {"size": 2**k}, (-abs(k - 20),), ())
        for number, k in enumerate(range(0, 40, 4))
    )
    sizes: list[Any] = [tuner.draw(10 + n, spec.search_space, {}).params["size"] for n in range(30)]
    drawn = [size.bit_length() - 1 for size in sizes]
    return sum(k % 4 != 0 and abs(k - 20) < 4 for k in drawn)


@pytest.mark.parametrize("seed", range(4))
def test_tpe_draws_the_neighbours_of_a_good_choice_only_where_the_order_means_something(seed: int) -> None:
    assert untried_neighbours(ordered=True, seed=seed) >= 10
    assert untried_neighbours(ordered=False, seed=seed) < 10  # by chance it is 5
