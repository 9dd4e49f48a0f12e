"""What the workers of the service's benchmark do, and the trials that were there before them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SPACE = {"learning_rate": (1e-6, 1e-2), "weight_decay": (1e-8, 1e-4)}  # both log-uniform
REPORTS = 10
LONG_AGO = 10**6  # numbers by which imported trials stand before the first of a worker


@dataclass(frozen=True)
class Load:
    """One trial: an ask, so many reports, each with the decision of a median pruner, and a tell."""

    name: str
    sampler: str
    reports: int = 0


RANDOM = Load("random", "random")
TPE = Load("tpe", "tpe", REPORTS)
TPE_ALONE = Load("tpe, no reports", "tpe")
MEDIAN = Load("random, median pruner", "random", REPORTS)
LOADS = {load.name: load for load in (RANDOM, TPE)}


def rising(number: int, step: int) -> float:
    """Every trial does better than those before, so that hardly any is to be pruned."""
    return number + step / 100


def past_trials(load: Load, size: int) -> Iterator[dict[str, Any]]:
    """Finished trials, spread evenly over the search space, in the form of `POST …/trials:import`."""
    for number in range(size):
        params = {
            key: low * (high / low) ** ((number * 0.618 + i * 0.37) % 1)
            for i, (key, (low, high)) in enumerate(SPACE.items())
        }
        reports = [{"step": step, "value": rising(number - LONG_AGO, step)} for step in range(load.reports)]
        value = rising(number - LONG_AGO, load.reports)
        yield {"params": params, "state": "COMPLETE", "values": [value], "reports": reports}
