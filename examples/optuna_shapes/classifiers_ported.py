"""Two classifiers of scikit-learn on the iris data, and the settings of each."""

import sklearn.datasets
import sklearn.ensemble
import sklearn.model_selection
import sklearn.svm

from hpo_service.client import Client


def objective(trial):
    data = sklearn.datasets.load_iris()
    if trial.suggest_categorical("classifier", ["SVC", "RandomForest"]) == "SVC":
        model = sklearn.svm.SVC(C=trial.suggest_float("svc_c", 1e-5, 1e5, log=True), gamma="auto")
    else:
        depth = trial.suggest_int("forest_depth", 2, 32, log=True)
        model = sklearn.ensemble.RandomForestClassifier(max_depth=depth, n_estimators=10)
    return sklearn.model_selection.cross_val_score(model, data.data, data.target, cv=3).mean()


study = Client().create_study("classifiers", direction="maximize")
study.optimize(objective, n_trials=20)
print(study.best_trial)
