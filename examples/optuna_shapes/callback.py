"""A callback that looks at each trial, and ends the search when it is good enough."""

import optuna

seen = []


def objective(trial):
    return trial.suggest_float("x", 0.0, 1.0)


def stop_when_small(study, trial):
    seen.append((trial.number, trial.state.name, trial.value))
    if len(study.trials) >= 5 and study.best_value < 0.5:
        study.stop()


study = optuna.create_study(direction="minimize")
study.optimize(objective, n_trials=50, callbacks=[stop_when_small])
assert seen[-1][0] == len(seen) - 1
print(len(seen), study.best_value)
