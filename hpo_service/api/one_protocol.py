"""Declines an Upgrade to another protocol (curl --http2 and Java's client offer it): HTTP/1.1 goes on.

A server may ignore such an offer (RFC 9110, section 7.8). httptools does not: it stops parsing HTTP after the head of
that request, and the body would be lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import httptools

_OF_THE_OFFER = frozenset({b"connection", b"upgrade", b"http2-settings"})


class Connection(Protocol):
    headers: list[tuple[bytes, bytes]]
    url: bytes
    parser: Parser


class Parser(httptools.HttpRequestParser):
    """The connection's parser, which can be replaced in the middle of a request that offers another protocol.

    After the head with the offer, feed_data raises HttpParserUpgrade; the connection, which has only used the url and
    the headers until then, calls `decline`, and a new parser reads the same request without the offer.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._connection = connection

    @property
    def reads_an_offer(self) -> bool:
        return bool(self.should_upgrade()) and self.get_method() != b"CONNECT"

    def decline(self, data: bytes, end: int) -> bytes:
        """Replace the connection's parser; return what to feed the new one. end: of the offering head in data."""
        head = _head(self.get_method(), self.get_http_version(), self._connection)
        self._connection.parser = Parser(self._connection)
        return head + data[end:]


def _head(method: bytes, version: str, connection: Connection) -> bytes:
    lines = [b"%s %s HTTP/%s" % (method, connection.url, version.encode())]
    lines += [b"%s: %s" % header for header in connection.headers if header[0] not in _OF_THE_OFFER]
    if b"close" in _connection_tokens(connection.headers):
        lines.append(b"connection: close")
    return b"\r\n".join([*lines, b"", b""])


def _connection_tokens(headers: list[tuple[bytes, bytes]]) -> Iterator[bytes]:
    for name, value in headers:
        if name == b"connection":
            yield from (token.strip().lower() for token in value.split(b","))
