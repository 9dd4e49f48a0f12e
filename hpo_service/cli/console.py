"""The one way to the screen: whatever a command says goes out here, line by line, and no text in it can act.

Names, reasons and labels come from whoever had a key, answers from whoever is the server. Each line is made printable
here and nowhere else; a line break inside of one is shown, too, so that nobody forges a line. `ruff` keeps `print` out
of all other modules of the commands.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from hpo_service.printable import printable, printable_json

LONGEST_CELL = 2**20  # no text in the record is longer


def say(*lines: str) -> None:
    """On standard output: the result."""
    print("\n".join(map(printable, lines)), flush=True)


def note(*lines: str) -> None:
    """On standard error: what goes on, and what went wrong."""
    sys.stdout.flush()
    print("\n".join(map(printable, lines)), file=sys.stderr, flush=True)


def confirmed(question: str) -> bool:
    """Whether somebody at the terminal says yes. The question goes to standard error, where no result is."""
    sys.stdout.flush()
    print(printable(question), end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def say_json(result: Any, indent: int | None = 2) -> None:
    print(printable_json(result, indent), flush=True)


def say_export(pieces: Iterable[bytes], *, as_csv: bool) -> None:
    """An export on a terminal: a trial a line, also where a cell of it has line breaks."""
    csv.field_size_limit(LONGEST_CELL)
    lines = _lines(pieces)
    for row in map(_csv_line, csv.reader(lines)) if as_csv else (line.removesuffix("\n") for line in lines):
        say(row)


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """The text's lines as they come, each with its end."""
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
