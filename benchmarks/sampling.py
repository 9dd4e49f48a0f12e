"""What a draw and a verdict cost at which size of a study, beside Optuna's own, and what a tuner takes of memory.

python benchmarks/sampling.py                    µs of CPU a call (median), at 100 to 100,000 trials before it
python benchmarks/sampling.py --only tpe,median

All in one run, in turns, so that a busy machine is equally busy for all; the last column is what 100,000 trials cost
over what 100 do. A draw is timed cold, as a server makes it: the trial before is told in between. What is found is
compared in search_quality.py.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optuna

from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.tuner import Tuner

SIZES = (100, 1_000, 10_000, 100_000)
LARGEST_FOR_OPTUNA = 10_000
STEPS = 10
ROUNDS = 10
CALLS = 40

TWO = {
    "x": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
    "y": {"type": "float", "low": 1e-8, "high": 1e-4, "log": True},
}
MIXED = {
    "lr": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
    "decay": {"type": "float", "low": 1e-8, "high": 1e-4, "log": True},
    "momentum": {"type": "float", "low": 0.0, "high": 0.95, "step": 0.05},
    "units": {"type": "int", "low": 16, "high": 1024, "log": True},
    "layers": {"type": "int", "low": 1, "high": 6},
    "optimizer": {"type": "categorical", "choices": ["sgd", "momentum", "adam"]},
}
GRID = {name: {"type": "int", "low": 0, "high": 999} for name in ("x", "y")}

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", TWO),
    "tpe": ("tpe", TWO),
    "tpe on 6 axes": ("tpe", MIXED),
    "qmc": ("qmc", TWO),
    "grid": ("grid", GRID),
    "cmaes": ("cmaes", TWO),
    "nsgaii": ("nsgaii", TWO),
}
PRUNERS: dict[str, dict[str, Any]] = {
    "median": {},
    "percentile": {"percentile": 25},
    "halving": {"min_resource": 1, "reduction_factor": 2},
    "hyperband": {"max_resource": 9},
    "patient": {"patience": 2, "wrapped": {"name": "median"}},
    "threshold": {"upper": 2.0},
    "wilcoxon": {},
}


def spec_of(space: dict[str, Any], sampler: str, seed: int, pruner: str = "none") -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "s",
            "directions": ["minimize"],
            "search_space": space,
            "sampler": {"name": sampler, "seed": seed},
            "pruner": {"name": pruner, "params": PRUNERS.get(pruner, {})},
        }
    )


def past(spec: StudySpec, size: int, steps: int = 0) -> Iterator[HistoryTrial]:
    """Finished trials, all over the search space, with the notes that the sampler and the pruner would have made."""
    chance = Tuner(spec_of(spec.search_space.model_dump(exclude_none=True), "random", 2))
    random = np.random.default_rng(0)
    for number in range(size):
        params = chance.draw(number, spec.search_space, {}).params
        curve = random.random(steps) + random.random()
        reports = tuple((step, float(value)) for step, value in enumerate(curve))
        rungs = {f"completed_rung_{k}": float(curve[2**k - 1]) for k in range(3)} if steps else {}
        attrs = {"nsgaii": {"space": "", "generation": 0}, "qmc_index": number, **rungs}
        yield HistoryTrial(number, TrialState.COMPLETE, params, (_loss(params),), reports, attrs)


def _loss(params: dict[str, Any]) -> float:
    return sum(abs(math.log10(value) + 4) for value in params.values() if isinstance(value, float) and value > 0)


class Draws:
    """Asks and tells, one after the other."""

    def __init__(self, sampler: str, space: dict[str, Any], size: int) -> None:
        self._spec = spec_of(space, sampler, 1)
        self._tuner = Tuner(self._spec)
        self._tuner.absorb(past(self._spec, size))
        self._number = size
        self.turn()

    def turn(self) -> list[float]:
        """Microseconds of CPU a draw."""
        return [self._draw() for _ in range(CALLS)]

    def _draw(self) -> float:
        number = self._number
        self._number += 1
        begin = time.thread_time()
        drawn = self._tuner.draw(number, self._spec.search_space, {})
        taken = time.thread_time() - begin
        running = HistoryTrial(number, TrialState.RUNNING, drawn.params, system_attrs=drawn.system_attrs)
        self._tuner.absorb([running])
        told = HistoryTrial(number, TrialState.COMPLETE, drawn.params, (_loss(drawn.params),), (), drawn.system_attrs)
        self._tuner.absorb([told])
        return taken * 1e6


class Verdicts:
    """Reports of one trial after the other, each judged, and the trial told at the end."""

    def __init__(self, pruner: str, size: int) -> None:
        spec = spec_of(TWO, "random", 1, pruner)
        self._tuner = Tuner(spec)
        self._tuner.absorb(past(spec, size, STEPS))
        self._number = size
        self._random = np.random.default_rng(size)
        self.turn()

    def turn(self) -> list[float]:
        """Microseconds of CPU a verdict."""
        taken: list[float] = []
        for _ in range(CALLS // 4):
            reports: dict[int, float] = {}
            attrs: dict[str, Any] = {}
            for step in range(STEPS):
                reports[step] = float(self._random.random() + 0.5)
                begin = time.thread_time()
                verdict = self._tuner.judge(self._number, reports)
                taken.append((time.thread_time() - begin) * 1e6)
                attrs |= verdict.system_attrs
                if verdict.prune:
                    break
            told = HistoryTrial(self._number, TrialState.COMPLETE, {}, (1.0,), tuple(reports.items()), attrs)
            self._tuner.absorb([told])
            self._number += 1
        return taken


def optunas(size: int) -> float:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1))
    ranges = {
        "x": optuna.distributions.FloatDistribution(1e-6, 1e-2, log=True),
        "y": optuna.distributions.FloatDistribution(1e-8, 1e-4, log=True),
    }
    study.add_trials(
        [
            optuna.trial.create_trial(params=dict(trial.params), distributions=ranges, values=trial.values)
            for trial in past(spec_of(TWO, "tpe", 1), size)
        ]
    )
    taken = []
    for number in range(10 if size > 1_000 else 50):
        begin = time.thread_time()
        study.tell(study.ask(ranges), float(number % 7))
        taken.append(time.thread_time() - begin)
    return statistics.median(taken) * 1e6


def measure(name: str, made: Callable[[int], Draws | Verdicts], sizes: tuple[int, ...]) -> None:
    all_sizes = [made(size) for size in sizes]
    taken: list[list[float]] = [[] for _ in sizes]
    for _ in range(ROUNDS):
        for place, one in enumerate(all_sizes):
            taken[place] += one.turn()
    figures = [statistics.median(some) for some in taken]
    print(f"{name:24}" + "".join(f"{figure:>10,.0f}" for figure in figures) + f"{figures[-1] / figures[0]:>12.2f}")


def memory_and_start(size: int) -> None:
    print(f"\n{'':24}{'bytes/trial':>12}{'s to learn':>12}{'s, first draw':>15}   {size:,} finished trials")
    for sampler, pruner in (("random", "none"), ("tpe", "none"), ("tpe", "median"), ("tpe", "hyperband")):
        spec = spec_of(TWO, sampler, 1, pruner)
        trials = list(past(spec, size, STEPS if pruner != "none" else 0))
        tuner = Tuner(spec)
        begin = time.thread_time()
        tuner.absorb(trials)
        learned = time.thread_time() - begin
        tuner.draw(size, spec.search_space, {})
        ready = time.thread_time() - begin - learned
        tracemalloc.start()
        again = Tuner(spec)
        again.absorb(trials)
        again.draw(size, spec.search_space, {})
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        print(f"{sampler + ', ' + pruner:24}{grown / size:>12,.0f}{learned:>12.2f}{ready:>15.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of samplers and pruners, with commas between")
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    asked = parser.parse_args()
    only = [name for name in asked.only.split(",") if name]
    sizes = tuple(size for size in SIZES if size <= asked.largest)
    print(f"{'µs of CPU':24}" + "".join(f"{size:>10,}" for size in sizes) + f"{'last/first':>12}")
    for name, (sampler, space) in SAMPLERS.items():
        if not only or name in only:
            measure(f"{name}, a draw", lambda size, of=(sampler, space): Draws(*of, size), sizes)
    for pruner in PRUNERS:
        if not only or pruner in only:
            measure(f"{pruner}, a verdict", lambda size, of=pruner: Verdicts(of, size), sizes)
    if not only:
        figures = [optunas(size) for size in sizes if size <= LARGEST_FOR_OPTUNA]
        print(f"{'TPE of Optuna in memory':24}" + "".join(f"{figure:>10,.0f}" for figure in figures))
        memory_and_start(sizes[-1])


if __name__ == "__main__":
    main()
