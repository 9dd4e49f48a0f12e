"""docs/foreign-code.md promises nothing that no test shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "foreign-code.md").read_text(encoding="utf-8")
# Each table whose last column is of tests, without its two lines of a head.
TABLES = re.findall(r"^\|[^\n]*\| test \|\n\|[-|]+\n((?:\|[^\n]*\n)+)", PAGE, flags=re.MULTILINE)
ROWS = [row for table in TABLES for row in table.splitlines()]
TESTS = re.compile(r"`((?:\w+/)*\w+\.py)::(test_\w+)`")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_each_row_names_a_test_that_is_there(row: str) -> None:
    named = TESTS.findall(row.rstrip("| ").rpartition("|")[2])
    assert named, "its last cell names a test as `folder/file.py::test_name`"
    for file, test in named:
        assert f"def {test}(" in (PROJECT / "tests" / file).read_text(encoding="utf-8")


def test_the_page_has_rows() -> None:
    assert len(TABLES) == 8
    assert len(ROWS) > 80
