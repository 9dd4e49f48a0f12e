"""The one door to Optuna. Nothing outside imports optuna."""
