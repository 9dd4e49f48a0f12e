"""Samplers and pruners. Only this package imports optuna."""
