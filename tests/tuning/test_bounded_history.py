"""What is kept of a long history: the same in whichever order it came, bounded, and a few dozen bytes a trial."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo_service.domain.search_space import Params, SearchSpace
from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.axes import Axes
from hpo_service.tuning.bounded_history import RUNNING, BoundedHistory, HistoryBounds
from hpo_service.tuning.past_trials import HistoryChange, PastTrials
from hpo_service.tuning.tuner import Tuner

SPACE = SearchSpace.model_validate(
    {
        "lr": {"type": "float", "low": 1e-6, "high": 1.0, "log": True},
        "units": {"type": "int", "low": 1, "high": 64, "when": {"kind": ["a", 1]}},
        "kind": {"type": "categorical", "choices": ["a", True, 1, None]},
    }
)
BOUNDS = HistoryBounds(best=6, recent=4, sample=5)


@st.composite
def trials(draw: st.DrawFn) -> list[HistoryTrial]:
    made = []
    for number in range(draw(st.integers(0, 60))):
        state = draw(st.sampled_from([TrialState.COMPLETE, *TrialState]))
        params: dict[str, Any] = {
            "lr": draw(st.sampled_from([1e-6, 0.001, 0.25, 1.0, 7.0])),
            "kind": draw(st.sampled_from(["a", True, 1, None, "new"])),
        }
        if params["kind"] in ("a", 1) and params["kind"] is not True:
            params["units"] = draw(st.integers(1, 64))
        reports = draw(st.dictionaries(st.integers(0, 3), st.floats(allow_infinity=False), max_size=2))
        values = (draw(st.sampled_from([-1.5, 0.0, 2.0])),) if state is TrialState.COMPLETE else None
        made.append(HistoryTrial(number, state, params, values, tuple(sorted(reports.items()))))
    return made


def kept(history: BoundedHistory, count: int) -> tuple[Any, ...]:
    numbers = range(count)
    return (
        history.finished,
        sorted(key[3] for key in history.best(6)),
        [number for number in numbers if history.keeps(number, with_running=True)],
        [number for number in numbers if history.is_sampled(number)],
        history.sample_weight,
    )


def history_of(some: Sequence[HistoryTrial], axes: Axes, direction: str = "minimize") -> BoundedHistory:
    history = BoundedHistory([direction], SPACE, BOUNDS)
    for trial in some:
        history.absorb(trial)
    history.restrict_to(axes)
    return history


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(some=trials(), seed=st.integers(0, 9), direction=st.sampled_from(["minimize", "maximize"]))
def test_one_by_one_or_all_at_once_the_same_trials_are_kept(
    some: list[HistoryTrial], seed: int, direction: str
) -> None:
    axes = Axes(SPACE, SPACE)
    at_once = history_of(some, axes, direction)
    one_by_one = history_of([], axes, direction)
    in_any_order = random.Random(seed).sample(some, len(some))
    for trial in in_any_order:
        if trial.state.is_finished:
            one_by_one.absorb(HistoryTrial(trial.number, TrialState.RUNNING, trial.params))
        one_by_one.absorb(trial)
    assert kept(one_by_one, len(some)) == kept(at_once, len(some))


def test_nothing_is_left_out_before_the_bounds_are_reached() -> None:
    some = [HistoryTrial(n, TrialState.COMPLETE, {"lr": 0.1, "kind": None}, (float(n),)) for n in range(15)]
    for count in range(11):
        history = history_of(some[:count], Axes(SPACE, SPACE))
        assert [n for n in range(count) if history.keeps(n, with_running=False)] == list(range(count))
        assert history.sample_weight in (0, 1)


def test_the_sample_stands_for_all_that_is_left_out() -> None:
    some = [HistoryTrial(n, TrialState.COMPLETE, {"lr": 0.1, "kind": None}, (float(n),)) for n in range(100)]
    history = history_of(some, Axes(SPACE, SPACE))
    sampled = [n for n in range(100) if history.is_sampled(n)]
    assert len(sampled) == BOUNDS.sample
    assert BOUNDS.best + BOUNDS.recent + history.sample_weight * len(sampled) == 100


def test_of_many_running_trials_the_latest_repel() -> None:
    history = history_of([], Axes(SPACE, SPACE))
    running = [HistoryTrial(n, TrialState.RUNNING, {"lr": 0.1, "kind": None}) for n in range(RUNNING + 9)]
    for trial in running:
        history.absorb(trial)
    assert [n for n in range(len(running)) if history.keeps(n, with_running=True)] == list(range(9, len(running)))
    history.touched.clear()
    history.absorb(HistoryTrial(20, TrialState.FAIL, {"lr": 0.1, "kind": None}))
    assert history.touched >= {20, 8}, "the one next in age comes back"
    assert history.keeps(8, with_running=True)


@pytest.mark.slow
@given(some=trials())
def test_a_trial_comes_back_from_its_columns_as_it_went_in(some: list[HistoryTrial]) -> None:
    past = PastTrials(1, SPACE)
    for trial in some:
        assert past.put(trial) is HistoryChange.NEWS
        assert past.put(trial) is HistoryChange.NOTHING
    for trial in some:
        back = past[trial.number]
        assert (back.state, back.values) == (trial.state, trial.values)
        assert repr(back.reports) == repr(trial.reports[-1:])
        assert {name: repr(value) for name, value in back.params.items()} == {
            name: repr(value) for name, value in trial.params.items()
        }


@pytest.mark.parametrize("pruner", [{"name": "none"}, {"name": "median"}])
def test_a_finished_trial_takes_a_few_dozen_bytes(pruner: dict[str, Any]) -> None:
    spec = StudySpec.model_validate(
        {
            "name": "s",
            "search_space": SPACE.model_dump(),
            "directions": ["minimize"],
            "sampler": {"name": "tpe", "seed": 1},
            "pruner": pruner,
        }
    )
    reports = tuple((step, 0.5) for step in range(10))
    tuner = Tuner(spec)
    tracemalloc.start()
    for number in range(5_000):
        params: Params = {"lr": 0.1, "kind": None}
        tuner.absorb([HistoryTrial(number, TrialState.COMPLETE, params, (number % 17,), reports)])
    tuner.draw(5_000, spec.search_space, {})
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown / 5_000 < (100 if pruner["name"] == "none" else 250)
