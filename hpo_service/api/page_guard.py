"""A server without keys refuses calls that web pages of other sites make.

A browser on this machine reaches a server on a loopback address, and runs pages of any site. Three of its headers,
none of which a page can choose, tell their calls from those of curl, the SDK and our own pages:

Host            the name in the address bar. Another site's name that resolves to 127.0.0.1 (DNS rebinding) is refused:
                it is not a name of this machine.
Origin          the site of the calling page, on every call that may change something.
Sec-Fetch-Site  how that site relates to the server (same-origin, cross-site), on every call.

What proxies add (X-Forwarded-Host, Forwarded) is ignored: any client may send it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

from hpo_service.api.problems import problem_of
from hpo_service.domain.errors import Forbidden

_TOLD_BY_BROWSERS = frozenset({b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode"})
_AUTHORITY = re.compile(r"(\[[^\]]*\]|[^:]*)(?::([0-9]*))?")
_ORIGIN = re.compile(rb"(https?)://([^/]+)")
_DEFAULT_PORTS = {"http": "80", "https": "443"}

OUR_PAGE = b"x-hpo-page"

_OTHER_HOST = (
    "without keys (--no-auth) this server answers to names of this machine only, such as 127.0.0.1 or localhost, since "
    "any web page could call it by another; call it by one of these, or start it without --no-auth and send a key"
)
_OTHER_PAGE = (
    "a page of another site made this call, and without keys (--no-auth) this server answers none but its own; call it "
    "from a program, or start it without --no-auth and send a key"
)
KEPT_BY_THE_BROWSER = (
    "a page of another site made this call with a password that the browser keeps for this server; open the address "
    "itself, or send Authorization: Bearer hpo_…"
)

Headers = Iterable[tuple[bytes, bytes]]


class PageGuard:
    """Middleware in place of AuthMiddleware, if the server asks for no keys."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            fault = fault_of_call(scope["method"], scope["headers"], scope.get("server"))
            if fault is not None:
                await problem_of(Forbidden(fault))(scope, receive, send)
                return
        await self.app(scope, receive, send)


def fault_of_call(method: str, headers: Headers, server: tuple[str, int | None] | None) -> str | None:
    """Why the call is refused; None if no other site's page can have made it. server: the address it arrived at."""
    told = [header for header in headers if header[0] in _TOLD_BY_BROWSERS]
    by_name = dict(told)
    if len(by_name) < len(told):
        return _OTHER_PAGE  # a header comes twice: no browser sends that, and which one counts is unclear
    host = by_name.get(b"host")
    if host is not None and not names_this_machine(host) and not _names_address(host, server):
        return _OTHER_HOST
    return _OTHER_PAGE if len(told) > 1 and is_from_another_page(method, told) else None


def is_from_another_page(method: str, headers: Headers) -> bool:
    """Whether the headers say that another site's page made this call; following a link there does not count."""
    told = dict(headers)
    follows_a_link = method in ("GET", "HEAD") and told.get(b"sec-fetch-mode") == b"navigate"
    if told.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin") and not follows_a_link:
        return True
    return not _is_own_origin(told.get(b"origin"), told.get(b"host"))


def is_from_our_page(headers: Headers) -> bool:
    """Whether a page of this server made the call: the browser says so, or a header that no other page can send.

    Browsers send no Sec-Fetch-Site over http to another machine. Our page sends OUR_PAGE there; another site's page
    would need permission by a CORS preflight for that header, and never gets it.
    """
    told = dict(headers)
    return told.get(b"sec-fetch-site") == b"same-origin" or OUR_PAGE in told


@lru_cache(maxsize=64)
def names_this_machine(host: bytes) -> bool:
    """Whether a Host header is localhost or a loopback address, with any port."""
    name = _name(host.decode("latin-1"))
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _names_address(host: bytes, server: tuple[str, int | None] | None) -> bool:
    """Whether Host is the address at which the call arrived: DNS rebinding needs a name, not an address."""
    return server is not None and _name(host.decode("latin-1")) == server[0].lower()


def _name(authority: str) -> str:
    found = _AUTHORITY.fullmatch(authority)
    return "" if found is None else found[1].strip("[]").lower().removesuffix(".")


def _is_own_origin(origin: bytes | None, host: bytes | None) -> bool:
    if origin is None:
        return True
    found = _ORIGIN.fullmatch(origin.lower())
    if found is None or host is None:  # "null": a page that hides where it comes from
        return False
    scheme = found[1].decode()
    return _place(found[2], scheme) == _place(host.lower(), scheme)


def _place(authority: bytes, scheme: str) -> tuple[str, str]:
    found = _AUTHORITY.fullmatch(authority.decode("latin-1"))
    return ("", "") if found is None else (found[1], found[2] or _DEFAULT_PORTS[scheme])
