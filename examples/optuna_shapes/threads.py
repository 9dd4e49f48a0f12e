"""Several trials at a time."""

import time

import optuna


def objective(trial):
    x = trial.suggest_float("x", -1.0, 1.0)
    time.sleep(0.01)
    return x**2


study = optuna.create_study(direction="minimize")
study.optimize(objective, n_trials=20, n_jobs=4)
print(len(study.trials), study.best_params)
