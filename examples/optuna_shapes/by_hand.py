"""Ask and tell: the loop is the script's own."""

import optuna

study = optuna.create_study(direction="maximize")
for _ in range(10):
    trial = study.ask()
    x = trial.suggest_float("x", 0.0, 1.0)
    if x < 0.1:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    else:
        study.tell(trial, 1 - (x - 0.7) ** 2)
print(study.best_trial.number, study.best_value)
