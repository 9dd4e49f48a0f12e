"""A scikit-learn model by the SDK: the study is made and trained here, on the server that HPO_SERVER names."""

from digits_objective import accuracy

from hpo_service.client import Client


def objective(trial):
    C = trial.suggest_float("C", 0.01, 100.0, log=True)
    gamma = trial.suggest_float("gamma", 1e-5, 0.1, log=True)
    return accuracy(C=C, gamma=gamma)


with Client() as hpo:
    study = hpo.create_study("digits-by-sdk", direction="maximize")
    study.optimize(objective, n_trials=8)
    print(study.best_value, study.best_params)
