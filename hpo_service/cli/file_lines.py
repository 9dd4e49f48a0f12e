"""On which line of a study file each value stands, so that a refusal can name it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Place = tuple[str | int, ...]  # the steps of a JSON pointer

_BASIC, _LITERAL = r'"(?:\\.|[^"\\])*"', r"'[^']*'"
_KEY_PART = rf"(?:[A-Za-z0-9_-]+|{_BASIC}|{_LITERAL})"
_KEY = re.compile(rf"{_KEY_PART}(?:[ \t]*\.[ \t]*{_KEY_PART})*")
_STRING = re.compile(rf'"""(?:\\.|[^\\])*?"{{3,5}}|\'\'\'.*?\'{{3,5}}|{_BASIC}|{_LITERAL}', re.DOTALL)
_BARE = re.compile(r"[^,\]}#\n]+")  # a number, a date, a word
_BLANK = re.compile(r"(?:\s|#[^\n]*)*")


def toml_lines(text: str) -> dict[Place, int]:
    """The line of every key, table and item of a valid TOML document, by its place."""
    scanner = _Scanner(text, _toml_key)
    scanner.document()
    return scanner.lines


def json_lines(text: str) -> dict[Place, int]:
    """The line of every key and item of a valid JSON document, by its place."""
    scanner = _Scanner(text, lambda key: [json.loads(key)])
    scanner.value(())
    return scanner.lines


def line_of(place: Place, lines: Mapping[Place, int]) -> int | None:
    """The line of a place, or of the nearest one around it that the file has; None: nowhere."""
    for length in range(len(place), 0, -1):
        if place[:length] in lines:
            return lines[place[:length]]
    return None


def _toml_key(key: str) -> list[str]:
    """The parts of a dotted key, unquoted: what tomllib makes of it."""
    parts: list[str] = []
    inner: Any = tomllib.loads(f"{key} = 0")
    while isinstance(inner, dict):
        [(part, inner)] = inner.items()
        parts.append(part)
    return parts


class _Scanner:
    """Scans text that a parser has already found valid, and records the line of each place."""

    def __init__(self, text: str, read_key: Callable[[str], Sequence[str]]) -> None:
        self.text, self.position, self.read_key = text, 0, read_key
        self.lines: dict[Place, int] = {}
        self.array_lengths: dict[Place, int] = {}  # of arrays of tables
        self.line, self._counted = 1, 0

    def document(self) -> None:
        table: Place = ()
        self.blank()
        while self.position < len(self.text):
            if self.takes("[["):
                table = self.next_item(self.place_of(self.key()))
                self.takes("]]")
            elif self.takes("["):
                table = self.note(self.place_of(self.key()))
                self.takes("]")
            else:
                self.entry(table)
            self.blank()

    def entry(self, table: Place) -> None:
        """key = value, or "key": value."""
        place = table
        for part in self.key():
            place = self.note((*place, part))
        self.blank()
        self.position += 1  # = or :
        self.value(place)

    def value(self, place: Place) -> None:
        self.blank()
        if self.takes("{"):
            while not self.ends("}"):
                self.entry(place)
        elif self.takes("["):
            index = 0
            while not self.ends("]"):
                self.value(self.note((*place, index)))
                index += 1
        elif not self.skips(_STRING):
            self.skips(_BARE)

    def ends(self, bracket: str) -> bool:
        """Whether the bracket closes here; a comma before the next item is passed over."""
        self.blank()
        self.takes(",")
        self.blank()
        return self.takes(bracket) or self.position >= len(self.text)

    def key(self) -> Sequence[str]:
        self.blank()
        found = _KEY.match(self.text, self.position)
        assert found is not None, "the parser has accepted this key"
        self.position = found.end()
        return self.read_key(found.group())

    def place_of(self, parts: Sequence[str]) -> Place:
        """The place of the table that a header names; in an array of tables it is the last table."""
        place: Place = ()
        for part in parts:
            if place in self.array_lengths:
                place = (*place, self.array_lengths[place] - 1)
            place = (*place, part)
        return place

    def next_item(self, array: Place) -> Place:
        self.note(array)
        index = self.array_lengths.get(array, 0)
        self.array_lengths[array] = index + 1
        return self.note((*array, index))

    def note(self, place: Place) -> Place:
        self.lines.setdefault(place, self._here())
        return place

    def _here(self) -> int:
        self.line += self.text.count("\n", self._counted, self.position)
        self._counted = self.position
        return self.line

    def blank(self) -> None:
        self.skips(_BLANK)

    def takes(self, token: str) -> bool:
        found = self.text.startswith(token, self.position)
        if found:
            self.position += len(token)
        return found

    def skips(self, pattern: re.Pattern[str]) -> bool:
        found = pattern.match(self.text, self.position)
        if found is not None:
            self.position = found.end()
        return found is not None
