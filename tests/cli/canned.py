"""Studies and trials as the server writes them, for what turns them into words and pictures."""

from __future__ import annotations

import math
from typing import Any

LEARNING_RATE = {"type": "float", "low": 1e-6, "high": 1e-2, "log": True, "step": None, "when": None}
WEIGHT_DECAY = {"type": "float", "low": 1e-8, "high": 1e-4, "log": True, "step": None, "when": None}


def a_round(number: int, **ranges: tuple[float, float]) -> dict[str, Any]:
    given = {"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY}
    space = {name: {**each, **_bounds(ranges.get(name))} for name, each in given.items()}
    return {"round": number, "search_space": space, "first_trial": 40 * number, "trials": 40, "from_trials": []}


def _bounds(bounds: tuple[float, float] | None) -> dict[str, float]:
    return {} if bounds is None else {"low": bounds[0], "high": bounds[1]}


def a_study(**fields: Any) -> dict[str, Any]:
    return {
        "name": "mnist",
        "directions": ["maximize"],
        "search_space": {"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY},
        "sampler": {"name": "random", "seed": 1, "params": {}},
        "pruner": {"name": "none", "params": {}},
        "limits": {"trials": 40, "running": None, "seconds": None, "target": None, "attempts": 3},
        "lease_seconds": 60,
        "narrowing": None,
        "objective": {"kind": "neural_network", "dataset": "mnist", "samples": 500, "epochs": 50},
        "metadata": {},
        "state": "COMPLETED",
        "counts": {"WAITING": 0, "RUNNING": 0, "COMPLETE": 40, "PRUNED": 0, "FAIL": 0},
        "best": {
            "number": 7,
            "params": {"learning_rate": 0.0092, "weight_decay": 3.4e-7},
            "values": [0.83],
            "attempt": 1,
        },
        "rounds": [a_round(0)],
        "test": None,
        "confirmation": None,
        "created_at": "2026-01-01T00:00:00.000000Z",
        **fields,
    }


def a_trial(number: int, value: float | str, *, reports: int = 0, **fields: Any) -> dict[str, Any]:
    params = {"learning_rate": 10 ** -(2 + number % 4), "weight_decay": 10 ** -(4 + number % 5)}
    reached = value if isinstance(value, float) else 0.0
    curve = [
        {
            "step": step,
            "value": reached * (1 - math.exp(-step / 5)),
            "metrics": {"train_accuracy": min(1.0, 1.2 * reached * (1 - math.exp(-step / 5)))},
        }
        for step in range(1, reports + 1)
    ]
    return {
        "study": "mnist",
        "number": number,
        "state": "COMPLETE",
        "params": params,
        "values": [value],
        "attempt": 1,
        "worker_id": "worker-1",
        "reports": curve,
        "metrics": None,
        "reason": None,
        "round": 0,
        "seed": number,
        "started_at": "2026-01-01T00:00:00.000000Z",
        "finished_at": "2026-01-01T00:00:01.000000Z",
        **fields,
    }
