"""HTTP transport below the API calls: encodes bodies, adds the key, retries transient failures."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast
from urllib.parse import urlencode

from pydantic_core import PydanticSerializationError, to_json

from hpo_service.client.answers import (
    LONE_SURROGATE,
    BrokenOff,
    Unreachable,
    failure_of,
    in_one_line,
    read_json,
    root_reason,
)
from hpo_service.client.connection_pool import ConnectionPool, HttpResponse, NotConnected
from hpo_service.client.retries import Backoff, Failure, Retries
from hpo_service.client.server_url import DEFAULT_SERVER, checked_server
from hpo_service.domain import nul
from hpo_service.domain.errors import NotFound, Unauthenticated
from hpo_service.domain.json_types import Json
from hpo_service.domain.key import PREFIX, form_fault

if TYPE_CHECKING:
    from hpo_service.client.streamed_answers import Streamed, StreamedAnswers

log = logging.getLogger(__name__)

UPLOAD_SECONDS = 120.0  # read timeout of an upload: the server stores it on its disk or in a bucket before it answers

T = TypeVar("T")

_DONE = HttpResponse(204, (), b"")
# Worker calls in which a NUL is replaced by U+FFFD: the server would refuse it, and the result would be lost.
_TOLD = (":report", ":tell", ":release", ":batch")


class HttpTransport:
    """Sends requests to one server, with its bearer token, timeout and retry policy."""

    def __init__(
        self, server: str | None, token: str | None, timeout: float, retries: Retries, rng: random.Random
    ) -> None:
        """server, token: from the environment by default. timeout: seconds."""
        self.server = checked_server(server or os.environ.get("HPO_SERVER") or DEFAULT_SERVER)
        self.timeout, self.retries, self.rng = timeout, retries, rng
        token = (token or os.environ.get("HPO_TOKEN") or _token_from_file()).strip()
        _check_token(token)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._pool = ConnectionPool(self.server, timeout)

    def close(self) -> None:
        self._pool.close()
        if "_streams" in self.__dict__:
            self._streams.close()

    @cached_property
    def _streams(self) -> StreamedAnswers:
        # imported with the first stream: urllib3 would take a quarter of the SDK's import time
        from hpo_service.client.streamed_answers import StreamedAnswers

        return StreamedAnswers(self.timeout)

    def pages(self, path: str, query: Mapping[str, Any]) -> Iterator[Json]:
        token: str | None = None
        while True:
            page = self.json("GET", f"{path}?{urlencode(without_none(**query, page_token=token))}")
            yield from page["items"]
            token = page["next_page_token"]
            if not token:
                return

    def json(self, method: str, path: str, body: Mapping[str, Any] | None = None, **how: Any) -> Json:
        return read_json(self.call(method, path, body, **how))

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        read_timeout: float | None = None,
        repeatable: bool = True,
        retries: Retries | None = None,
    ) -> HttpResponse:
        """Send a request, with retries. Each attempt sends the same body, and with it the same request_id."""
        content = None if body is None else write_json(body)
        if content is not None and path.endswith(_TOLD):
            content = nul.replaced(content)
        all_headers = {**self._headers, **(headers or {})}
        if content is not None:
            all_headers["Content-Type"] = "application/json"
        timeout = read_timeout or self.timeout

        def send() -> HttpResponse:
            try:
                answer = self._pool.call(method, path, content, all_headers, timeout)
            except OSError as error:
                raise self._unreachable(error, retry=repeatable or isinstance(error, NotConnected)) from error
            if 200 <= answer.status < 300:
                return answer
            raise failure_of(answer.status, answer.headers, answer.data)

        return self.call_with_retries(method, send, retries)

    def stream(
        self, path: str, *, headers: Mapping[str, str] | None = None, read_timeout: float | None = None
    ) -> Streamed:
        """GET a response whose body the caller reads piece by piece."""

        all_headers = {**self._headers, **(headers or {})}

        def send() -> Streamed:
            try:
                answer = self._streams.get(self.server + path, all_headers, read_timeout or self.timeout)
                if 200 <= answer.status < 300:
                    return answer
                raise failure_of(answer.status, answer.headers, answer.whole())
            except OSError as error:
                raise self._unreachable(error, retry=True) from error

        return self.call_with_retries("GET", send, None)

    def upload(self, path: str, content: bytes | BinaryIO, size: int) -> Json:
        """PUT the content, without retries. Raise Failure."""
        headers = {**self._headers, "Content-Type": "application/octet-stream", "Content-Length": str(size)}
        try:
            answer = self._streams.put(self.server + path, headers, content, UPLOAD_SECONDS)
        except OSError as error:
            raise self._unreachable(error, retry=True) from error
        if 200 <= answer.status < 300:
            return read_json(answer)
        raise failure_of(answer.status, answer.headers, answer.data)

    def _unreachable(self, error: Exception, *, retry: bool) -> Failure:
        return Failure(Unreachable(f"{self.server} does not answer: {root_reason(error)}"), retry=retry)

    def call_with_retries(self, method: str, send: Callable[[], T], retries: Retries | None) -> T:
        """Call `send` until it succeeds, fails in a way that no retry helps, or the retry deadline passes."""
        backoff = Backoff(retries or self.retries, self.rng, time.monotonic)
        while True:
            try:
                return send()
            except Failure as failure:
                # A retried DELETE answered 404: the first one has deleted it, only its response was lost.
                if backoff.failures and method == "DELETE" and isinstance(failure.error, NotFound):
                    return cast(T, _DONE)
                wait = backoff.after(failure)
                if wait is None:
                    raise failure.error from failure.__cause__
                if backoff.should_log:
                    log.warning("%s; trying again in %.1f s", failure.error.detail.rstrip("."), wait)
            time.sleep(wait)


def _token_from_file() -> str:
    name = os.environ.get("HPO_TOKEN_FILE")
    if not name:
        return ""
    try:
        token = Path(name).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Unauthenticated(f"HPO_TOKEN_FILE names {name}, which cannot be read: {in_one_line(error)}") from None
    if not token:
        raise Unauthenticated(f"HPO_TOKEN_FILE names {name}, which is empty")
    return token


def _check_token(token: str) -> None:
    """Reject a malformed key before any request is sent. A token without our prefix passes: it may be a proxy's."""
    if token.startswith(PREFIX) and (fault := form_fault(token)) is not None:
        raise Unauthenticated(fault)
    if not token.isascii() or not token.isprintable() or " " in token:
        raise Unauthenticated("the key holds a character that no key has; copy it again")


