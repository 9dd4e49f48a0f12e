"""For each request: its id, a log line if it fails, a line of the access log, and a span.

Every answer has the request's id, by which its log lines are found. Ids are made from a counter: one costs a fifth of
a microsecond, a random one ten times that.
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import structlog
from pydantic_core import from_json
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hpo_service import log_format, tracing
from hpo_service.api import metrics
from hpo_service.api.auth import KEY_ID
from hpo_service.api.problems import problem
from hpo_service.log_format import limited

Headers = Iterable[tuple[bytes, bytes]]

HEADER = b"x-request-id"
LONGEST_DETAIL = 300  # characters
_GIVEN = re.compile(rb"[ -~]{1,128}")
_TRACE = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_PREFIX = secrets.token_hex(8).encode()
_numbers = itertools.count(1)

log = structlog.get_logger()


def id_of(headers: Headers) -> bytes:
    """The id that the caller gave its request, or a new one."""
    given = dict(headers).get(HEADER)
    return given if given is not None and _GIVEN.fullmatch(given) else new_id()


def new_id() -> bytes:
    """An id that is unique among the requests of all servers."""
    return b"%s-%x" % (_PREFIX, next(_numbers))


def trace_of(headers: Headers) -> dict[str, str]:
    """trace_id and span_id of the caller (W3C Trace Context), where its header is valid."""
    given = [value for name, value in headers if name == b"traceparent"]
    found = _TRACE.fullmatch(given[0].decode("latin-1")) if len(given) == 1 else None
    if found is None or (found[1] == "00" and found[4]):
        return {}
    return {"trace_id": found[2], "span_id": found[3]}


def address(scope: Any) -> str:
    client = scope.get("client")
    return f"{client[0]}:{client[1]}" if client else ""


def refused(client: tuple[str, int] | None, headers: Headers | None, status: int, code: str, detail: str) -> bytes:
    """Log that a connection was refused before its request could reach a route; return the request's id.

    headers: those received so far.
    """
    request_id = id_of(headers or ())
    if limited.allows(("refused", status, code)):
        log.warning(
            "a connection was refused",
            status=status,
            code=code,
            request_id=request_id.decode(),
            client=f"{client[0]}:{client[1]}" if client else "",
            detail=detail[:LONGEST_DETAIL],
            **trace_of(headers or ()),
        )
    return request_id


def failed(
    scope: Any,
    route: str,
    status: int,
    body: bytes,
    seconds: float,
    error: Exception | None = None,
    said: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Log a 5xx or 413 answer. body: the problem document; said: the request's context, if structlog has none bound."""
    its_problem = _problem(body)
    code = str(its_problem.get("code", ""))
    if not limited.allows(("failed", status, code)):
        return
    log.log(
        logging.ERROR if status == 500 else logging.WARNING,
        "a request failed",
        status=status,
        code=code,
        route=route,
        method=scope["method"],
        detail=str(its_problem.get("detail", ""))[:LONGEST_DETAIL],
        seconds=round(seconds, 4),
        **({} if error is None else {"exc_info": error}),
        **said,
    )


def _problem(body: bytes) -> dict[str, Any]:
    try:
        said = from_json(body)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def context(scope: Any, request_id: bytes) -> dict[str, str]:
    """The fields of every log line about a request."""
    return {"request_id": request_id.decode(), "client": address(scope), **trace_of(scope["headers"])}


def accessed(scope: Any, request_id: bytes, status: int, seconds: float, size: int) -> None:
    """Write a line of the access log. The path is as it was sent, percent-encoded, and without its query."""
    log.info(
        "access",
        method=scope["method"],
        path=scope["raw_path"].decode("ascii", "backslashreplace"),
        status=status,
        seconds=round(seconds, 6),
        bytes=size,
        client=address(scope),
        request_id=request_id.decode(),
        key=scope.get(KEY_ID),
    )


class RequestLog:
    """Middleware that logs requests, makes spans, and turns an exception before the answer's start into a 500."""

    def __init__(self, app: ASGIApp, access_log: bool = False) -> None:
        self.app = app
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        with structlog.contextvars.bound_contextvars(**context(scope, answer.request_id)):
            try:
                if tracing.is_on():
                    await self._traced(scope, receive, answer)
                else:
                    await self._answered(scope, receive, answer)
            finally:
                if self._access_log:
                    accessed(scope, answer.request_id, answer.status, answer.seconds, answer.size)

    async def _traced(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        attributes = {
            "http.request.method": scope["method"],
            "url.path": scope["path"],  # without the query
            "url.scheme": scope.get("scheme", "http"),
            "client.address": scope["client"][0] if scope.get("client") else "",
            "hpo.request_id": answer.request_id.decode(),
        }
        with tracing.request(scope["headers"], attributes) as span:
            await self._answered(scope, receive, answer)
            tracing.answered(span, answer.route, scope["method"], answer.status)

    async def _answered(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            await self.app(scope, receive, answer.send)
        except ClientDisconnect:
            return  # while its body arrived: nobody waits for an answer
        except Exception as error:
            log_format.mark_as_logged(error)
            if answer.status:
                if limited.allows(("broke off", answer.route)):
                    log.error("an answer broke off", route=answer.route, status=answer.status, exc_info=error)
                raise
            answer.error = error
            fault = problem(500, "internal", "the server met a fault of its own; its log says which")
            await fault(scope, receive, answer.send)


class _Answer:
    """Observes an answer while it is sent. error: the exception behind a 500."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.request_id = id_of(scope["headers"])
        self.status = 0  # until the answer begins
        self.size = 0
        self.error: Exception | None = None
        self._scope, self._send = scope, send
        self._began = time.perf_counter()
        self._is_to_be_logged = False

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    @property
    def route(self) -> str:
        return str(getattr(self._scope.get("route"), "path", "none"))

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begin(message)
        elif message["type"] == "http.response.body":
            self._go_on(message.get("body", b""))
        await self._send(message)

    def _begin(self, message: Message) -> None:
        self.status = message["status"]
        message["headers"] = [*message.get("headers", ()), (HEADER, self.request_id)]
        metrics.count(self.route, self._scope["method"], self.status, self.seconds)
        self._is_to_be_logged = self.status >= 500 or self.status == 413

    def _go_on(self, part: bytes) -> None:
        self.size += len(part)
        if self._is_to_be_logged:  # a problem comes in one part
            self._is_to_be_logged = False
            failed(self._scope, self.route, self.status, part, self.seconds, self.error)
