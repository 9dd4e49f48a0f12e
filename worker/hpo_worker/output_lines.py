"""What a line that a command prints means: a report, a result, neither, or one of them that cannot be read.

Programs print through progress bars, loggers and colours, in the notation of their language. Only the object at the end
of a line counts (`printed_objects`). What looks like a report or a result and cannot be read becomes NotUnderstood:
nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpo_service.client import storable_text
from hpo_service.printable import printable
from hpo_worker.printed_objects import UNKNOWN, as_number, objects_in, without_unknown

LARGEST_STEP = 2**31 - 1
LONGEST_QUOTE = 200  # of a line, in a warning and in the reason of a failed trial
LARGEST_METRIC = 1000  # characters of JSON that the value of a further key may take

# A key "value" in quotes, or one without quotes in braces; whatever is between the name and the sign may be escapes.
_LOOKS_LIKE_ONE = re.compile(r"""["'`]values?\\*["'`]\s*(?::|=)|\{(?:[^{}]*[,\s])?:?values?\s*(?::|=)""", re.IGNORECASE)
_VALUE_KEYS = ("value", "values")
# Terminal escapes, such as colours and window titles; then all control characters but tabs (backspaces of progress bars
# and the zeros of UTF-16 among them), and byte order marks.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]")
_UNSEEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u200b\u200e\u200f\u2060\ufeff]")
_AFTER_AN_OBJECT = " \t\xa0\"'`,;."


@dataclass(frozen=True)
class Reported:
    """A line that reports an intermediate value."""

    step: int
    value: float
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class ResultLine:
    """A line with the trial's result: a value for each direction."""

    values: tuple[float, ...]
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class NotUnderstood:
    """A line (as `quoted` returns it) that looks like a report or a result, and why it is none."""

    line: str
    why: str

    def __str__(self) -> str:
        return f"a line looks like a result and was not understood, since {self.why}: {self.line}"


Said = Reported | ResultLine | NotUnderstood


def read_line(line: str) -> list[Said]:
    """The reports and results in a line: mostly none, or one; several if objects follow each other at its end."""
    text = _UNSEEN.sub("", _ESCAPES.sub("", line))
    if not _LOOKS_LIKE_ONE.search(text):
        return []
    found = list(objects_in(text))
    at_end = _first_of_the_last(text, [(start, end) for start, end, _ in found])
    said = [
        _meaning(each, line) if place >= at_end else NotUnderstood(quoted(line), "it does not stand at the line's end")
        for place, (_, _, each) in enumerate(found)
        if any(_is_value_key(key) for key in each)
    ]
    if _LOOKS_LIKE_ONE.search(_outside(text, [(start, end) for start, end, _ in found])):
        said.append(NotUnderstood(quoted(line), "it is no object that can be read"))
    return said


def quoted(line: str) -> str:
    """The line for people to read: without control characters, and not too long."""
    said = printable(storable_text(" ".join(_ESCAPES.sub("", line).split())))
    return said if len(said) <= LONGEST_QUOTE else said[:LONGEST_QUOTE] + "…"


def _first_of_the_last(text: str, spans: list[tuple[int, int]]) -> int:
    """The index of the first of the objects that follow each other up to the line's end."""
    first, end = len(spans), len(text)
    while first and not text[spans[first - 1][1] : end].strip(_AFTER_AN_OBJECT):
        first -= 1
        end = spans[first][0]
    return first


def _outside(text: str, spans: list[tuple[int, int]]) -> str:
    """The text without these parts of it."""
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(text)]
    return " ".join(text[end:start] for end, start in zip(ends, starts, strict=True))


def _is_value_key(key: str) -> bool:
    return key.strip().lower() in _VALUE_KEYS


def _meaning(said: Mapping[str, Any], line: str) -> Said:
    try:
        return _report(said) if "step" in said else ResultLine(_values(said), _metrics(said))
    except ValueError as error:
        return NotUnderstood(quoted(line), str(error))


def _report(said: Mapping[str, Any]) -> Reported:
    values = _values(said)
    if len(values) != 1:
        raise ValueError("a report has one value")
    step = as_number(said["step"])
    if step is None or not 0 <= step <= LARGEST_STEP or step % 1:
        raise ValueError(f"its step is no whole number from 0 to {LARGEST_STEP:,}")
    return Reported(int(step), values[0], _metrics(said))


def _values(said: Mapping[str, Any]) -> tuple[float, ...]:
    named = [key for key in said if _is_value_key(key)]
    if len(named) > 1:
        raise ValueError(f"it has {' and '.join(map(quoted, named))}")
    (key,) = named
    if key not in _VALUE_KEYS:
        raise ValueError(f'its key is "{quoted(key)}", and not "{key.strip().lower()}"')
    given = said[key] if isinstance(said[key], list) else [said[key]]
    values = [as_number(each) for each in given]
    numbers = tuple(value for value in values if value is not None)
    if not numbers or len(numbers) < len(values):
        raise ValueError(f"its {key} is no number")
    return numbers


def _metrics(said: Mapping[str, Any]) -> dict[str, Any]:
    """The members of "metrics", and the other keys whose values are short enough."""
    given = said.get("metrics")
    further = {
        key: without_unknown(value)
        for key, value in said.items()
        if key not in ("step", *_VALUE_KEYS) and value is not UNKNOWN and value is not None
    }
    if isinstance(given, dict):
        del further["metrics"]
    short = {storable_text(key): value for key, value in further.items() if len(json.dumps(value)) <= LARGEST_METRIC}
    return {**short, **(without_unknown(given) if isinstance(given, dict) else {})}
