"""Every value of a TOML or JSON file is found on the line where it stands."""

from __future__ import annotations

import json
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo_service.cli.file_lines import json_lines, line_of, toml_lines

TOML = '''\
# a comment = 1
name = "x"  # another [one]
metadata.note = """
name = 2
"""
directions = [
    "maximize",  # one
    # two
    "minimize",
]
[search_space]
lr = { type = "float", low = 1e-6 }
"odd.name" = { choices = ["a,]", 'b}', 1979-05-27 07:32:00] }

[search_space.momentum]
when.optimizer = ["momentum"]
[[metadata.runs]]
a = 1
[[metadata.runs]]
b = [[1, 2],
 [3]]
[metadata.runs.deep]
c = 3
'''


def test_every_form_of_toml_is_found_on_its_line():
    lines = toml_lines(TOML)

    for place, line in {
        ("name",): 2,
        ("metadata", "note"): 3,
        ("directions", 1): 9,
        ("search_space", "lr", "low"): 12,
        ("search_space", "odd.name", "choices", 2): 13,
        ("search_space", "momentum", "when", "optimizer", 0): 16,
        ("metadata", "runs", 0, "a"): 18,
        ("metadata", "runs", 1, "b", 1, 0): 21,
        ("metadata", "runs", 1, "deep", "c"): 23,
    }.items():
        assert lines[place] == line, place


def test_toml_has_a_line_for_every_place_that_the_parser_reads():
    assert set(places_of(tomllib.loads(TOML))) <= set(toml_lines(TOML))


def test_a_place_that_is_not_in_the_file_is_shown_at_what_holds_it():
    lines = toml_lines(TOML)

    assert line_of(("search_space", "lr", "high"), lines) == 12
    assert line_of(("limits", "trials"), lines) is None


def places_of(value, place=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in items:
        yield (*place, step)
        yield from places_of(inner, (*place, step))


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.slow
@given(st.dictionaries(st.text(), documents, max_size=5))
def test_json_has_exactly_the_places_of_the_document_each_key_on_its_own_line(document):
    text = json.dumps(document, indent=1)

    lines = json_lines(text)

    assert set(lines) == set(places_of(document))
    for place, line in lines.items():
        if isinstance(place[-1], str):
            assert json.dumps(place[-1]) in text.split("\n")[line - 1]