def write_json(body: Mapping[str, Any]) -> bytes:
    """JSON in which NaN and Infinity are strings, and NumPy's scalars and arrays what they stand for.

    Half surrogate pairs, as Python has them for the undecodable bytes of a file's name, become �. Raise TypeError.
    """
    try:
        return to_json(body, inf_nan_mode="strings", fallback=_plain)
    except PydanticSerializationError as error:
        whole = _with_whole_texts(body)
        if whole != body:
            return write_json(whole)
        raise TypeError(str(error).removeprefix("Error serializing to JSON: TypeError: ")) from error


def _with_whole_texts(value: Any) -> Any:
    if isinstance(value, str):
        return LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {_with_whole_texts(name): _with_whole_texts(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_whole_texts(each) for each in value]
    return value


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{value!r:.100} has no form in JSON")


def pieces_of(answer: Streamed, what: str) -> Iterator[bytes]:
    try:
        yield from answer.pieces()
    except OSError as error:
        raise BrokenOff(
            f"{what} broke off before its end ({root_reason(error)}): the study was deleted meanwhile, or the "
            "server or the network between failed. What has come is not all of it"
        ) from error
    finally:
        answer.release()


def without_none(**fields: Any) -> dict[str, Any]:
    """Return the fields that are not None, for a body or a query."""
    return {name: value for name, value in fields.items() if value is not None}
