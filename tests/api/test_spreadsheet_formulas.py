"""What a spreadsheet would run is quoted in every CSV file that the server gives: the export and the dashboard."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from hpo_service.domain.spreadsheet import cell, quoted, quoted_csv

# what somebody may have written, and what stands in the file
FORMULAS = (
    "=1+1",
    "+cmd",
    "-2+3",
    "-x",
    "@SUM(A1)",
    "\t=1+1",
    "\ttext",
    "\r=1+1",
    "\rtext",
    "\n=1+1",
    " =1+1",
    "\u00a0=1",
    "\u200b=1",
    "\ufeff=1",
    "＝1+1",
    "＋1",
    "－1",
    "＠a",
    "=",
    "-",
    "--1",
    "+1_000",
    "-1\n",
    "\0=1",
    "-5e",
    "- 5",
    "\x01=1",
    "\x1b=1",
    "\x7f+cmd",
    "\x9b@SUM(A1)",
    "\u061c=1",
    "\u034f\u3164\ufe0f-x",
    "\u2800=1",
    "\ufff9=1",
    "\U000e0001\U000e0020=1",
    "﹦1",
    "﹫a",
    "  \u00ad\t=1",
)
PLAIN = (
    "",
    "text",
    "-1.5",
    "+1",
    "1e5",
    "-1e-5",
    "-.5",
    "-5.",
    "+inf",
    "-Infinity",
    "-nan",
    " -5 ",
    "a=1",
    "'=1",
    "5-3",
    "é",
    "a\tb",
    "\x1btext",
    "\u200b",
    "\u3164가=1",
    "é=1",
    "(=1)",
)


@pytest.mark.parametrize("text", FORMULAS)
def test_a_text_that_begins_a_formula_is_quoted(text: str) -> None:
    assert cell(text) == quoted(text) == f"'{text}"


@pytest.mark.parametrize("text", PLAIN)
def test_numbers_and_other_texts_stay_as_they_are(text: str) -> None:
    assert cell(text) == quoted(text) == text


@pytest.mark.parametrize("value", [-1.5, -0.0, 5, float("-inf"), None])
def test_numbers_are_written_as_numbers(value: Any) -> None:
    assert cell(value) is value


@pytest.mark.parametrize("text", FORMULAS + PLAIN)
def test_a_file_of_another_program_comes_out_with_the_same_cells_quoted(text: str) -> None:
    rows = [["a", text, "b,c"], [text, "", 'd"e'], ["x" * 200_000, text, text]]
    written = io.StringIO()
    csv.writer(written).writerows(rows)
    made = b"".join(quoted_csv([written.getvalue().encode()]))
    assert list(csv.reader(io.StringIO(made.decode(), newline=""))) == [[quoted(one) for one in row] for row in rows]


CHOICES = [text for text in FORMULAS + PLAIN if "\0" not in text]


def _filled(api: Any) -> str:
    space = {"x": {"type": "float", "low": -1, "high": 1}, "c": {"type": "categorical", "choices": CHOICES}}
    name: str = api.create(search_space=space)
    for choice in CHOICES:
        api.enqueue(name, {"x": -0.25, "c": choice})
    for start in range(0, len(CHOICES), 20):
        for given in api.ask(name, count=min(20, len(CHOICES) - start), worker_id="=cmd|' /C calc'!A0"):
            result = {"state": "FAIL", "reason": given["params"]["c"]} if given["number"] % 2 else None
            metrics = {"=m": "=HYPERLINK()", "\tn": 1}
            api.work(
                name, given["number"], "tell", **(result or {"state": "COMPLETE", "values": [-0.5]}), metrics=metrics
            )
    return name


def _rows(api: Any, path: str) -> list[list[str]]:
    answer = api.get(path)
    assert answer.headers["content-type"].startswith("text/csv")
    assert int(answer.headers.get("content-length", len(answer.content))) == len(answer.content)
    return list(csv.reader(io.StringIO(answer.content.decode(), newline="")))


def _is_safe(text: str) -> bool:
    return quoted(text) == text


@pytest.mark.slow
def test_the_export_and_the_dashboard_quote_every_formula_and_nothing_else(api: Any) -> None:
    name = _filled(api)
    header, *rows = _rows(api, f"/v1/studies/{name}/trials:export?format=csv")
    place, value, x = (header.index(column) for column in ("params_c", "value", "params_x"))
    assert [row[place] for row in rows] == [quoted(choice) for choice in CHOICES]
    assert {row[value] for row in rows} == {"-0.5", ""}
    assert {row[x] for row in rows} == {"-0.25"}
    assert {row[header.index("worker_id")] for row in rows} == {"'=cmd|' /C calc'!A0"}
    assert all(map(_is_safe, (text for row in [header, *rows] for text in row)))

    (study_id,) = (s["study_id"] for s in api.get("/api/studies").json()["study_summaries"] if s["study_name"] == name)
    header, *rows = _rows(api, f"/csv/{study_id}")
    assert [row[header.index("Param c")] for row in rows] == [quoted(choice) for choice in CHOICES]
    assert {row[header.index("Param x")] for row in rows} == {"-0.25"}
    assert all(map(_is_safe, (text for row in [header, *rows] for text in row)))
    assert api.client.head(f"/csv/{study_id}").status_code == 200
