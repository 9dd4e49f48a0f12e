"""Where the server is: HPO_SERVER and --server, checked before the first call."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from hpo_service.domain.errors import Fault, Invalid

DEFAULT_SERVER = "http://127.0.0.1:8000"


def checked_server(given: str) -> str:
    """The URL without surrounding blanks and trailing slashes. Raise Invalid for what is no server's URL."""
    url = given.strip().rstrip("/")
    shown = re.sub(r"//[^/@]*@", "//***@", url)  # it may hold a password
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Invalid([Fault("server", f"{shown!r} is not a URL like {DEFAULT_SERVER}: {error}")]) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[\s\x00-\x1f]", url):
        raise Invalid([Fault("server", f"{shown!r} is not a URL like {DEFAULT_SERVER}")])
    if "@" in parts.netloc:
        detail = f"{shown!r} holds a user name, which nobody asks for: set HPO_TOKEN to the key"
        raise Invalid([Fault("server", detail)])
    if port == 0:
        raise Invalid([Fault("server", f"{shown!r} has the port 0, on which nobody listens")])
    return url
