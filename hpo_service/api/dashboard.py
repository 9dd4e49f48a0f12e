"""optuna-dashboard at the root of the server, GET only, on a storage that refuses every write.

Its page has /dashboard, /api, /static, /csv and /artifacts built in, so it cannot live under a prefix. Only PATHS reach
it; the application answers all other paths.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable
from functools import partial

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from hpo_service.api import page_routes
from hpo_service.api.problems import problem, problem_of
from hpo_service.api.query_parameters import KEY_STUDIES
from hpo_service.domain.errors import HpoError
from hpo_service.operations.service import Service
from hpo_service.tuning import dashboard_app

PATHS = ("/dashboard", "/api", "/static", "/csv", "/favicon.ico")
STYLESHEET = f"{page_routes.FILES}/dashboard.css"  # hides the controls that write, which would fail here
AT_ONCE = 4
log = structlog.get_logger()
_TOLD = ("type", "http_version", "method", "scheme", "path", "root_path", "query_string", "server", "client")


class Dashboard:
    """Middleware: the dashboard answers PATHS, the application everything else."""

    def __init__(self, app: ASGIApp, service: Callable[[], Service]) -> None:
        self.app = app
        self._service = service
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_under(scope["path"], PATHS):
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
        headers = list(scope["headers"])
        if not any(name == b"accept-encoding" for name, _ in headers):
            headers.append((b"accept-encoding", b"identity"))  # the dashboard answers 500 without one
        told = {key: scope[key] for key in _TOLD if key in scope}
        async with self._turns:
            refused = await self._answer({**told, "headers": headers}, scope.get(KEY_STUDIES), send)
        if refused is not None:
            await refused(scope, receive, send)

    async def _answer(self, told: Scope, only: frozenset[str] | None, send: Send) -> Response | None:
        """Send the dashboard's answer; return a refusal if it fails before that. only: these studies; None: all."""
        begun = False
        try:
            async with contextlib.aclosing(
                self._service().reads.items_in_process(partial(dashboard_app.answered, told, only, STYLESHEET))
            ) as items:
                async for item in items:
                    begun = True
                    if isinstance(item, bytes):
                        await send({"type": "http.response.body", "body": item, "more_body": True})
                    else:
                        status, headers = item
                        await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": b""})
        except Exception as error:
            if begun:
                raise
            return _refusal(error, told["path"])
        return None


def _refusal(error: Exception, path: str) -> Response:
    if isinstance(error, HpoError) and not isinstance(error, dashboard_app.DashboardFailed):
        return _with_reason(problem_of(error))
    log.error("the dashboard failed", path=path, exc_info=error)
    return _with_reason(problem(503, "unavailable", "the dashboard cannot show this; the server's log says why"))


def _with_reason(refusal: Response) -> Response:
    """Add `reason`, the member that the dashboard's page shows to its user."""
    body = json.loads(bytes(refusal.body))
    headers = {name: value for name, value in refusal.headers.items() if name != "content-length"}
    content = json.dumps({**body, "reason": body["detail"]}).encode()
    return Response(content, refusal.status_code, headers)


def is_under(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(folder + "/") for folder in folders)
