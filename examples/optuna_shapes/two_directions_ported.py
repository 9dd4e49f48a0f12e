"""Accuracy against cost: no single best trial, but those that no other beats."""

from hpo_service.client import Client


def objective(trial):
    width = trial.suggest_int("width", 1, 100)
    depth = trial.suggest_int("depth", 1, 10)
    accuracy = 1 - 1 / (1 + width * depth / 50)
    return accuracy, width * depth**2


study = Client().create_study("two-directions", directions=["maximize", "minimize"])
study.optimize(objective, n_trials=30)
for trial in study.best_trials:
    print(trial.number, trial.values, trial.params)
