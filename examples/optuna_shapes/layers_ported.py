"""As many parameters as another one says: a width for each layer."""

from hpo_service.client import Client


def objective(trial):
    layers = trial.suggest_int("layers", 1, 4)
    widths = [trial.suggest_int(f"width_{place}", 4, 128, log=True) for place in range(layers)]
    dropout = trial.suggest_float("dropout", 0.0, 0.5, step=0.1)
    return 1 / (1 + abs(sum(widths) - 150) / 50 + dropout)


study = Client().create_study("layers", direction="maximize")
study.optimize(objective, n_trials=30)
print(f"best: {study.best_value:.3f} with {study.best_params}")
