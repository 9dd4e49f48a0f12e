"""Text from elsewhere, made safe to show: a terminal obeys control characters, and a reader believes reordered text.

Escapes (ESC, and U+009B, which is one in a single character) move the cursor, rename the window and write into the
clipboard; line breaks forge lines; the marks for right-to-left text and zero-width characters make a text look like
another. All of these are shown as Python writes them, \\x1b, \\u202e; letters of every script stay as they are.
"""

from __future__ import annotations

import json
import re
from typing import Any

# only what is not printable ASCII is examined, so that a page of JSON costs little
_TO_LOOK_AT = re.compile(r"[^ -~]")


def printable(text: str) -> str:
    """The text on one line, with every invisible character written out: \\n, \\x1b, \\u202e."""
    return _TO_LOOK_AT.sub(lambda found: _written_out(found[0]), text)


def _written_out(character: str) -> str:
    return character if _is_shown(character) else repr(character)[1:-1]


def _is_shown(character: str) -> bool:
    """True for letters, marks, signs, and spaces of any width; not for control, format or surrogate characters."""
    return character.isprintable() or character in _SPACES


_SPACES = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"


def printable_lines(text: str) -> str:
    """The same, but with the text's line breaks kept: for a traceback or the end of a log."""
    return "\n".join(map(printable, text.split("\n")))


def printable_values(value: Any) -> Any:
    """JSON as it was read, with all its texts printable, names included."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(name): printable_values(one) for name, one in value.items()}
    if isinstance(value, list):
        return [printable_values(one) for one in value]
    return value


def printable_json(value: Any, indent: int | None = None) -> str:
    """Encode as JSON, with every invisible character as a JSON escape."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _TO_LOOK_AT.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    # a line break outside of a string is the indentation's; inside, json.dumps has escaped it already
    return character if character == "\n" or _is_shown(character) else _json_escape(character)


def _json_escape(character: str) -> str:
    if character == "\x7f":  # ASCII to json.dumps, a control character to a terminal
        return "\\u007f"
    return json.dumps(character)[1:-1]


def without_password(database_url: str) -> str:
    """The URL without its password, however that is written; if in doubt, too much is masked, not too little."""
    begins = "//" if "//" in database_url else "^"
    shown = re.sub(rf"({begins}[^:/?@]*):.*@", r"\1:***@", database_url, flags=re.DOTALL)
    return re.sub(r"(password=)[^&\s]*", r"\1***", shown, flags=re.IGNORECASE)
