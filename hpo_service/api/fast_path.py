"""The fast path: a connection answers workers' calls itself, without the layers of the application.

It uses the same table, models and operations (`worker_calls.py`), at a third of the processor time
(docs/decisions/0015). A request takes it only if its body is small (HIGH_WATER_LIMIT), nothing else is in progress on
its connection, and its key allows the call. All others go through uvicorn to the application, and so does a call that
raises an unexpected error. Many clients send head and body separately: the connection waits here for the body.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from fastapi import FastAPI
from httptools import HttpParserUpgrade
from pydantic import ValidationError
from pydantic_core import to_json

from hpo_service.api import metrics, page_guard, request_heads, request_log, worker_calls
from hpo_service.api.auth import Authorizer
from hpo_service.api.http import LARGEST_BODY, strict_json
from hpo_service.api.one_protocol import Parser
from hpo_service.api.problems import problem_of, refused_body
from hpo_service.api.response_headers import ON_EVERY_ANSWER
from hpo_service.api.streams import BREAK_OFF
from hpo_service.api.uvicorn_protocol import HIGH_WATER_LIMIT, STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from hpo_service.api.worker_calls import Found, OnStudy
from hpo_service.domain.errors import HpoError, Unavailable
from hpo_service.domain.key import Key
from hpo_service.operations.service import Answered

JSON_TYPE = (b"content-type", b"application/json")
_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close() sends a reset (RST) instead of FIN


class Trailers(list[tuple[bytes, bytes]]):
    """Replaces the header list once a request's head is complete: counts and drops the fields that follow a body."""

    number = 0

    def append(self, _: object) -> None:
        self.number += 1
        if self.number > request_heads.MOST_HEADERS:
            raise request_heads.too_many("trailers")


class FastPath:
    """What the connections of a server share."""

    def __init__(self, application: FastAPI) -> None:
        self.state = application.state
        self.access_log: bool = application.state.access_log
        self.authorizer: Authorizer | None = application.state.authorizer
        self._default_headers: list[tuple[bytes, bytes]] = []
        self._default_lines = b""

    def lines(self, default_headers: list[tuple[bytes, bytes]]) -> bytes:
        """Encoded headers of every answer, ours and uvicorn's; uvicorn makes a new list of its own every second."""
        if default_headers is not self._default_headers:
            self._default_headers = default_headers
            self._default_lines = header_lines((*default_headers, *ON_EVERY_ANSWER))
        return self._default_lines

    def begin(self, cycle: FastCycle, done: Answered) -> None:
        """Begin a call whose body is complete. done: called with the answer or the error, now or later in the loop."""
        call, study, number = cycle.found
        try:
            document = strict_json(cycle.body)
            body = call.body.model_validate(document)
        except HpoError as error:
            done(None, error)
        except ValidationError as error:
            found = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors(include_url=False)]
            done(None, refused_body(found, document))
        else:
            service, caller_left = self.state.service, partial(self._caller_left, cycle)
            if isinstance(call, OnStudy):
                assert study is not None
                call.begin(service, study, number, body).begin(service, done, caller_left)
            else:
                only = None if cycle.key is None else cycle.key.studies
                service.run_in_task(call.answer(service, body, only, caller_left), done)

    async def _caller_left(self, cycle: FastCycle) -> bool:
        """Whether the waiting caller has disconnected, or its key is no longer valid."""
        if cycle.disconnected or cycle.key is None or self.authorizer is None:
            return cycle.disconnected
        keyring = self.authorizer.keyring()
        if not keyring.is_valid():
            with contextlib.suppress(Unavailable):
                await keyring.refreshed()
        return cycle.disconnected or not keyring.still_has(cycle.key)


class _Nobody:
    """Stands in for the event by which uvicorn wakes a request's application: a call on the fast path has none."""

    def set(self) -> None: ...


class FastCycle:
    """A call on the fast path; in the connection it stands in for uvicorn's RequestResponseCycle.

    key: the caller's; None if the server asks for no keys.
    """

    __slots__ = (
        "began",
        "body",
        "disconnected",
        "found",
        "keep_alive",
        "key",
        "more_body",
        "response_complete",
        "scope",
        "url",
    )

    response_started = False
    message_event = _Nobody()

    def __init__(self, found: Found, url: bytes, scope: Any, key: Key | None) -> None:
        self.found, self.url, self.scope, self.key = found, url, scope, key
        self.body = b""
        self.more_body = True
        self.began = time.perf_counter()
        self.disconnected = False
        self.keep_alive = True
        self.response_complete = False


