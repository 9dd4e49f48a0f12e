"""Every kind of parameter: steps, logarithms, booleans, nothing, and tuples."""

import optuna


def objective(trial):
    rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
    share = trial.suggest_float("share", 0.0, 1.0, step=0.25)
    batch = trial.suggest_int("batch", 16, 256, step=16)
    nesterov = trial.suggest_categorical("nesterov", [True, False])
    decay = trial.suggest_categorical("decay", [None, 0.1, 0.01])
    schedule = trial.suggest_categorical("schedule", ["constant", "cosine"])
    assert isinstance(batch, int)
    assert isinstance(nesterov, bool)
    return rate * batch + share + (decay or 0) + nesterov + len(schedule)


study = optuna.create_study(direction="maximize")
study.optimize(objective, n_trials=20)
print(study.best_trial.number, study.best_trial.params)
