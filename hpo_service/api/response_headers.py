"""Headers of every answer: browsers must not guess its content type, nor show it in a frame of another page."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_POLICY = b"content-security-policy"
_FRAMES = b"frame-ancestors 'none'"
NO_SNIFFING = (b"x-content-type-options", b"nosniff")
NO_FRAMES = (_POLICY, _FRAMES)
ON_EVERY_ANSWER = (NO_SNIFFING, NO_FRAMES)


class ResponseHeaders:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = complete(list(message.get("headers", ())))
            await send(message)

        await self.app(scope, receive, with_headers)


def complete(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Add what is missing. A page keeps its own policy: a browser enforces all policies that an answer has."""
    named = {name.lower(): value for name, value in headers}
    if NO_SNIFFING[0] not in named:
        headers.append(NO_SNIFFING)
    if _FRAMES not in named.get(_POLICY, b""):
        headers.append(NO_FRAMES)
    return headers