class RequestTransport:
    """The transport that uvicorn's request cycle gets: its close() is the connection's `end`, which may linger."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


class FastPathConnection(HttpToolsProtocol):
    def __init__(self, fast_path: FastPath | None, *arguments: Any, **options: Any) -> None:
        """fast_path: None if every request goes to the application."""
        super().__init__(*arguments, **options)
        self.parser: Parser = Parser(self)
        self.fast_path = fast_path
        self.app_state = {**self.app_state, BREAK_OFF: self._break_off}
        self._arriving: FastCycle | None = None
        self._trailers = Trailers()
        self._checked: list[tuple[bytes, bytes]] | None = None  # headers of the last request that passed
        self._is_own_page = False  # page_guard's verdict on these headers; used if the server asks for no keys

    def _break_off(self) -> None:
        """Reset the connection, so that the client does not take part of an answer for the whole."""
        end = self.transport.get_extra_info("socket")
        if end is not None and not self.transport.is_closing():
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(end.fileno())) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.request_transport = RequestTransport(transport, self.end)

    def end(self) -> None:
        """Close the connection; its last answer has been written."""
        self.transport.close()

    def parse(self, data: bytes) -> None:
        """Feed the parser. Raise HttpParserError: this is not HTTP, or its head is refused (HeadRefused as context)."""
        while True:
            try:
                self.parser.feed_data(data)
                break
            except HttpParserUpgrade as offer:
                if not self.parser.reads_an_offer:
                    raise
                data = self.parser.decline(data, offer.args[0])
        if self._arriving is not None and len(self._arriving.body) > HIGH_WATER_LIMIT:
            cycle, self._arriving = self._arriving, None
            self._to_application(cycle, more_body=True)  # it takes a large body piece by piece

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and self.parser.reads_an_offer:
            return
        self._check_head()
        found = worker_calls.find(self.url) if self.fast_path is not None and self._is_ordinary() else None
        if found is None or not self._takes_fast_path(found):
            self._begin_ordinary()
        self.headers = self._trailers

    def _check_head(self) -> None:
        if len(self.headers) > request_heads.MOST_HEADERS:
            raise request_heads.too_many("headers")
        checked = [header for header in self.headers if header[0] in request_heads.CHECKED]
        if checked == self._checked:
            return
        version = self.parser.get_http_version()
        request_heads.check_framing(checked, version)
        self._checked = checked if version == "1.1" else None
        self._is_own_page = page_guard.fault_of_call("POST", checked, self.server) is None

    def _begin_ordinary(self) -> None:
        version = self.parser.get_http_version()
        if version != "1.1":
            request_heads.check_framing(self.headers, version)
        if not self.url.startswith(b"/"):
            self.headers[:] = request_heads.with_host_of_target(self.headers, self.url)
        super().on_headers_complete()
        self._trailers.number = 0
        self.cycle.transport = self.request_transport  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        if self._arriving is None:
            super().on_body(body)
        else:
            self._arriving.body += body

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and self.parser.reads_an_offer:
            return
        cycle, self._arriving = self._arriving, None
        if cycle is None or self.fast_path is None:
            super().on_message_complete()
            self.cycle.more_body = False  # uvicorn sets this only while the response is incomplete
            return
        cycle.more_body = False
        if 0 < len(cycle.body) <= LARGEST_BODY:
            self.fast_path.begin(cycle, partial(self._answer, cycle))
        else:
            self._to_application(cycle, more_body=False)

    def _is_ordinary(self) -> bool:
        parser, cycle = self.parser, self.cycle
        return (
            parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not self.expect_100_continue
            and (cycle is None or cycle.response_complete)
            and not self.flow.write_paused
            and JSON_TYPE in self.headers
        )

    def _takes_fast_path(self, found: Found) -> bool:
        """Whether the caller may make this call; if so, begin its FastCycle."""
        assert self.fast_path is not None
        key, authorizer = None, self.fast_path.authorizer
        if authorizer is None:
            if not self._is_own_page:
                return False
        elif (key := authorizer.admitted(self.scope, found.study)) is None:
            return False
        self._arriving = FastCycle(found, self.url, self.scope, key)
        self.cycle = self._arriving  # type: ignore[assignment]
        return True

    def _answer(self, cycle: FastCycle, result: Any, error: BaseException | None) -> None:
        """Write the response, or after an unexpected error pass the call on. result: a document, or (status, JSON)."""
        if error is None:
            status, body = result if isinstance(result, tuple) else (200, to_json(result))
            head = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        elif isinstance(error, HpoError):
            response = problem_of(error)
            status, head, body = response.status_code, header_lines(response.raw_headers), bytes(response.body)
        else:
            self._to_application(cycle, more_body=False)
            return
        assert self.fast_path is not None
        cycle.response_complete = True
        route = cycle.found.call.path
        seconds = time.perf_counter() - cycle.began
        metrics.count(route, "POST", status, seconds)
        request_id = request_log.id_of(cycle.scope["headers"])
        if status >= 500 or self.fast_path.access_log:
            self._log(cycle, status, body, request_id, seconds)
        if cycle.disconnected or self.transport.is_closing():
            return
        lines = (
            STATUS_LINE[status],
            self.fast_path.lines(self.server_state.default_headers),
            head,
            b"x-request-id: ",
            request_id,
            b"\r\n\r\n" if cycle.keep_alive else b"\r\nconnection: close\r\n\r\n",
            body,
        )
        self.transport.write(b"".join(lines))
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _log(self, cycle: FastCycle, status: int, body: bytes, request_id: bytes, seconds: float) -> None:
        assert self.fast_path is not None
        scope = {**cycle.scope, "method": "POST", "raw_path": cycle.url}
        if status >= 500:
            said = request_log.context(scope, request_id)
            request_log.failed(scope, cycle.found.call.path, status, body, seconds, said=said)
        if self.fast_path.access_log:
            request_log.accessed(scope, request_id, status, seconds, len(body))

    def _to_application(self, cycle: FastCycle, *, more_body: bool) -> None:
        """Pass the request to the application, as uvicorn would have done from the start."""
        if cycle.disconnected:
            return
        self._trailers.number = 0
        path = cycle.url.decode("ascii")
        scope = cycle.scope
        scope.update(
            method="POST",
            path=self.root_path + path,
            raw_path=self.root_path.encode("ascii") + cycle.url,
            query_string=b"",
        )
        ordinary = RequestResponseCycle(
            scope=scope,
            transport=self.request_transport,  # type: ignore[arg-type]
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=cycle.keep_alive,
            on_response=self.on_response_complete,
        )
        ordinary.body += cycle.body
        ordinary.more_body = more_body
        ordinary.message_event.set()
        cycle.response_complete = True
        if more_body or self.cycle is cycle:  # type: ignore[comparison-overlap]
            self.cycle = ordinary
        self._start_asgi_task(ordinary, self.app)


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%s: %s\r\n" % header for header in headers])
