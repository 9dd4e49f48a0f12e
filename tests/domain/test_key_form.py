"""A key's form: what a typo looks like is told without asking anybody; what the record keeps opens nothing."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo_service.domain import key as keys
from hpo_service.domain.errors import Invalid
from hpo_service.domain.key import Key, Scope

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def test_a_key_is_the_prefix_thirty_characters_and_a_checksum() -> None:
    drawn = [keys.draw() for _ in range(200)]
    assert len(set(drawn)) == 200
    assert all(re.fullmatch("hpo_[0-9A-Za-z]{36}", key) for key in drawn)
    assert all(keys.form_fault(key) is None for key in drawn)
    assert set("".join(key[4:34] for key in drawn)) == set(ALPHABET)


@given(place=st.integers(4, 39), character=st.sampled_from(ALPHABET))
def test_one_wrong_character_is_told_offline(place: int, character: str) -> None:
    key = keys.draw()
    wrong = key[:place] + character + key[place + 1 :]
    fault = keys.form_fault(wrong)
    assert (fault is None) is (wrong == key)
    assert fault is None or "checksum" in fault


@given(place=st.integers(4, 38))
def test_two_characters_in_each_others_place_are_told_offline(place: int) -> None:
    key = keys.draw()
    swapped = key[:place] + key[place + 1] + key[place] + key[place + 2 :]
    assert (keys.form_fault(swapped) is None) is (swapped == key)


@pytest.mark.slow
@given(st.text(max_size=60))
def test_any_other_text_is_no_key_and_is_not_repeated(text: str) -> None:
    fault = keys.form_fault(text)
    assert fault is not None
    assert len(text) < 12 or text not in fault


@pytest.mark.parametrize(
    "text", ["hpo_", "hpo_" + "é" * 36, "hpo_" + "-" * 36, "hpo_" + "٣" * 36, " " + "hpo_" + "a" * 36]
)
def test_near_misses_are_no_keys(text: str) -> None:
    assert keys.form_fault(text) is not None


def test_each_scope_covers_those_below_it() -> None:
    order = [Scope.READ, Scope.WORKER, Scope.ADMIN]
    for higher, have in enumerate(order):
        for lower, needed in enumerate(order):
            assert have.covers(needed) is (higher >= lower)


@pytest.mark.parametrize(
    ("expires_at", "revoked_at", "now", "state"),
    [
        (None, None, 10.0, "live"),
        (11.0, None, 10.0, "live"),
        (10.0, None, 10.0, "expired"),
        (None, 5.0, 10.0, "revoked"),
        (1.0, 5.0, 10.0, "revoked"),
    ],
)
def test_a_key_lives_until_its_end(expires_at: float | None, revoked_at: float | None, now: float, state: str) -> None:
    assert Key("id", "hash", "", Scope.READ, None, 0.0, expires_at, revoked_at).state(now) == state


@pytest.mark.parametrize(("text", "seconds"), [("45s", 45.0), ("90m", 5400.0), ("12h", 43_200.0), ("30d", 2_592_000.0)])
def test_a_life_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert keys.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "0d", "-1d", "1.5d", "1w", "30 d", "٣d", "99999999d", "1d\n", "1e3s"])
def test_another_life_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Invalid, match="such as 30d"):
        keys.seconds_of(text)
