"""A self-hosted hyperparameter optimization service."""

__version__ = "0.1.0"
