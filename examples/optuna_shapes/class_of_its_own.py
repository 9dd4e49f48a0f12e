"""An objective that is a class, with data of its own."""

import numpy as np
import optuna


class PolynomialFit:
    def __init__(self, points):
        rng = np.random.default_rng(1)
        self.x = np.linspace(-1, 1, points)
        self.y = np.sin(3 * self.x) + 0.1 * rng.normal(size=points)

    def __call__(self, trial):
        degree = trial.suggest_int("degree", 1, 9)
        held_out = np.arange(len(self.x)) % 3 == 0
        coefficients = np.polyfit(self.x[~held_out], self.y[~held_out], degree)
        return np.mean((np.polyval(coefficients, self.x[held_out]) - self.y[held_out]) ** 2)


study = optuna.create_study(direction="minimize")
study.optimize(PolynomialFit(60), n_trials=12, show_progress_bar=True)
print(study.best_params["degree"], study.best_value)
