"""Whether a space that grows by what trials suggest is searched as well as the same space declared, and what it costs.

python benchmarks/define_by_run.py                     10 seeds, 100 trials, on a server and a SQLite file of its own
python benchmarks/define_by_run.py --seeds 4 --trials 60 --only sphere5,models

Each search is `study.optimize` over HTTP, of one objective that suggests its parameters one by one. The difference of
the regrets is taken seed by seed, with a 95 % confidence interval; "within the noise" means that it reaches 0. The
costs are medians of calls on studies of different sizes that take turns in one run; their ratio says whether they are
flat.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from processes import serving
from search_tasks import FUNCTIONS, OPTIMA

from hpo_service.client import Client, ObjectiveTrial
from hpo_service.domain.search_space import FloatParameter, Params, SearchSpace

SIZES = (100, 1_000, 10_000)  # of the studies whose calls are timed
TIMED_TRIALS = 100
IMPORTED_AT_ONCE = 500


@dataclass(frozen=True)
class Searched:
    """space: as it is declared; suggest: what an objective asks for, one by one, and the params that it was given."""

    name: str
    space: dict[str, Any]
    loss: Callable[[Params], float]
    best: float

    def objective(self, trial: ObjectiveTrial) -> float:
        space = SearchSpace.model_validate(self.space)
        params: Params = {}
        for name, parameter in space.items():
            if not space.exists(name, params):
                continue
            if isinstance(parameter, FloatParameter):
                params[name] = trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log)
            elif parameter.type == "int":
                params[name] = trial.suggest_int(name, parameter.low, parameter.high, log=parameter.log)
            else:
                params[name] = trial.suggest_categorical(name, parameter.choices)
        return self.loss(params)


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
    """differences: defined by run less declared."""
    if not any(differences):
        return "the same"
    low, high = interval(differences)
    words = "better" if high < 0 else "worse" if low > 0 else "within the noise"
    return f"{words} [{low:+.1e}, {high:+.1e}]"


def models(params: Params) -> float:
    """Two kinds of models, each with a valley of its own; the deeper one is the narrower."""
    if params["model"] == "wide":
        return (
            0.1
            + 0.05 * abs(np.log10(float(str(params["penalty"]))) + 1)
            + 0.02 * (float(str(params["bias"])) - 0.3) ** 2
        )
    return 0.3 * abs(np.log10(float(str(params["rate"]))) + 3) + 0.05 * abs(float(str(params["depth"])) - 6)


MODELS: dict[str, Any] = {
    "model": {"type": "categorical", "choices": ["wide", "deep"]},
    "penalty": {"type": "float", "low": 1e-4, "high": 1e2, "log": True, "when": {"model": ["wide"]}},
    "bias": {"type": "float", "low": -1.0, "high": 1.0, "when": {"model": ["wide"]}},
    "rate": {"type": "float", "low": 1e-6, "high": 1.0, "log": True, "when": {"model": ["deep"]}},
    "depth": {"type": "int", "low": 1, "high": 20, "when": {"model": ["deep"]}},
}


def searched(only: Sequence[str]) -> list[Searched]:
    chosen = [Searched(name, space, loss, OPTIMA.get(name, 0.0)) for name, (loss, space) in FUNCTIONS.items()]
    chosen = [each for each in chosen if each.name in ("sphere5", "hartmann6", "valley", "two_logs")]
    chosen.append(Searched("models", MODELS, models, 0.0))
    return [each for each in chosen if not only or each.name in only]


def regret(client: Client, problem: Searched, seed: int, trials: int, **fields: Any) -> float:
    sampler = {"name": "tpe", "seed": seed, "params": {}}
    name = f"{problem.name.replace('_', '-')}-{seed}-{'run' if 'define_by_run' in fields else 'declared'}"
    study = client.create_study(name, direction="minimize", sampler=sampler, **fields)
    study.optimize(problem.objective, n_trials=trials)
    return study.best_value - problem.best


def compare(client: Client, problem: Searched, seeds: int, trials: int) -> None:
    declared = [regret(client, problem, seed, trials, search_space=problem.space) for seed in range(seeds)]
    by_run = [regret(client, problem, seed, trials, search_space={}, define_by_run=True) for seed in range(seeds)]
    differences = [run - other for run, other in zip(by_run, declared, strict=True)]
    print(
        f"{problem.name:12}{mean_and_error(declared):>20}{mean_and_error(by_run):>20}   {verdict(differences)}",
        flush=True,
    )


# -- what it costs ----------------------------------------------------------------------------------------


def costs(client: Client) -> None:
    space = FUNCTIONS["hartmann6"][1]
    names = {size: _filled(client, space, size) for size in SIZES}
    seconds: dict[str, dict[int, list[float]]] = {
        what: {size: [] for size in SIZES} for what in ("ask", "suggest", "heartbeat")
    }
    for _, size in itertools.product(range(TIMED_TRIALS), SIZES):
        with _timed(seconds["ask"][size]):
            (given,) = client.ask("benchmark", names[size])["trials"]
        trial = names[size], given["number"], given["attempt"]
        for name, parameter in space.items():
            with _timed(seconds["suggest"][size]):
                client.suggest(*trial, {name: parameter})
        with _timed(seconds["heartbeat"][size]):
            client.heartbeat(*trial)
        client.tell(*trial, "COMPLETE", values=[0.5])
    for what, of_sizes in seconds.items():
        medians = {size: statistics.median(of_sizes[size][len(of_sizes[size]) // 10 :]) for size in SIZES}
        shown = "   ".join(f"{size:>7,}: {median * 1e3:.2f} ms" for size, median in medians.items())
        print(f"{what:10} {shown}   largest / smallest study: {medians[SIZES[-1]] / medians[SIZES[0]]:.2f}")


@contextlib.contextmanager
def _timed(seconds: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - began)


def _filled(client: Client, space: dict[str, Any], size: int) -> str:
    name = f"of-{size}"
    client.create_study(name, space, define_by_run=True, direction="minimize", sampler={"name": "tpe", "seed": 1})
    rng = np.random.default_rng(size)
    left = size
    while left > 0:
        count = min(left, IMPORTED_AT_ONCE)
        drawn = rng.uniform(size=(count, len(space)))
        trials = [
            {
                "params": dict(zip(space, map(float, row), strict=True)),
                "state": "COMPLETE",
                "values": [float(row.sum())],
            }
            for row in drawn
        ]
        client.import_trials(name, trials)
        left -= count
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--only", default="", help="names of problems, with commas")
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(f"sqlite:///{folder}/hpo.db") as (url, _),
        Client(url) as client,
    ):
        print(f"regret after {asked.trials} trials, mean ± standard error of {asked.seeds} seeds")
        print(f"{'':12}{'declared':>20}{'defined by run':>20}   by run is")
        for problem in searched([name for name in asked.only.split(",") if name]):
            compare(client, problem, asked.seeds, asked.trials)
        print()
        costs(client)


if __name__ == "__main__":
    main()
