"""Headers that every answer has: the browser guesses no content type, and shows nothing of ours in another's frame."""

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
    """A page with a policy of its own keeps it: a browser holds a page to all policies that it is sent."""
    named = {name.lower(): value for name, value in headers}
    if NO_SNIFFING[0] not in named:
        headers.append(NO_SNIFFING)
    if _FRAMES not in named.get(_POLICY, b""):
        headers.append(NO_FRAMES)
    return headers
