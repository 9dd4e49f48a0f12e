"""What a draw costs at which size of a study, and what the bounded TPE finds, beside Optuna's own sampler.

python benchmarks/sampling.py cost      µs a draw (median, CPU) at 100 to 100,000 trials before it
python benchmarks/sampling.py quality   simple regret after 100 and 1,000 trials, median and mean over the seeds
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna

from hpo_service.domain.search_space import Params
from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.tuner import Tuner

SIZES = (100, 1_000, 10_000, 100_000)
LARGEST_FOR_OPTUNA = 10_000

TWO = {
    "x": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
    "y": {"type": "float", "low": 1e-8, "high": 1e-4, "log": True},
}


def spec_of(space: dict[str, Any], sampler: str, seed: int, pruner: str = "none") -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "s",
            "directions": ["minimize"],
            "search_space": space,
            "sampler": {"name": sampler, "seed": seed},
            "pruner": {"name": pruner},
        }
    )


def median_cpu(work: Callable[[int], Any], repeats: int) -> float:
    """Microseconds of CPU a call."""
    taken = []
    for number in range(repeats):
        begin = time.thread_time()
        work(number)
        taken.append(time.thread_time() - begin)
    return statistics.median(taken) * 1e6


def cost() -> None:
    print(f"{'':24}" + "".join(f"{size:>10,}" for size in SIZES))
    for sampler in ("random", "tpe"):
        spec = spec_of(TWO, sampler, 1)
        row = []
        for size in SIZES:
            tuner = Tuner(spec)
            tuner.absorb(_past(size))
            row.append(_draws(tuner, spec, size))
        _print_row(f"{sampler}, a draw", row)
    judged = []
    for size in SIZES:
        tuner = Tuner(spec_of(TWO, "random", 1, "median"))
        tuner.absorb(_past(size, steps=10))
        judged.append(_judgements(tuner, size))
    _print_row("median, a judgement", judged)
    _print_row("Optuna's TPE in memory", [_optunas(size) for size in SIZES if size <= LARGEST_FOR_OPTUNA])


def _judgements(tuner: Tuner, size: int) -> float:
    reports = {step: float(step) for step in range(10)}
    return median_cpu(lambda k: tuner.judge(size, reports), 200)


def _print_row(name: str, figures: list[float]) -> None:
    print(f"{name:24}" + "".join(f"{figure:>10,.0f}" for figure in figures))


def _past(size: int, steps: int = 0) -> list[HistoryTrial]:
    random = np.random.default_rng(0)
    logs = random.uniform((-6, -8), (-2, -4), (size, 2))
    curves = random.random((size, steps)) if steps else np.zeros((size, 0))
    return [
        HistoryTrial(
            number,
            TrialState.COMPLETE,
            {"x": float(10 ** logs[number, 0]), "y": float(10 ** logs[number, 1])},
            (float(abs(logs[number] + (3, 5)).sum()),),
            tuple((step, float(value)) for step, value in enumerate(curves[number])),
        )
        for number in range(size)
    ]


def _draws(tuner: Tuner, spec: StudySpec, size: int) -> float:
    """With the trial of each draw absorbed in between, as a server does."""
    taken = []
    for number in range(size, size + 200):
        begin = time.thread_time()
        params = tuner.draw(number, spec.search_space, {}).params
        taken.append(time.thread_time() - begin)
        tuner.absorb([HistoryTrial(number, TrialState.RUNNING, params)])
        tuner.absorb([HistoryTrial(number, TrialState.COMPLETE, params, (float(number % 7),))])
    return statistics.median(taken) * 1e6


def _optunas(size: int) -> float:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1))
    ranges = {
        "x": optuna.distributions.FloatDistribution(1e-6, 1e-2, log=True),
        "y": optuna.distributions.FloatDistribution(1e-8, 1e-4, log=True),
    }
    study.add_trials(
        [
            optuna.trial.create_trial(params=dict(trial.params), distributions=ranges, values=trial.values)
            for trial in _past(size)
        ]
    )
    return median_cpu(lambda k: study.tell(study.ask(ranges), float(k % 7)), 20 if size > 1_000 else 100)


# -- quality ----------------------------------------------------------------------------------------------


def sphere(params: Params) -> float:
    return sum((number(params[f"x{k}"]) - 1.3) ** 2 for k in range(5))


def rosenbrock(params: Params) -> float:
    x, y = number(params["x0"]), number(params["x1"])
    return (1 - x) ** 2 + 100 * (y - x * x) ** 2


def network(params: Params) -> float:
    """Like a validation loss: a valley in the logarithm of the learning rate that a choice moves."""
    lr = math.log10(number(params["lr"])) + (3.0 if params["kind"] == "sgd" else 4.0)
    units = math.log2(number(params["units"])) - 7
    return 0.1 * lr**2 + 0.02 * units**2 + {"sgd": 0.05, "momentum": 0.0, "plain": 0.4}[str(params["kind"])]


def number(value: Any) -> float:
    return float(value)


def reals(count: int, low: float, high: float) -> dict[str, Any]:
    return {f"x{k}": {"type": "float", "low": low, "high": high} for k in range(count)}


FUNCTIONS: dict[str, tuple[Callable[[Params], float], dict[str, Any]]] = {
    "sphere, 5 reals": (sphere, reals(5, -5.0, 5.0)),
    "rosenbrock, 2 reals": (rosenbrock, reals(2, -2.0, 2.0)),
    "network, mixed": (
        network,
        {
            "lr": {"type": "float", "low": 1e-6, "high": 1.0, "log": True},
            "units": {"type": "int", "low": 8, "high": 1024, "log": True},
            "kind": {"type": "categorical", "choices": ["sgd", "momentum", "plain"]},
        },
    ),
}


def quality(seeds: int, sizes: list[int]) -> None:
    print(f"simple regret, median (mean) of {seeds} seeds")
    for name, (function, space) in FUNCTIONS.items():
        for trials in sizes:
            found = {
                "ours": [_search_ours(function, space, trials, seed) for seed in range(seeds)],
                "Optuna": [_search_optuna(function, space, trials, seed) for seed in range(seeds)],
                "random": [_search_ours(function, space, trials, seed, "random") for seed in range(seeds)],
            }
            shown = "   ".join(
                f"{who} {statistics.median(best):.2e} ({statistics.mean(best):.2e})" for who, best in found.items()
            )
            print(f"{name:22} {trials:>5}   {shown}", flush=True)


def _search_ours(
    function: Callable[[Params], float], space: dict[str, Any], trials: int, seed: int, sampler: str = "tpe"
) -> float:
    spec = spec_of(space, sampler, seed)
    tuner, best = Tuner(spec), math.inf
    for trial in range(trials):
        params = tuner.draw(trial, spec.search_space, {}).params
        value = function(params)
        best = min(best, value)
        tuner.absorb([HistoryTrial(trial, TrialState.COMPLETE, params, (value,))])
    return best


def _search_optuna(function: Callable[[Params], float], space: dict[str, Any], trials: int, seed: int) -> float:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    kinds = {"float": optuna.distributions.FloatDistribution, "int": optuna.distributions.IntDistribution}
    ranges: dict[str, Any] = {
        name: optuna.distributions.CategoricalDistribution(parameter["choices"])
        if parameter["type"] == "categorical"
        else kinds[parameter["type"]](parameter["low"], parameter["high"], log=parameter.get("log", False))
        for name, parameter in space.items()
    }
    for _ in range(trials):
        trial = study.ask(ranges)
        study.tell(trial, function(trial.params))
    return study.best_value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "quality"])
    parser.add_argument("--seeds", type=int, default=15)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1_000])
    asked = parser.parse_args()
    if asked.what == "cost":
        cost()
    else:
        quality(asked.seeds, asked.trials)
