"""optuna-dashboard on the record, reading only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optuna_dashboard import wsgi

from hpo_service.store import Database
from hpo_service.tuning.storage import RecordStorage


def dashboard_app(database: Database) -> Callable[..., Any]:
    """The dashboard as a WSGI application; it has to live at the root of its server."""
    app: Callable[..., Any] = wsgi(RecordStorage(database, read_only=True))
    return app
