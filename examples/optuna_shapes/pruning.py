"""Hopeless trials end early."""

import optuna
from optuna.trial import TrialState


def objective(trial):
    rate = trial.suggest_float("rate", 1e-3, 1.0, log=True)
    loss = 1.0
    for epoch in range(20):
        loss *= 1 - min(rate, 0.3)
        trial.report(loss, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned()
    return loss


study = optuna.create_study(direction="minimize", pruner=optuna.pruners.MedianPruner())
study.optimize(objective, n_trials=25)
pruned = study.get_trials(deepcopy=False, states=[TrialState.PRUNED])
complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
print(f"{len(study.trials)} trials, {len(pruned)} pruned, {len(complete)} complete")
print(study.best_trial.value)
