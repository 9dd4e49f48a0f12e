"""Hot calls in front of the application, under any ASGI server."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hpo_service.api.hot_calls import JSON_TYPE, Answer, HotCall, HotCalls
from hpo_service.api.http import LARGEST_BODY


class HotRoutes:
    def __init__(self, app: ASGIApp, application: FastAPI) -> None:
        """app: what answers everything else."""
        self.app = app
        self._calls = HotCalls(application.state)
        self._routes = {route.name: route for route in application.state.routes if isinstance(route, APIRoute)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = HotCall.of(scope["path"].encode()) if scope["type"] == "http" and scope["method"] == "POST" else None
        if call is None or JSON_TYPE not in scope["headers"]:
            await self.app(scope, receive, send)
            return
        received, content = await _read(receive)
        answer = None if content is None else await self._answer(call, content)
        if answer is None:
            await self.app(scope, _from_the_first(received, receive), send)
            return
        scope["route"] = self._routes[call.route]
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, call: HotCall, content: bytes) -> Answer | None:
        answer: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()

        def answered(found: Answer | None) -> None:
            if not answer.done():
                answer.set_result(found)

        return await answer if self._calls.begin(call, content, answered) else None


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


def _from_the_first(received: list[Message], receive: Receive) -> Receive:
    again = iter(received)

    async def next_message() -> Message:
        for message in again:
            return message
        return await receive()

    return next_message
