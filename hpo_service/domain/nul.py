"""NUL, the character 0, stands in no text: PostgreSQL cannot hold it, and to many readers a text ends there.

In JSON it can only be written as an escape, so that a document without one need not be looked through.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

ESCAPE = b"\\u0000"
RULE = "a text has no character NUL (\\u0000); leave it out"
_ESCAPE = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")  # and not the text \u0000, whose backslash is doubled

Place = tuple[str | int, ...]


def places(document: Any, place: Place = ()) -> Iterator[Place]:
    """Where NUL stands in a document: each text that has one, or the object with such a name in it."""
    if isinstance(document, str):
        if "\0" in document:
            yield place
    elif isinstance(document, dict):
        if any("\0" in name for name in document):
            yield place
        for name, member in document.items():
            if "\0" not in name:
                yield from places(member, (*place, name))
    elif isinstance(document, list):
        for index, member in enumerate(document):
            yield from places(member, (*place, index))


def stands_in(text: str) -> bool:
    """Whether a NUL is written in this JSON."""
    return "\\u0000" in text and _ESCAPE.search(text.encode()) is not None


def replaced(content: bytes) -> bytes:
    """The JSON with the character for what cannot be shown in the place of each NUL."""
    return _ESCAPE.sub(lambda match: match[1] + rb"\ufffd", content) if ESCAPE in content else content
