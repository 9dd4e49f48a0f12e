"""Connections to one server that are kept and used again, by the standard library's HTTP client.

It costs half of what a pool of a larger library does, and a worker's calls are short. Streams are read elsewhere.
"""

from __future__ import annotations

import http.client
import select
import ssl
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

MOST_KEPT = 8


class NotConnected(OSError):
    """Nobody took the connection: nothing of the call was sent."""


@dataclass(frozen=True)
class Answered:
    status: int
    headers: http.client.HTTPMessage  # names in any case
    data: bytes


class KeepAlive:
    """Calls one server, from any number of threads."""

    def __init__(self, server: str, connect_timeout: float) -> None:
        """server: a URL of http or https; connect_timeout: seconds."""
        parts = urlsplit(server)
        self._prefix = parts.path
        self._host, self._port = parts.hostname or "", parts.port
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._connect_timeout = connect_timeout
        self._idle: deque[http.client.HTTPConnection] = deque()

    def call(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], read_timeout: float
    ) -> Answered:
        """Return the answer, wholly read; raise NotConnected, OSError or HTTPException."""
        connection = self._take()
        try:
            connection.sock.settimeout(read_timeout)
            connection.request(method, self._prefix + path, body, dict(headers))
            response = connection.getresponse()
            answered = Answered(response.status, response.headers, response.read())
        except BaseException:
            connection.close()
            raise
        if connection.sock is None or len(self._idle) >= MOST_KEPT:
            connection.close()
        else:
            self._idle.append(connection)
        return answered

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> http.client.HTTPConnection:
        """The connection that was used last, unless the server has closed it meanwhile; or a new one."""
        while (connection := self._pop()) is not None:
            if not _has_something_to_say(connection.sock):
                return connection
            connection.close()
        return self._connected()

    def _pop(self) -> http.client.HTTPConnection | None:
        try:
            return self._idle.pop()
        except IndexError:  # another thread may have taken the last one at any moment
            return None

    def _connected(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection
        if self._tls is None:
            connection = _InOnePiece(self._host, self._port, timeout=self._connect_timeout)
        else:
            connection = _InOnePieceTls(self._host, self._port, timeout=self._connect_timeout, context=self._tls)
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise NotConnected(*error.args) from error
        return connection


def _has_something_to_say(sock: Any) -> bool:
    """A server that speaks without being asked is closing the connection."""
    heard = select.poll()
    heard.register(sock, select.POLLIN)
    return bool(heard.poll(0))


class _InOnePiece(http.client.HTTPConnection):
    """Sends head and body together: apart, each would be a system call and a packet of its own."""

    _parts: list[bytes] | None = None

    def request(self, *arguments: Any, **options: Any) -> None:
        self._parts = []
        try:
            super().request(*arguments, **options)
            whole = b"".join(self._parts)
        finally:
            self._parts = None
        self.send(whole)

    def send(self, data: Any) -> None:
        if self._parts is None:
            super().send(data)
        else:
            self._parts.append(bytes(data))


class _InOnePieceTls(http.client.HTTPSConnection):
    request = _InOnePiece.request
    send = _InOnePiece.send
    _parts: list[bytes] | None = None
