"""Objects as programs print them: JSON, Python's dict, JavaScript's, with NumPy's and PyTorch's numbers in them.

A reader of its own, since no JSON reader takes C's -nan, Python's True and single quotes, or np.float64(0.9). It reads
values, and evaluates nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from hpo_service.client import storable_text

DEEPEST = 20  # levels of nested objects and lists
MOST_STARTS = 20  # braces in a line that begin no object, after which the rest is not read: bounds the cost


class _Unknown:
    """The repr of something else, such as PosixPath('x') or <object at 0x7f…>."""


UNKNOWN: Final = _Unknown()

# As C (also Microsoft's: 1.#INF, -nan(ind)), C++, C#, Go, Java, JavaScript, Julia, Python and R write them.
_NUMERAL = re.compile(
    r"(?P<nan>[+-]?(?:[qs]?nan[qs]?(?:\([\w ]*\))?|1\.\#(?:[qs]?nan|ind)\d*))(?!\w)"
    r"|(?P<inf>[+-]?(?:inf(?:inity)?(?!\w)|1\.\#inf\d*(?!\w)|∞))"
    r"|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(?![\w.#])",
    re.IGNORECASE,
)
_STRING = re.compile(r"""[bBuU]?(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)')""", re.DOTALL)
_NAME = re.compile(r"[^\W\d][\w.]*")
_WORDS = {
    **dict.fromkeys(("true", "True", "np.True_"), True),
    **dict.fromkeys(("false", "False", "np.False_"), False),
    **dict.fromkeys(("null", "None", "undefined", "NULL", "NA", "nil"), None),
}
# Calls that print one number or several, as the first argument.
_NUMBERS = re.compile(
    r"(?:\w+\.)*(?:u?int\d*|float\d*|bfloat16|bool_?|half|double|longdouble|str_?|array|Array|tensor|Decimal)\("
)
_REST_OF_CALL = re.compile(r"\s*(?:,[^()]*(?:\([^()]*\)[^()]*)*)?\)")
_OTHER_CALL = re.compile(r"[\w.]+\([^()]*(?:\([^()]*\)[^()]*)*\)")
_TENSORFLOW = re.compile(r"<tf\.[^<>]*?\bnumpy=")
_OTHER_OBJECT = re.compile(r"<[^<>]*>")
_SPACE = re.compile(r"\s*")
_LISTS = {"[": "]", "(": ")"}


def objects_in(text: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(start, end, object) of each outermost object in the text, from left to right."""
    at, failed = text.find("{"), 0
    while at >= 0 and failed < MOST_STARTS:
        try:
            read, end = _object(text, at, 0)
        except ValueError:
            failed += 1
            at = text.find("{", at + 1)
        else:
            yield at, end, read
            at = text.find("{", end)


def as_number(value: Any) -> float | None:
    """The number, or the number that a text is; None for anything else. True is no number."""
    if isinstance(value, str):
        numeral = _NUMERAL.fullmatch(value.strip())
        return None if numeral is None else as_number(_numeral(numeral))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def without_unknown(value: Any) -> Any:
    """The value without its UNKNOWN parts, and with its texts made storable."""
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, list):
        return [without_unknown(each) for each in value if each is not UNKNOWN]
    if isinstance(value, dict):
        return {storable_text(key): without_unknown(each) for key, each in value.items() if each is not UNKNOWN}
    return value


# Each parser takes the text and the position to begin at, and returns what it read and the position behind it.


def _value(text: str, at: int, depth: int) -> tuple[Any, int]:
    if depth > DEEPEST:
        raise ValueError("too deep")
    if text.startswith("{", at):
        return _object(text, at, depth)
    if text[at : at + 1] in _LISTS:
        return _list(text, at, depth)
    if (string := _STRING.match(text, at)) is not None:
        return _text(string), string.end()
    if (numeral := _NUMERAL.match(text, at)) is not None:
        return _numeral(numeral), numeral.end()
    if (call := _NUMBERS.match(text, at)) is not None:
        value, end = _value(text, _skip(text, call.end()), depth + 1)
        return value, _behind(_REST_OF_CALL, text, end)
    if (tensor := _TENSORFLOW.match(text, at)) is not None:
        value, end = _value(text, tensor.end(), depth + 1)
        return value, _expect(">", text, end)
    for other in (_OTHER_CALL, _OTHER_OBJECT):
        if (found := other.match(text, at)) is not None:
            return UNKNOWN, found.end()
    return _word(text, at)


def _object(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
    read: dict[str, Any] = {}
    at = _skip(text, at + 1)
    while not text.startswith("}", at):
        key, at = _key(text, at)
        at = _expect(":", text, at)
        read[key], at = _value(text, at, depth + 1)
        at = _next(text, at, "}")
    return read, at + 1


def _list(text: str, at: int, depth: int) -> tuple[list[Any], int]:
    closing = _LISTS[text[at]]
    read: list[Any] = []
    at = _skip(text, at + 1)
    while not text.startswith(closing, at):
        value, at = _value(text, at, depth + 1)
        read.append(value)
        at = _next(text, at, closing)
    return read, at + 1


def _next(text: str, at: int, closing: str) -> int:
    """The position behind a comma, or of the closing sign."""
    at = _skip(text, at)
    return at if text.startswith(closing, at) else _expect(",", text, at)


def _key(text: str, at: int) -> tuple[str, int]:
    if (string := _STRING.match(text, at)) is not None:
        return _text(string), string.end()
    for form in (_NUMERAL, _NAME):
        if (found := form.match(text, at)) is not None:
            return found.group(), found.end()
    raise ValueError("no key")


def _word(text: str, at: int) -> tuple[Any, int]:
    name = _NAME.match(text, at)
    if name is None or name.group() not in _WORDS:
        raise ValueError("no value")
    return _WORDS[name.group()], name.end()


def _numeral(numeral: re.Match[str]) -> Any:
    """The number; UNKNOWN for one too large for a double, which is not infinite."""
    text = numeral.group()
    if numeral["nan"] is not None:
        return math.nan
    if numeral["inf"] is not None:
        return -math.inf if text.startswith("-") else math.inf
    if len(text) < 16 and text.lstrip("+-").isdigit():
        return int(text)
    number = float(text)
    return number if math.isfinite(number) else UNKNOWN


def _text(string: re.Match[str]) -> str:
    """The string in the quotes, unescaped; as it is written where its escapes are not JSON's."""
    written = string[1] if string[1] is not None else string[2]
    with suppress(ValueError):
        inside = re.sub(r'(?<!\\)"', r"\"", written.replace("\\'", "'"))
        read: str = json.loads(f'"{inside}"', strict=False)
        return read
    return written


def _skip(text: str, at: int) -> int:
    return _behind(_SPACE, text, at)


def _expect(sign: str, text: str, at: int) -> int:
    at = _skip(text, at)
    if not text.startswith(sign, at):
        raise ValueError(f"no {sign}")
    return _skip(text, at + len(sign))


def _behind(form: re.Pattern[str], text: str, at: int) -> int:
    found = form.match(text, at)
    if found is None:
        raise ValueError("cannot be read")
    return found.end()
