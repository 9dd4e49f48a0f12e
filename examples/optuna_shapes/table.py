"""All trials as a table."""

import optuna


def objective(trial):
    kind = trial.suggest_categorical("kind", ["a", "b"])
    trial.set_user_attr("kind_was", kind)
    return trial.suggest_float("x", 0.0, 1.0) if kind == "a" else trial.suggest_int("n", 1, 5)


study = optuna.create_study(direction="minimize")
study.optimize(objective, n_trials=12)
table = study.trials_dataframe()
print(list(table.columns))
print(table[["number", "value", "params_kind", "state"]].head(3))
