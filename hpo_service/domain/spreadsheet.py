"""Cells of a CSV file that a spreadsheet would run: a text that looks like a formula is quoted with '.

The contract's rule is = + - @ and no number. Some programs drop what stands before such a sign: a tab, a line break,
a space, a mark that nobody sees; East Asian settings read the wide forms of the signs (OWASP, "CSV Injection").
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

_UNSEEN = r"[\s\0\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]*"
_FORMULA = re.compile(rf"[\t\r\n\0]|{_UNSEEN}[=+\-@＝＋－＠]")
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
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


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
