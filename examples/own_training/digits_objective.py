"""A scikit-learn model as a function of a trial."""

from typing import Any

from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC

X, y = load_digits(return_X_y=True)


def accuracy(**params: float) -> float:
    return float(cross_val_score(SVC(**params), X, y, cv=3).mean())


def objective(trial: Any) -> float:
    return accuracy(**trial.params)
