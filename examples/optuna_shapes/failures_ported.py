"""Some trials fail, and the search goes on."""

import math

from hpo_service.client import Client


def objective(trial):
    x = trial.suggest_float("x", -1.0, 1.0)
    if x < -0.5:
        raise ValueError(f"no training at {x}")
    return float("nan") if x > 0.9 else math.sqrt(x + 0.5)


study = Client().create_study("failures", direction="maximize")
study.optimize(objective, n_trials=20, catch=(ValueError,))
states = [trial.state.name for trial in study.trials]
print(len(states), states.count("COMPLETE") > 0, study.best_value)
