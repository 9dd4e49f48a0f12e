"""The parts that plain `pip install hpo-service` leaves out, and what to type when one of them is missing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

# By extra (pyproject.toml): the modules that only it installs, by their import names.
MODULES: Mapping[str, tuple[str, ...]] = {
    "server": (
        *("a2wsgi", "alembic", "cmaes", "fastapi", "fastapi_offline", "optuna", "optuna_dashboard"),
        *("prometheus_client", "scipy", "sqlalchemy", "starlette", "uvicorn"),
    ),
    "plot": ("matplotlib",),
    "postgres": ("psycopg",),
    "parquet": ("pyarrow",),
    "artifacts": ("obstore",),
    "otel": ("opentelemetry",),
    "ray": ("ray",),
}


def is_installed(extra: str) -> bool:
    return missing(extra) is None


def missing(extra: str) -> str | None:
    """The extra's first module that is not installed."""
    return next((module for module in MODULES[extra] if find_spec(module) is None), None)


def install(extra: str) -> str:
    """The command that installs the extra."""
    return f"pip install 'hpo-service[{extra}]'"


def extra_of(module: str | None) -> str | None:
    """The extra that installs a module; None if no extra does."""
    top = (module or "").partition(".")[0]
    return next((extra for extra, modules in MODULES.items() if top in modules), None)
