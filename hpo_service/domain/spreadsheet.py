"""Cells of a CSV file that a spreadsheet would run: a text that looks like a formula is quoted with '.

A formula begins with = + - or @ and is no number. Some programs drop what stands before such a sign: a tab, a line
break, a space, a control character, an invisible mark; East Asian settings read the wide forms of the signs (OWASP,
"CSV Injection"). Which characters these are, Unicode says.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

_SIGNS = frozenset("=+-@")
_AT_ONCE = "\t\r\n\0"  # quoted whatever comes after
# Letters and marks by their category, and unseen all the same (Default_Ignorable_Code_Point); the last one is a blank.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef\u2800]"
)
_NUMBER = re.compile(r" *[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|infinity|nan) *", re.ASCII | re.IGNORECASE)

LONGEST_CELL = 2**26  # the csv module takes 128 KiB by default, and a trial's metrics are longer
ROWS_AT_ONCE = 1000


def cell(value: Any) -> Any:
    """What stands in a CSV file for a value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return quoted(value) if isinstance(value, str) else value


def quoted(text: str) -> str:
    return f"'{text}" if _begins_a_formula(text) and not _NUMBER.fullmatch(text) else text


def _begins_a_formula(text: str) -> bool:
    for character in text:
        if character.isascii() and character.isalnum():
            return False  # as most texts begin
        if character in _AT_ONCE:
            return True
        if character.isprintable() and character != " " and not _UNSEEN.match(character):
            return unicodedata.normalize("NFKC", character) in _SIGNS
    return False


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerows(rows)
    return buffer.getvalue()


def quoted_csv(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """A CSV file that another program has made, in UTF-8, with its formulas quoted."""
    csv.field_size_limit(LONGEST_CELL)
    rows = csv.reader(io.StringIO(b"".join(chunks).decode(), newline=""))
    while some := list(islice(rows, ROWS_AT_ONCE)):
        yield csv_text([quoted(text) for text in row] for row in some).encode()
