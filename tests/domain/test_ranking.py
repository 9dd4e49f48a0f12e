"""What replicates say of the trials that they confirm: means, intervals, and who cannot be told from the first."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from hpo_service.domain.confirmation import Replicate, ranking, worth
from hpo_service.domain.student import interval, quantile
from hpo_service.domain.trial import TrialState


def replicates(**by_trial: list[float | str | None]) -> list[Replicate]:
    """Of trials named t0, t1 and so on, one a seed: its value, None while it is to come, "FAIL" or "PRUNED"."""
    found = []
    for name, values in by_trial.items():
        for seed, value in enumerate(values):
            state = TrialState(value) if isinstance(value, str) else TrialState.COMPLETE
            if value is None:
                state = TrialState.WAITING
            found.append(Replicate(int(name[1:]), seed, state, value if isinstance(value, float) else None))
    return found


def ranked(*, maximize: bool = True, **by_trial: Any) -> Any:
    numbers = [int(name[1:]) for name in by_trial]
    return ranking(numbers, replicates(**by_trial), maximize=maximize)


@pytest.mark.parametrize(
    ("degrees", "t"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (30, 2.042), (49, 2.010)],
)
def test_the_quantiles_are_those_of_the_printed_table(degrees: int, t: float) -> None:
    assert quantile(degrees) == pytest.approx(t, abs=5e-4)


def test_95_of_100_intervals_hold_the_true_mean() -> None:
    rng = random.Random(1)
    for count in (2, 5, 20):
        held = [
            low <= 3 <= high for low, high in (interval([rng.gauss(3, 2) for _ in range(count)]) for _ in range(4000))
        ]
        assert 0.94 < sum(held) / len(held) < 0.96


def test_an_interval_of_any_numbers_is_one() -> None:
    assert interval([1.0]) == interval([]) == interval([1.0, math.inf]) == (-math.inf, math.inf)
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    low, high = interval([1e300, 1e300 + 1e290])
    assert low < 1e300 < high
    assert not any(map(math.isnan, interval([1.7e308, -1.7e308])))


def test_the_best_mean_is_the_first_whoever_was_told_best() -> None:
    found = ranked(t7=[0.5, 0.6], t2=[0.9, 0.8], t3=[0.7, 0.7])
    assert [each.number for each in found.trials] == [2, 3, 7]
    assert found.trials[0].mean == pytest.approx(0.85)
    assert found.trials[0].values == (0.9, 0.8)
    assert found.trials[0].low < 0.85 < found.trials[0].high
    assert [each.number for each in ranked(maximize=False, t7=[0.5, 0.6], t2=[0.9, 0.8]).trials] == [7, 2]
    assert found.winner == 2


def test_who_loses_with_every_seed_is_told_apart_however_much_the_seeds_differ() -> None:
    found = ranked(t0=[1.0, 5.0, 9.0, 13.0], t1=[0.9, 4.88, 8.9, 12.9], t2=[1.1, 4.8, 9.1, 12.7])
    assert found.winner == 0
    assert found.tied == (2,)  # better with some seeds, worse with others; 1 is worse with each by about as much
    assert found.trials[0].low < found.trials[1].mean < found.trials[0].high  # which no one interval shows


def test_equals_are_tied_and_the_one_told_better_comes_first() -> None:
    for maximize in (True, False):
        found = ranked(maximize=maximize, t4=[0.5, 0.5], t1=[0.5, 0.5], t9=[0.5, 0.5])
        assert [each.number for each in found.trials] == [4, 1, 9]
        assert found.tied == (1, 9)


def test_only_who_has_two_complete_replicates_is_ranked_and_failures_are_counted() -> None:
    found = ranked(t0=[0.5, "FAIL", 0.6], t1=[0.9, None, "FAIL"], t2=["FAIL", "FAIL", "FAIL"], t3=["PRUNED", 0.1, 0.2])
    assert [(each.number, each.failed) for each in found.trials] == [(0, 1), (3, 0)]


def test_with_fewer_than_two_seeds_in_common_nobody_is_told_apart() -> None:
    assert ranked(t0=[9.0, 9.1, None], t1=[None, 1.0, 1.1]).tied == (1,)
    assert ranked(t0=[9.0, 9.1, None, None], t1=[None, None, 1.0, 1.1]).tied == (1,)
    assert ranked(t0=[9.0, 9.1, 9.0], t1=[None, 1.0, 1.1]).tied == ()


def test_nothing_told_is_nothing_known() -> None:
    assert ranked(t0=[None, None], t1=[0.5, None]) == ranking([], [], maximize=True)
    assert ranking([], [], maximize=True).winner is None


def test_infinite_values_are_ranked_and_never_told_apart() -> None:
    found = ranked(maximize=False, t0=[math.inf, 1.0], t1=[0.5, 0.6], t2=[math.inf, -math.inf])
    assert [each.number for each in found.trials] == [2, 1, 0]
    assert found.tied == (1, 0)
    assert not any(math.isnan(number) for each in found.trials for number in (each.mean, each.low, each.high))


def test_what_the_best_of_equals_is_worth_is_right_in_the_mean() -> None:
    rng = random.Random(1)
    too_good, corrected = [], []
    for _ in range(2000):
        trainings = [[rng.gauss(0, 1) for _ in range(5)] for _ in range(5)]
        means = [sum(values) / 5 for values in trainings]
        too_good.append(max(means))
        corrected.append(worth(trainings)[means.index(max(means))])
    assert sum(too_good) / 2000 > 0.45
    assert 0.0 < sum(corrected) / 2000 < 0.2


def test_what_a_seed_does_to_all_alike_is_no_noise() -> None:
    seeds = [0.0, 1.0, 2.0, 3.0]
    trainings = [[seed + ahead for seed in seeds] for ahead in (0.3, 0.2, 0.0)]
    assert worth(trainings) == pytest.approx([1.8, 1.7, 1.5])
    assert worth([[*trainings[0]], trainings[1][:3]])[0] < 1.8  # one training failed: seeds cannot be taken out


def test_what_stands_out_from_the_noise_is_worth_its_mean() -> None:
    assert worth([[9.0, 9.001], [1.0, 1.001], [5.0, 5.001]])[0] == pytest.approx(9.0005, abs=1e-3)
    assert worth([[0.5, 0.5], [0.25, 0.25]]) == [0.5, 0.25]
    assert worth([[0.5, 0.7]]) == [0.6]
    assert worth([[0.5, 0.5], [0.5, 0.5]]) == [0.5, 0.5]
    assert worth([[math.inf, 1.0], [0.5, 0.5]]) == [math.inf, 0.5]
