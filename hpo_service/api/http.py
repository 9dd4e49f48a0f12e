"""Strict JSON in, JSON out: bodies are bounded and parsed once, answers are written by one function."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
import re
import tomllib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from datetime import date, time
from typing import Any, TypeVar

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from pydantic_core import from_json, to_json
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hpo_service.api.problems import pointer, problem
from hpo_service.api.streams import Stream
from hpo_service.api.uploads import is_upload
from hpo_service.domain import json_pointer, nul
from hpo_service.domain.errors import Fault, HpoError, Invalid, MalformedJson

T = TypeVar("T")

LARGEST_BODY = 2**20
TOML = "application/toml"
DEEPEST_KEY = 64  # a.b.c is three deep; tomllib takes quadratic time
_DEEP_KEY = re.compile(rb"(?<![\w\"'-])(?:[\w\"'-]++[ \t]*+\.[ \t]*+){%d}" % DEEPEST_KEY)
_MAY_OVERFLOW = re.compile(rb"[0-9.][eE][+0-9]|[0-9]{300}")  # matches any number that a double cannot hold


def answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response. body: a value to encode, or bytes that are JSON already."""
    return Response(body if isinstance(body, bytes) else to_json(body), status, headers, "application/json")


def in_pieces(first: bytes, rest: AsyncIterator[bytes] | None) -> Response:
    """A JSON response, streamed if it has more than one piece."""
    if rest is None:
        return answer(first)

    return Stream(_whole(first, rest), media_type="application/json")


async def _whole(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    del first  # free its memory: the client may take minutes to read the other pieces
    async for piece in rest:
        yield piece


def page_end(listing: str, key: Any) -> bytes:
    return b'],"next_page_token":%s}' % to_json(page_token(listing, key))


def page(items: bytes, listing: str, key: Any) -> Response:
    """A page of a listing. items: as JSON; key: where the next page starts after; None: this is the last."""
    return answer(b'{"items":%s,"next_page_token":%s}' % (items, to_json(page_token(listing, key))))


def strict_json(content: bytes) -> Any:
    """Parse JSON; only finite numbers, no lone surrogates, no NUL. Raise MalformedJson, Invalid."""
    try:
        document = from_json(content, allow_inf_nan=False)
        if _MAY_OVERFLOW.search(content):
            check_finite(document)
    except ValueError as error:
        raise MalformedJson(f"the body is not JSON: {error}") from None
    if nul.ESCAPE in content and (faults := _nul_faults(document)):
        raise Invalid(faults)
    return document


class StrictRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            try:
                self._json = strict_json(await self.body())
            except HpoError as error:
                # the only exception from reading a body that FastAPI passes on as it is
                raise HTTPException(400) from error
        return self._json


def check_finite(value: Any) -> None:
    """Raise ValueError for a number such as 1e400, which the parser reads as infinity."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number is larger than a double can hold")
    elif isinstance(value, dict):
        for member in value.values():
            check_finite(member)
    elif isinstance(value, list):
        for member in value:
            check_finite(member)


def _nul_faults(document: Any) -> list[Fault]:
    return [Fault(pointer(place, document), nul.RULE) for place in nul.places(document)]


class StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            try:
                return await handler(StrictRequest(request.scope, request.receive))
            except HTTPException as error:
                if isinstance(error.__cause__, HpoError):
                    raise error.__cause__ from None
                raise

        return strict


class StudyFileRoute(StrictRoute):
    """Also accepts TOML, sent as application/toml, and converts it to JSON before the route reads it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def read(request: Request) -> Response:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind == TOML:
                request = _with_json(request, await asyncio.to_thread(json_of_toml, await request.body()))
            return await handler(request)

        return read


def _with_json(request: Request, body: bytes) -> Request:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    kept = [header for header in request.scope["headers"] if header[0] not in (b"content-type", b"content-length")]
    scope = {**request.scope, "headers": [*kept, (b"content-type", b"application/json")]}
    return Request(scope, receive)


def json_of_toml(content: bytes) -> bytes:
    """Convert TOML to JSON. Raise MalformedJson if it is not TOML, Invalid for dates and times, which JSON lacks."""
    if _DEEP_KEY.search(content):
        raise MalformedJson(f"the body is TOML with a key of more than {DEEPEST_KEY} parts")
    try:
        document = tomllib.loads(content.decode())
        check_finite(document)
        faults = list(_dates(document))
        if not faults:
            return to_json(document)
    except (ValueError, RecursionError) as error:
        raise MalformedJson(f"the body is not TOML of finite numbers: {error}") from None
    raise Invalid(faults)


def _dates(value: Any, *place: str | int) -> Iterator[Fault]:
    if isinstance(value, date | time):
        yield Fault(json_pointer.pointer(*place), f"{value} is a date or a time; write it as text, in quotes")
    elif isinstance(value, dict | list):
        for name, member in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _dates(member, *place, name)


class BodyLimit:
    """Refuses bodies above LARGEST_BODY, whether they announce their size or not."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_upload(scope["method"], scope["path"]):
            await self.app(scope, receive, send)  # an upload has a bound of its own
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced[:20]) > LARGEST_BODY:
            await _too_large()(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > LARGEST_BODY:
                raise HTTPException(413, _TOO_LARGE)
            return message

        await self.app(scope, counted, send)


_TOO_LARGE = f"the body is larger than {LARGEST_BODY} bytes; send it in parts"


def _too_large() -> Response:
    return problem(413, "too_large", _TOO_LARGE, headers={"Connection": "close"})


class _Segment(Convertor[str]):
    """A path segment up to a colon, so that mnist:pause is the verb pause on mnist."""

    regex = "[^/:]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _NumberSegment(_Segment):
    """A trial number; a path with anything else there matches no route."""

    regex = "[0-9]{1,10}"


register_url_convertor("segment", _Segment())
register_url_convertor("number", _NumberSegment())


def page_token(listing: str, key: Any) -> str | None:
    """An opaque token for the page after `key`. listing: the route and filters that the token is valid for."""
    if key is None:
        return None
    return base64.urlsafe_b64encode(json.dumps([listing, key]).encode()).decode().rstrip("=")


def read_page_token(listing: str, token: str | None, key_of: type[T] | Any) -> T | None:
    """The key after which the page starts; None: the first page. Raise Invalid for a token of another listing.

    key_of: the type of this listing's keys, by which it is validated: a token is only base64, and may be made up.
    """
    if not token:
        return None
    try:
        padded = token + "=" * (-len(token) % 4)
        made_for, given = from_json(base64.urlsafe_b64decode(padded.encode("ascii")), allow_inf_nan=False)
        key: T = TypeAdapter(key_of).validate_python(given, strict=True)
    except (ValueError, TypeError, binascii.Error):
        raise Invalid([Fault("/page_token", "no page token of this service")]) from None
    if made_for != listing:
        raise Invalid([Fault("/page_token", "made for another listing, or for other filters")])
    return key
