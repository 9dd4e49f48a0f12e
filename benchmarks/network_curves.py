"""Trains random configurations of the built-in network and writes down their curves: what search_quality.py's
surrogate of the network is made of.

    python benchmarks/network_curves.py --configurations 500 benchmarks/network_curves.json     (ten minutes)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

from hpo_service.domain.neural_network import configuration
from hpo_service.domain.study import StudySpec
from hpo_service.tuning.tuner import Tuner
from hpo_worker.datasets import load
from hpo_worker.trainer import Diverged, train

SPACE = {
    "learning_rate": {"type": "float", "low": 1e-5, "high": 1.0, "log": True},
    "weight_decay": {"type": "float", "low": 1e-8, "high": 1e-1, "log": True},
    "weight_init": {"type": "float", "low": 0.01, "high": 0.3, "log": True},
    "batch_size": {"type": "int", "low": 10, "high": 200, "log": True},
    "optimizer": {"type": "categorical", "choices": ["sgd", "momentum", "adam"]},
    "batch_norm": {"type": "categorical", "choices": [False, True]},
}
FIXED = {"samples": 500, "epochs": 15, "hidden_layers": 3, "hidden_units": 100}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--configurations", type=int, default=500)
    asked = parser.parse_args()
    spec = StudySpec.model_validate({"name": "s", "search_space": SPACE, "sampler": {"name": "random", "seed": 1}})
    tuner, dataset = Tuner(spec), load("mnist", None)
    curves: list[dict[str, Any]] = []
    for number in range(asked.configurations):
        params = tuner.draw(number, spec.search_space, {}).params
        values: list[float] = []
        with contextlib.suppress(Diverged):
            epochs = train(configuration(FIXED, params), seed=number, study_seed=1, dataset=dataset)
            values.extend(round(epoch.value, 3) for epoch in epochs)
        curves.append({"params": params, "values": values})
        asked.file.write_text(json.dumps({"space": SPACE, "fixed": FIXED, "curves": curves}))


if __name__ == "__main__":
    main()
