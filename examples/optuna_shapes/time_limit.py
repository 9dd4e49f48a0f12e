"""As many trials as fit into the time."""

import time

import optuna


def objective(trial):
    time.sleep(0.1)
    return trial.suggest_float("x", -1.0, 1.0) ** 2


study = optuna.create_study(direction="minimize")
began = time.monotonic()
study.optimize(objective, timeout=1.0)
print(len(study.trials) > 0, time.monotonic() - began < 10)
