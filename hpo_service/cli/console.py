"""What commands print: each line is made printable here, so that no text in it can control the terminal.

Names, reasons and labels are text of other users, and responses are text of whatever server was named. A line break
inside a line is escaped, too, so that no text can forge a line. `ruff` keeps `print` out of all other modules of the
commands.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from hpo_service.printable import printable, printable_json

LONGEST_CELL = 2**20  # characters; the database holds no longer text


def say(*lines: str) -> None:
    """Print the result on standard output."""
    print("\n".join(map(printable, lines)), flush=True)


def note(*lines: str) -> None:
    """Print progress and errors on standard error."""
    sys.stdout.flush()
    print("\n".join(map(printable, lines)), file=sys.stderr, flush=True)


def confirmed(question: str) -> bool:
    """Ask on standard error, to keep standard output for results; return whether the answer is yes."""
    sys.stdout.flush()
    print(printable(question), end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def say_json(result: Any, indent: int | None = 2) -> None:
    print(printable_json(result, indent), flush=True)


def say_export(pieces: Iterable[bytes], *, as_csv: bool) -> None:
    """Print an export on a terminal, one line per trial, even where a cell has line breaks."""
    csv.field_size_limit(LONGEST_CELL)
    lines = _lines(pieces)
    for row in map(_csv_line, csv.reader(lines)) if as_csv else (line.removesuffix("\n") for line in lines):
        say(row)


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Split the pieces into lines, each with its line break."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line.decode(errors="replace") + "\n" for line in whole)
    if rest:
        yield rest.decode(errors="replace")


def _csv_line(row: list[str]) -> str:
    written = io.StringIO()
    csv.writer(written, lineterminator="").writerow(map(printable, row))
    return written.getvalue()
