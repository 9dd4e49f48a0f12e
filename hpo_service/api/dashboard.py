"""optuna-dashboard at the root of the server, GET only, on a storage that refuses every write.

Its page has /dashboard, /api, /static, /csv and /artifacts built in, so it cannot live under a prefix; only these
paths reach it, all others are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from a2wsgi import WSGIMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from hpo_service.api.problems import problem

PATHS = ("/dashboard", "/api", "/static", "/csv", "/favicon.ico")


class Dashboard:
    """Sends the dashboard's paths to it and everything else on."""

    def __init__(self, app: ASGIApp, wsgi: Callable[[], Any]) -> None:
        self.app = app
        self._make = wsgi
        self._dashboard: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_its_path(scope["path"]):
            await self.app(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            refusal: Response = problem(
                405,
                "method_not_allowed",
                "the dashboard is read-only here; studies are changed under /v1",
                headers={"Allow": "GET, HEAD"},
            )
            await refusal(scope, receive, send)
            return
        if self._dashboard is None:
            self._dashboard = WSGIMiddleware(self._make(), workers=4)  # type: ignore[assignment]
        headers = list(scope["headers"])
        if not any(name == b"accept-encoding" for name, _ in headers):
            headers.append((b"accept-encoding", b"identity"))  # the dashboard answers 500 without one
        assert self._dashboard is not None
        await self._dashboard({**scope, "headers": headers}, receive, send)


def _is_its_path(path: str) -> bool:
    return any(path == known or path.startswith(known + "/") for known in PATHS)
