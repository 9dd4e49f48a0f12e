"""The calls that workers make all day, past the framework: the same models, operations and errors for less.

Only an ordinary call that succeeds, or that the domain refuses, is answered here. Whatever is out of the ordinary
(another content type, a body that is no JSON or breaks a rule, a path that names nothing) goes on to the application,
which gets the same request from its first byte and says what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hpo_service.api.door import studies_of
from hpo_service.api.http import LARGEST_BODY, check_finite
from hpo_service.api.parameters import STUDY_NAME
from hpo_service.api.problems import fault_of_the_server, problem_of
from hpo_service.domain.errors import HpoError
from hpo_service.operations import workers
from hpo_service.operations.calls import Ask, Heartbeat, Reports, Result
from hpo_service.operations.service import Service

Operation = Callable[[Service, str, int, Any, Request], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class _Call:
    """The body's model and the operation; route: the application's own for this call."""

    model: type[BaseModel]
    operation: Operation
    route: str


# Operations are looked up in their module at each call: one of each, for both ways.
_CALLS: Mapping[tuple[bool, bool, str], _Call] = {  # (whether the path names a study, and a trial; the verb)
    (False, False, "ask"): _Call(
        Ask,
        lambda service, study, number, body, request: workers.ask_any(
            service, body, request.is_disconnected, studies_of(request)
        ),
        "ask_any",
    ),
    (True, False, "ask"): _Call(
        Ask,
        lambda service, study, number, body, request: workers.ask_study(service, study, body, request.is_disconnected),
        "ask_study",
    ),
    (True, True, "report"): _Call(
        Reports, lambda service, study, number, body, request: workers.report(service, study, number, body), "report"
    ),
    (True, True, "heartbeat"): _Call(
        Heartbeat,
        lambda service, study, number, body, request: workers.heartbeat(service, study, number, body),
        "heartbeat",
    ),
    (True, True, "tell"): _Call(
        Result, lambda service, study, number, body, request: workers.tell(service, study, number, body), "tell"
    ),
}
_PATH = re.compile(rf"/v1/(?:studies/({STUDY_NAME})/)?trials(?:/([0-9]{{1,9}}))?:([a-z]+)")
_TYPE = (b"content-type", b"application/json")


class HotRoutes:
    def __init__(self, app: ASGIApp, application: FastAPI) -> None:
        """app: what answers everything else."""
        self.app = app
        self._state = application.state
        self._routes = {route.name: route for route in application.state.routes if isinstance(route, APIRoute)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if match is None:
            await self.app(scope, receive, send)
            return
        study, number, verb = match.groups()
        call = _CALLS.get((study is not None, number is not None, verb))
        if call is None or _TYPE not in scope["headers"]:
            await self.app(scope, receive, send)
            return
        received, content = await _read(receive)
        body = _body(call.model, content)
        if body is None:
            await self.app(scope, _from_the_first(received, receive), send)
            return
        scope["route"] = self._routes[call.route]
        request = Request(scope, receive)
        try:
            answer = to_json(await call.operation(self._state.service, study, int(number or 0), body, request))
        except HpoError as error:
            await problem_of(error)(scope, receive, send)
        except Exception as error:
            await fault_of_the_server(request, error)(scope, receive, send)
        else:
            headers = [_TYPE, (b"content-length", b"%d" % len(answer))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": answer})


async def _read(receive: Receive) -> tuple[list[Message], bytes | None]:
    """The messages of the request, and its body; None for one that is too large or breaks off."""
    received: list[Message] = []
    size = 0
    while True:
        message = await receive()
        received.append(message)
        size += len(message.get("body", b""))
        if message["type"] != "http.request" or size > LARGEST_BODY:
            return received, None
        if not message.get("more_body", False):
            return received, b"".join(message["body"] for message in received)


def _body(model: type[BaseModel], content: bytes | None) -> Any:
    """The body of the call, or None where the application shall say what is wrong with it."""
    if content is None:
        return None
    try:
        document = from_json(content, allow_inf_nan=False)
        check_finite(document)
        return model.model_validate(document)
    except (ValueError, ValidationError):
        return None


def _from_the_first(received: list[Message], receive: Receive) -> Receive:
    again = iter(received)

    async def next_message() -> Message:
        for message in again:
            return message
        return await receive()

    return next_message
