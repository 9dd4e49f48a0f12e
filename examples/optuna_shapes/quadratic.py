"""The smallest search: two numbers, and a value to make small."""

import optuna


def objective(trial):
    x = trial.suggest_float("x", -10, 10)
    y = trial.suggest_int("y", -5, 5)
    return (x - 2) ** 2 + (y + 1) ** 2


study = optuna.create_study(direction="minimize")
study.optimize(objective, n_trials=25)
print(study.best_value, study.best_params)
