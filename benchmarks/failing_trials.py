"""How many trials fail, and what is found, where part of the search space fails: our own network with learning rates at
which it diverges, and cliffs at four distances from the optimum.

    python benchmarks/failing_trials.py                       ten seeds; some minutes
    python benchmarks/failing_trials.py --seeds 2 --samplers tpe,auto --cliffs-only
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

from search_tasks import finished, real, spec_of

from hpo_service.domain.neural_network import configuration
from hpo_service.domain.search_space import Params
from hpo_service.tuning.tuner import Tuner
from hpo_worker.datasets import Dataset, load
from hpo_worker.trainer import Diverged, train

TRIALS = 60
NETWORK: dict[str, Any] = {
    "learning_rate": {"type": "float", "low": 1e-4, "high": 10.0, "log": True},
    "weight_init": {"type": "float", "low": 0.01, "high": 1.0, "log": True},
}
FIXED = {"samples": 500, "epochs": 50}
REALS = {name: {"type": "float", "low": 0.0, "high": 1.0} for name in ("x", "y")}
DISTANCES = (0.0, 0.02, 0.1, 0.3)  # of the cliff from the optimum


@cache
def images() -> Dataset:
    return load("mnist")


def network(params: Params, seed: int) -> float:
    """One less the validation accuracy; NaN where it diverges."""
    value = math.nan
    try:
        for epoch in train(configuration(FIXED, params), seed=seed, study_seed=1, dataset=images()):
            value = epoch.value
    except Diverged:
        return math.nan
    return 1 - value


def cliff(distance: float) -> Callable[[Params, int], float]:
    def loss(params: Params, _seed: int) -> float:
        x, y = real(params["x"]), real(params["y"])
        return math.nan if x > 0.5 + distance else abs(x - 0.5) + (y - 0.3) ** 2

    return loss


def search(space: dict[str, Any], loss: Callable[[Params, int], float], sampler: str, seed: int) -> tuple[int, float]:
    """How many of the trials failed, and the best loss."""
    spec = spec_of(space, sampler, seed)
    tuner, losses = Tuner(spec), []
    for number in range(TRIALS):
        drawn = tuner.draw(number, spec.search_space, {})
        losses.append(loss(drawn.params, number))
        tuner.absorb([finished(number, drawn.params, losses[-1], drawn.system_attrs)])
    there = [each for each in losses if not math.isnan(each)]
    return TRIALS - len(there), min(there, default=math.inf)


def _one(asked: tuple[str, str, int]) -> tuple[int, float]:
    name, sampler, seed = asked
    if name == "network":
        return search(NETWORK, network, sampler, seed)
    return search(REALS, cliff(float(name)), sampler, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--samplers", default="random,tpe,gp,auto")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cliffs-only", action="store_true")
    asked = parser.parse_args()
    names: Sequence[str] = [*map(str, DISTANCES), *([] if asked.cliffs_only else ["network"])]
    print(f"of {TRIALS} trials, the mean of {asked.seeds} seeds: how many failed, and the best (accuracy, or loss)")
    with ProcessPoolExecutor(asked.processes) as pool:
        for name in names:
            for sampler in asked.samplers.split(","):
                found = list(pool.map(_one, [(name, sampler, seed) for seed in range(1, asked.seeds + 1)]))
                failed = [count for count, _ in found]
                best = statistics.mean(loss for _, loss in found)
                best, what = (1 - best, "network") if name == "network" else (best, f"cliff {name} away")
                most = f"{min(failed)} to {max(failed)}"
                print(
                    f"{what:18}{sampler:8}{statistics.mean(failed):5.1f} failed ({most})   best {best:.4f}", flush=True
                )


if __name__ == "__main__":
    main()
