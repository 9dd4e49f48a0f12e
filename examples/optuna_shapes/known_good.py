"""What is known to be good is tried first."""

import optuna


def objective(trial):
    rate = trial.suggest_float("rate", 1e-5, 1.0, log=True)
    momentum = trial.suggest_float("momentum", 0.0, 0.99)
    return (rate - 0.01) ** 2 + (momentum - 0.9) ** 2


study = optuna.create_study(direction="minimize")
study.enqueue_trial({"rate": 0.01, "momentum": 0.9})
study.enqueue_trial({"rate": 0.1})
study.optimize(objective, n_trials=10)
assert study.trials[0].params == {"rate": 0.01, "momentum": 0.9}
assert study.trials[1].params["rate"] == 0.1
print(study.best_trial.number, study.best_value)
