"""How often importances name the parameter that matters most, and what they give to two that do not matter at all.

    python benchmarks/importances.py [--studies 20]

Studies of six parameters, whose weights are 1, 1/2, 1/4, 1/10 and twice 0, with noise; drawn at random, or after ten
trials mostly near the best, as samplers that learn do. Beside each other: the best tenth alone, and at least so many
trials.
"""

from __future__ import annotations

import argparse
import random
import statistics
from unittest.mock import patch

from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning import importances

WEIGHTS = {"a": 1.0, "b": 0.5, "c": 0.25, "d": 0.1, "e": 0.0, "f": 0.0}
SPEC = StudySpec.model_validate(
    {"name": "s", "search_space": {name: {"type": "float", "low": 0, "high": 1} for name in WEIGHTS}}
)


def trials_of(generator: random.Random, number: int, *, learns: bool) -> list[HistoryTrial]:
    trials: list[HistoryTrial] = []
    best: HistoryTrial | None = None
    for each in range(number):
        params = {name: generator.random() for name in WEIGHTS}
        if best is not None and learns and each >= 10 and generator.random() < 0.7:
            params = {name: min(1.0, max(0.0, best.params[name] + generator.gauss(0, 0.1))) for name in WEIGHTS}
        value = -sum(weight * (params[name] - 0.6) ** 2 for name, weight in WEIGHTS.items()) + generator.gauss(0, 0.01)
        trials.append(HistoryTrial(each, TrialState.COMPLETE, params, (value,)))
        best = max(trials, key=lambda trial: trial.values or ())
    return trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=20)
    studies = parser.parse_args().studies
    print("trials drawn    at least  named first  share of what does not matter")
    for learns in (False, True):
        for number in (20, 50, 100, 300):
            for fewest in (0, importances.FEWEST_BEST):
                with patch.object(importances, "FEWEST_BEST", fewest):
                    seeds = (random.Random(seed) for seed in range(studies))
                    found = [importances.importances(SPEC, trials_of(each, number, learns=learns)) for each in seeds]
                first = sum(max(shares, key=lambda name: shares[name] or 0.0) == "a" for shares in found)
                nothing = statistics.mean((shares["e"] or 0.0) + (shares["f"] or 0.0) for shares in found)
                drawn = "by learning" if learns else "at random"
                print(f"{number:6} {drawn:12} {fewest:4}  {first:6} of {studies}  {nothing:.2f}", flush=True)


if __name__ == "__main__":
    main()
