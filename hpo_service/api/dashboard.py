"""optuna-dashboard at the root of the server, GET only, on a storage that refuses every write.

Its page has /dashboard, /api, /static, /csv and /artifacts built in, so it cannot live under a prefix; only these
paths reach it, all others are ours.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from hpo_service.api.problems import problem
from hpo_service.operations.service import Service
from hpo_service.tuning import dashboard

PATHS = ("/dashboard", "/api", "/static", "/csv", "/favicon.ico")
AT_ONCE = 4
_TOLD = ("type", "http_version", "method", "scheme", "path", "root_path", "query_string", "server", "client")


class Dashboard:
    """Sends the dashboard's paths to it and everything else on."""

    def __init__(self, app: ASGIApp, service: Callable[[], Service]) -> None:
        self.app = app
        self._service = service
        self._turns = asyncio.Semaphore(AT_ONCE)

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
        headers = list(scope["headers"])
        if not any(name == b"accept-encoding" for name, _ in headers):
            headers.append((b"accept-encoding", b"identity"))  # the dashboard answers 500 without one
        told = {key: scope[key] for key in _TOLD if key in scope}
        async with self._turns:
            await self._answer({**told, "headers": headers}, send)

    async def _answer(self, told: Scope, send: Send) -> None:
        async with contextlib.aclosing(self._service().items_apart(partial(dashboard.answered, told))) as items:
            async for item in items:
                if isinstance(item, bytes):
                    await send({"type": "http.response.body", "body": item, "more_body": True})
                else:
                    status, headers = item
                    await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b""})


def _is_its_path(path: str) -> bool:
    return any(path == known or path.startswith(known + "/") for known in PATHS)
