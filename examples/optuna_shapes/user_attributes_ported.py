"""Something to remember beside the value."""

from hpo_service.client import Client


def objective(trial):
    slope = trial.suggest_float("slope", 0.0, 2.0)
    errors = [abs(slope * x - x) for x in range(5)]
    trial.set_user_attr("errors", errors)
    trial.set_user_attr("worst", max(errors))
    return sum(errors)


study = Client().create_study("user-attributes", direction="minimize")
study.optimize(objective, n_trials=15)
print(study.best_trial.user_attrs["worst"], study.best_trial.user_attrs["errors"])
