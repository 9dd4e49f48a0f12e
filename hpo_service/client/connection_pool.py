"""Pool of keep-alive HTTP/1.1 connections to one server, with httptools as the parser (the server uses it, too).

It costs a fraction of a larger library's pool, which matters for short calls. Streams: streamed_answers.py.
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import ssl
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote, urlsplit

import httptools

MOST_KEPT = 8  # idle connections
_AT_ONCE = 2**16  # bytes a recv
_ENDS_A_LINE = re.compile(r"[^\t\x20-\x7e\x80-\xff]")  # it would end a header line, or is not in latin-1
_SAFE_IN_A_PATH = "/:@!$&'()*+,;=~%"  # beside letters, digits and _.- (RFC 3986, section 3.3)


class NotConnected(OSError):
    """No connection could be opened: nothing of the request was sent."""


class BrokenAnswer(OSError):
    """The response is not HTTP, or ended before it was complete."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EPROTO, reason)


@dataclass(frozen=True)
class HttpResponse:
    """lines: name and value of each header, as received."""

    status: int
    lines: tuple[tuple[bytes, bytes], ...]
    data: bytes

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """By lower-case name."""
        return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self.lines}


class ConnectionPool:
    """Thread-safe connection pool of one server; keeps at most MOST_KEPT idle connections."""

    def __init__(self, server: str, connect_timeout: float) -> None:
        """server: a URL of http or https; connect_timeout: seconds."""
        parts = urlsplit(server)
        self._prefix = quote(parts.path, safe=_SAFE_IN_A_PATH)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._named = _in_a_header(self._host) + ("" if parts.port is None else f":{parts.port}")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._connect_timeout = connect_timeout
        self._idle: deque[_Connection] = deque()
        self._process = os.getpid()

    def call(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], read_timeout: float
    ) -> HttpResponse:
        """Return the response, completely read. Raise OSError (as NotConnected); ValueError for an invalid header."""
        request = self._request(method, path, body, headers)
        connection = self._take()
        try:
            answered = connection.exchange(request, read_timeout)
        except BaseException:
            connection.close()
            raise
        if not connection.is_reusable or len(self._idle) >= MOST_KEPT:
            connection.close()
        else:
            self._idle.append(connection)
        return answered

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
        """Head and body in one piece: separately, each would cost a system call and a packet."""
        lines = [f"{method} {self._prefix}{path} HTTP/1.1", f"Host: {self._named}", "Accept-Encoding: identity"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        elif method != "GET":
            lines.append("Content-Length: 0")
        if _ENDS_A_LINE.search("".join(lines)):
            where = next((name for name, value in headers.items() if _ENDS_A_LINE.search(name + value)), path)
            # the value is left out of the message: it may be a key
            raise ValueError(f"{where!r} has a character that no line of a request may have")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")

    def _take(self) -> _Connection:
        """The most recently used idle connection that the server has not closed; a new one if there is none."""
        if self._process != os.getpid():  # forked: the connections are the parent's, and carry its responses
            self._idle, self._process = deque(), os.getpid()
        while (connection := self._pop()) is not None:
            if not connection.is_readable():
                return connection
            connection.close()
        return self._connected()

    def _pop(self) -> _Connection | None:
        try:
            return self._idle.pop()
        except IndexError:  # another thread may have taken the last one at any moment
            return None

    def _connected(self) -> _Connection:
        try:
            connected = socket.create_connection((self._host, self._port), self._connect_timeout)
        except OSError as error:
            raise NotConnected(*error.args) from error
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connected = self._tls.wrap_socket(connected, server_hostname=self._host)
        except OSError as error:
            connected.close()
            raise NotConnected(*error.args) from error
        return _Connection(connected)


def _in_a_header(host: str) -> str:
    if ":" in host:
        return f"[{host.partition('%')[0]}]"  # without a link-local address's interface (%eth0)
    return host if host.isascii() else host.encode("idna").decode()


class _Connection:
    """One socket, with one request at a time, and the parser of its responses."""

    def __init__(self, connected: socket.socket) -> None:
        self.is_reusable = True
        self._socket = connected
        self._timeout = connected.gettimeout()
        self._unasked = select.poll()
        self._unasked.register(connected, select.POLLIN)
        self._parser = httptools.HttpResponseParser(self)
        self._lines: list[tuple[bytes, bytes]] = []
        self._data: list[bytes] = []
        self._has_head = False
        self._answer: HttpResponse | None = None

    def exchange(self, request: bytes, read_timeout: float) -> HttpResponse:
        if read_timeout != self._timeout:
            self._timeout = read_timeout
            self._socket.settimeout(read_timeout)
        self._answer, self._has_head = None, False
        self._socket.sendall(request)
        broken = self._read()
        if self._answer is None and not broken and self._ends_with_the_connection():
            self._take_answer()
        if self._answer is None:
            raise BrokenAnswer(broken or "the connection ended before the answer")
        return self._answer

    def _read(self) -> str:
        """Read until the response is complete or the connection ends; return what is wrong with the response, or ""."""
        try:
            while self._answer is None:
                received = self._socket.recv(_AT_ONCE)
                if not received:
                    self.is_reusable = False
                    return ""
                self._parser.feed_data(received)
        except httptools.HttpParserUpgrade:
            return "it goes on in another protocol"
        except httptools.HttpParserError as error:
            self.is_reusable = False  # even if the response is complete: what follows it is not HTTP
            return f"it does not speak HTTP ({error})"
        return ""

    def is_readable(self) -> bool:
        """Whether an idle connection has data or EOF to read: the server is closing it, so it must not be reused."""
        return bool(self._unasked.poll(0))

    def close(self) -> None:
        self._socket.close()

    def _ends_with_the_connection(self) -> bool:
        """Whether the headers are complete and give no length: the body then ends with the connection."""
        return self._has_head and not any(
            name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self._lines
        )

    def _take_answer(self) -> None:
        self._answer = HttpResponse(self._parser.get_status_code(), tuple(self._lines), b"".join(self._data))

    # -- callbacks of the parser

    def on_message_begin(self) -> None:
        if self._answer is not None:
            self.is_reusable = False  # two answers to one request
        self._lines, self._data, self._has_head = [], [], False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines.append((name, value))

    def on_headers_complete(self) -> None:
        self._has_head = True

    def on_body(self, body: bytes) -> None:
        self._data.append(body)

    def on_message_complete(self) -> None:
        self._has_head = False
        if self._answer is None and self._parser.get_status_code() >= 200:  # 1xx: the response itself is still to come
            self.is_reusable = self._parser.should_keep_alive()
            self._take_answer()
