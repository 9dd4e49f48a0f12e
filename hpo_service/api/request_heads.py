"""Checks of every request's head, before the request is routed (RFC 9110 and 9112)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import httptools

MOST_HEADERS = 100
VERSIONS = ("1.1", "1.0")
# Headers that say which host is meant, where the request ends, and which site's page may have made it. They seldom
# change within a connection, and are checked again only when they do.
CHECKED = frozenset({b"host", b"transfer-encoding", b"origin", b"sec-fetch-site", b"sec-fetch-mode"})
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+(?:%[0-9A-Za-z._~%-]+)?\]|[0-9A-Za-z._~%-]*)(?::[0-9]*)?")

Headers = Sequence[tuple[bytes, bytes]]


class HeadRefused(Exception):
    """The head is refused; with the answer's status, code and detail."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(status, code, detail)
        self.status, self.code, self.detail = status, code, detail


def check_framing(headers: Headers, version: str) -> None:
    """Raise HeadRefused for a request whose host or whose end is in doubt."""
    if version not in VERSIONS:
        raise _malformed(f"this server speaks HTTP/1.1 and HTTP/1.0, not HTTP/{version}")
    hosts = [value for name, value in headers if name == b"host"]
    if not hosts and version == "1.1":
        raise _malformed("a request in HTTP/1.1 names its host: send one Host header")
    if len(hosts) > 1:
        raise _malformed(f"the request has {len(hosts)} Host headers: send one")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise _malformed("the Host header is no host with an optional port, such as localhost:8000")
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if codings and (version != "1.1" or [coding.strip().lower() for coding in codings] != [b"chunked"]):
        raise _malformed("the Transfer-Encoding is none that this server takes: send chunked, or a Content-Length")


def too_many(what: str) -> HeadRefused:
    return HeadRefused(431, "too_large", f"the request has more than {MOST_HEADERS} {what}")


def with_host_of_target(headers: Headers, target: bytes) -> list[tuple[bytes, bytes]]:
    """The headers with the host of an absolute target (http://host/path) as Host (RFC 9112, section 3.2.2)."""
    url = httptools.parse_url(target)
    if url.userinfo:
        raise _malformed("the request's target holds a user name: send Authorization instead")
    if not url.host:
        return list(headers)
    host = b"[%s]" % url.host if b":" in url.host else url.host
    named = host if url.port is None else b"%s:%d" % (host, url.port)
    return [header for header in headers if header[0] != b"host"] + [(b"host", named)]


def _malformed(detail: str) -> HeadRefused:
    return HeadRefused(400, "malformed_request", detail)
