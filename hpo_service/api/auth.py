"""ASGI middleware: authenticates the API key and checks its scope, studies and rate; OPEN and page files need no key.

A new route is closed by default: what neither reads nor is a worker call or an upload needs an admin key, and a path
that belongs to no study is closed to keys that are bound to studies.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import re
from collections.abc import Callable
from typing import Any

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hpo_service.api import dashboard, metrics, page_routes
from hpo_service.api.page_guard import KEPT_BY_THE_BROWSER, is_from_another_page, is_from_our_page
from hpo_service.api.problems import problem_of, status_of
from hpo_service.api.query_parameters import KEY_STUDIES
from hpo_service.api.rate_limits import TokenBuckets, neighbourhood
from hpo_service.api.uploads import is_upload
from hpo_service.api.worker_calls import ACROSS_STUDIES as CALLS_ACROSS
from hpo_service.api.worker_calls import is_worker_call
from hpo_service.domain import key as keys
from hpo_service.domain.errors import Forbidden, HpoError, NotFound, RateLimited, Unauthenticated
from hpo_service.domain.key import Key
from hpo_service.operations.keyring import VALID_SECONDS, Keyring

OPEN = frozenset({"/healthz", "/readyz", "/version"})
READING = frozenset({"GET", "HEAD", "OPTIONS"})
# Paths of no single study that are open to keys bound to studies: each shows or takes only the key's studies.
_LISTS = ("/v1/studies", "/v1/studies:overview", "/v1/workers")
ACROSS_STUDIES = frozenset({"/", *_LISTS, "/v1/openapi.json", *(call.path for call in CALLS_ACROSS)})
# Pages for browsers: a browser prompts its user for a password (Basic), but cannot be asked for a Bearer key.
PAGES = (*dashboard.PATHS, "/docs", "/studies")

# Limit of wrong keys from one address: so many at once, then so many a second. Calls with a valid key do not count.
WRONG_KEYS = 300
WRONG_KEYS_PER_SECOND = 5.0

_OF_STUDY = re.compile(r"(?:/v1)?/studies/([^/:]+)")
KEY_ID = "hpo_key_id"  # in a call's ASGI scope: the id of its key
_COUNTED = "hpo_counted"  # in a call's ASGI scope: its key's rate limit has been charged already
_BEARER = 'Bearer realm="hpo"'
_BASIC = 'Basic realm="hpo", charset="UTF-8"'
_NO_KEY = (
    "this call needs a key: send Authorization: Bearer hpo_…, or set HPO_TOKEN for the commands and the SDK; "
    "hpo token create makes one on the server's database"
)
_UNKNOWN = "this key opens nothing here: it was never made for this database, has expired, or was revoked"


class Authorizer:
    """Decides by a call's key whether the call is allowed, and limits how often a key may call."""

    def __init__(self, keyring: Callable[[], Keyring], calls_per_second: float = 0) -> None:
        """calls_per_second: of one key; 0 is no limit."""
        self.keyring = keyring
        self._wrong_keys = TokenBuckets(WRONG_KEYS, WRONG_KEYS_PER_SECOND)
        self._calls = TokenBuckets(max(1.0, calls_per_second), calls_per_second) if calls_per_second > 0 else None

    async def key(self, scope: Scope) -> Key:
        """Return the call's key. Raise HpoError if it is missing, wrong, over its rate, or not for this call."""
        keyring = self.keyring()
        if not keyring.is_valid():
            await keyring.refreshed()
        key = self._shown(keyring, scope)
        _check_scope(key, scope["method"], scope["path"])
        if key.studies is not None:
            _check_studies(key.studies, scope["path"])
        if self._calls is not None and not scope.get(_COUNTED):
            _check_rate(self._calls, key)
        return key

    def admitted(self, scope: Any, study: str | None) -> Key | None:
        """Check a worker's call for the fast path, without waiting. None: let `key` decide. study: None for several."""
        keyring = self.keyring()
        if not keyring.is_valid():
            return None
        shown = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(shown) != 1 or not shown[0].startswith(b"Bearer "):
            return None
        key = keyring.find(shown[0][7:].decode("latin-1"))
        if key is None or not key.scope.covers(keys.Scope.WORKER):
            return None
        if key.studies is not None and study is not None and study not in key.studies:
            return None
        if self._calls is not None:
            if self._calls.take(key.id):
                return None
            scope[_COUNTED] = True
        scope[KEY_ID] = key.id
        scope[KEY_STUDIES] = key.studies
        return key

    def _shown(self, keyring: Keyring, scope: Scope) -> Key:
        """Look up the call's key. Raise Unauthenticated; RateLimited after too many wrong keys from one address."""
        token = _token(scope)
        if token is None:
            raise Unauthenticated(_NO_KEY)
        key = keyring.find(token)
        if key is not None:
            return key
        address = neighbourhood(scope["client"][0] if scope.get("client") else "")
        metrics.wrong_keys.inc()
        wait = self._wrong_keys.take(address)
        if wait:
            metrics.rate_limited.inc("address")
            raise RateLimited("too many wrong keys came from this address; try again later", math.ceil(wait))
        raise Unauthenticated(keys.form_fault(token) or _UNKNOWN)


class AuthMiddleware:
    def __init__(self, app: ASGIApp, authorizer: Authorizer) -> None:
        self.app = app
        self._authorizer = authorizer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"] == "GET" and _is_open(scope["path"])):
            await self.app(scope, receive, send)
            return
        try:
            key = await self._authorizer.key(scope)
        except HpoError as error:
            await _refusal(error, scope)(scope, receive, send)
            return
        keyring = self._authorizer.keyring()
        scope[KEY_STUDIES] = key.studies
        scope[KEY_ID] = key.id
        structlog.contextvars.bind_contextvars(key=key.id)
        if scope["path"].endswith(":ask"):
            with keyring.kept_fresh():
                await self.app(scope, _while_the_key_lasts(keyring, key, receive), send)
            return
        if scope["path"].endswith("/events"):
            with keyring.kept_fresh():
                await self._stream(keyring, key, scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _stream(self, keyring: Keyring, key: Key, scope: Scope, receive: Receive, send: Send) -> None:
        """Run an event stream, and end it when its key is revoked, changed or expired."""
        ended = False

        async def noted(message: Message) -> None:
            nonlocal ended
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        cut = _Cut(keyring, key, receive)
        await self.app(scope, cut.receive, noted)
        if cut.happened and not ended:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _token(scope: Scope) -> str | None:
    """The key that the call sends: a Bearer token or, for browser pages and what our page reads, the Basic password."""
    shown = [value for name, value in scope["headers"] if name == b"authorization"]
    if not shown:
        return None
    if len(shown) > 1:
        raise Unauthenticated("the call has several Authorization headers; send one")
    kind, _, rest = shown[0].partition(b" ")
    kind = kind.lower()
    if kind == b"bearer":
        return str(rest.strip().decode("latin-1"))
    if kind == b"basic" and (_is_page(scope["path"]) or _is_read_by_our_page(scope)):
        # a browser adds the password by itself, even to calls that another site's page makes: it may only read
        if scope["method"] not in ("GET", "HEAD"):
            raise Unauthenticated("Basic is for looking at pages; this call needs Authorization: Bearer hpo_…")
        if is_from_another_page(scope["method"], scope["headers"]):
            raise Forbidden(KEPT_BY_THE_BROWSER)
        return _password(rest)
    raise Unauthenticated(_NO_KEY)


def _password(encoded: bytes) -> str:
    try:
        return base64.b64decode(encoded.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        raise Unauthenticated("the Authorization header is not Basic's base64 of user:password") from None


def _check_scope(key: Key, method: str, path: str) -> None:
    needed = scope_needed(method, path)
    if not key.scope.covers(needed):
        raise Forbidden(f"this key is for {key.scope}, and {method} here needs one for {needed}")


def scope_needed(method: str, path: str) -> keys.Scope:
    if method in READING:
        return keys.Scope.READ
    if (method == "POST" and is_worker_call(path)) or is_upload(method, path):
        return keys.Scope.WORKER
    return keys.Scope.ADMIN


def _check_rate(calls: TokenBuckets, key: Key) -> None:
    wait = calls.take(key.id)
    if wait:
        metrics.rate_limited.inc("key")
        raise RateLimited("this key has made too many calls; try again later", math.ceil(wait))


def _check_studies(studies: frozenset[str], path: str) -> None:
    """Raise NotFound for a study that the key may not see, worded as for a study that does not exist."""
    of_study = _OF_STUDY.match(path)
    if of_study is not None:
        if of_study[1] not in studies:
            raise NotFound(f"there is no study {of_study[1]!r}")
    elif path not in ACROSS_STUDIES and not dashboard.is_under(path, ("/docs", *dashboard.PATHS)):
        raise Forbidden("this key is bound to studies, and this path shows or changes what belongs to all")


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(page_routes.FILES + "/")


def _is_page(path: str) -> bool:
    return path in ("/", "/v1/openapi.json") or dashboard.is_under(path, PAGES)


def _is_read_by_our_page(scope: Scope) -> bool:
    """Whether our own page reads data with this call: the browser then sends the page's password along."""
    return scope["method"] in ("GET", "HEAD") and is_from_our_page(scope["headers"])


def _refusal(error: HpoError, scope: Scope) -> Response:
    of_page = page_routes.is_page(scope["path"], scope["headers"]) and scope["method"] == "GET"
    response = page_routes.refused_page(scope["app"], error, status_of(error)) if of_page else problem_of(error)
    if isinstance(error, Unauthenticated):
        response.headers.append("WWW-Authenticate", _BEARER)
        if _is_page(scope["path"]) or (_is_read_by_our_page(scope) and not _shows_bearer(scope)):
            response.headers.append("WWW-Authenticate", _BASIC)
    return response


def _shows_bearer(scope: Scope) -> bool:
    return any(name == b"authorization" and value[:7].lower() == b"bearer " for name, value in scope["headers"])


def _while_the_key_lasts(keyring: Keyring, key: Key, receive: Receive) -> Receive:
    """Wrap `receive`: a waiting ask sees a disconnect once its key is revoked, changed or expired."""

    async def received() -> Message:
        return await receive() if keyring.still_has(key) else {"type": "http.disconnect"}

    return received


class _Cut:
    """`receive` for an event stream: reports a disconnect also when the key is gone; `happened` says that it was so."""

    def __init__(self, keyring: Keyring, key: Key, receive: Receive) -> None:
        self._keyring, self._key, self._receive = keyring, key, receive
        self.happened = False

    async def receive(self) -> Message:
        message = asyncio.ensure_future(self._receive())
        try:
            while not message.done():
                await asyncio.wait({message}, timeout=VALID_SECONDS)
                if not self._keyring.still_has(self._key):
                    self.happened = True
                    return {"type": "http.disconnect"}
            return message.result()
        finally:
            message.cancel()
