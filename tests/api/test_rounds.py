"""Coarse to fine over HTTP: when a round begins, what it is drawn from, and what its trials may be."""

from __future__ import annotations

import math
from typing import Any

import pytest

X = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
SPACE: dict[str, Any] = {
    "lr": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
    "n": {"type": "int", "low": 0, "high": 100},
    "c": {"type": "categorical", "choices": ["a", "b", "c"]},
    "m": {"type": "float", "low": 0.5, "high": 0.99, "when": {"c": ["b"]}},
}


def rounds_of(api: Any, name: str) -> Any:
    return api.study(name)["rounds"]


def run(api: Any, name: str, *pairs: tuple[dict[str, Any], float]) -> None:
    """Enqueue these params and tell each this value."""
    api.enqueue(name, *[params for params, _ in pairs])
    for (params, value), given in zip(pairs, api.ask(name, count=len(pairs)), strict=True):
        assert given["params"] == params
        api.tell(name, given["number"], value)


def test_without_narrowing_it_is_one_round(api: Any) -> None:
    name = api.create()
    api.ask(name, count=3)
    api.tell(name, 1, 0.5)
    (only,) = rounds_of(api, name)
    assert only == {
        "round": 0,
        "search_space": api.study(name)["search_space"],
        "first_trial": 0,
        "trials": 3,
        "from_trials": [],
        "changes": [],
    }


@pytest.mark.slow
def test_the_next_round_spans_the_best_trials_widened_by_a_tenth(either: Any) -> None:
    name = either.create(
        search_space=SPACE, narrowing={"rounds": 2, "trials_per_round": 5, "keep": 0.4}, directions=["minimize"]
    )
    run(
        either,
        name,
        ({"lr": 1e-4, "n": 20, "c": "a"}, 0.1),
        ({"lr": 1e-3, "n": 40, "c": "b", "m": 0.6}, 0.2),
        ({"lr": 1e-6, "n": 99, "c": "c"}, 0.3),
        ({"lr": 1e-6, "n": 99, "c": "c"}, 0.4),
        ({"lr": 1e-6, "n": 99, "c": "c"}, 0.5),
    )
    first, second = rounds_of(either, name)
    assert (first["trials"], first["first_trial"]) == (5, 0)
    assert (second["round"], second["trials"], second["first_trial"]) == (1, 0, None)
    assert second["from_trials"] == [0, 1]
    space = second["search_space"]
    assert math.isclose(space["lr"]["low"], 10**-4.1, rel_tol=1e-12)
    assert math.isclose(space["lr"]["high"], 10**-2.9, rel_tol=1e-12)
    assert (space["n"]["low"], space["n"]["high"]) == (18, 42)
    assert space["c"]["choices"] == ["a", "b"]
    assert (space["m"]["low"], space["m"]["high"]) == (0.6, 0.6)
    changes = {(change["parameter"], change["kind"]): change for change in second["changes"]}
    assert set(changes) == {("lr", "narrowed"), ("n", "narrowed"), ("c", "dropped"), ("m", "narrowed")}
    assert [change["parameter"] for change in second["changes"]].count("lr") == 2
    assert (changes["c", "dropped"]["before"], changes["c", "dropped"]["after"]) == (["a", "b", "c"], ["a", "b"])
    for given in either.ask(name, count=5):
        params = given["params"]
        assert space["lr"]["low"] <= params["lr"] <= space["lr"]["high"]
        assert 18 <= params["n"] <= 42
        assert params["c"] in ("a", "b")
        assert ("m" in params) is (params["c"] == "b")
        assert either.trial(name, given["number"])["round"] == 1
    assert rounds_of(either, name)[1]["first_trial"] == 5


def test_the_range_never_passes_the_one_first_given(api: Any) -> None:
    name = api.create(narrowing={"rounds": 2, "trials_per_round": 2, "keep": 1.0})
    run(api, name, ({"x": 0.01}, 0.1), ({"x": 1.0}, 0.2))
    space = rounds_of(api, name)[1]["search_space"]["x"]
    assert (space["low"], space["high"]) == (0.0, 1.0)


def test_it_keeps_the_best_of_all_complete_trials_so_far(api: Any) -> None:
    name = api.create(narrowing={"rounds": 3, "trials_per_round": 3, "keep": 0.34})
    run(api, name, ({"x": 0.5}, 0.9), ({"x": 0.1}, 0.1), ({"x": 0.2}, 0.2))
    assert rounds_of(api, name)[1]["from_trials"] in ([0], [0, 2])
    run(api, name, ({"x": 0.6}, 0.8), ({"x": 0.7}, 0.3), ({"x": 0.7}, 0.3))
    # ceil(0.34 × 6) = 3
    assert sorted(rounds_of(api, name)[2]["from_trials"])[:2] == [0, 3]
    assert len(rounds_of(api, name)[2]["from_trials"]) == 3


def test_imported_trials_are_among_those_it_keeps(api: Any) -> None:
    name = api.create(narrowing={"rounds": 2, "trials_per_round": 1, "keep": 0.5})
    api.imported(name, {"params": {"x": 0.25}, "state": "COMPLETE", "values": [0.9]})
    api.finish(name, 0.1)
    following = rounds_of(api, name)[1]
    assert following["from_trials"] == [0]
    assert (following["search_space"]["x"]["low"], following["search_space"]["x"]["high"]) == (0.25, 0.25)


def test_a_round_waits_for_its_slow_trials(either: Any) -> None:
    name = either.create(narrowing={"rounds": 2, "trials_per_round": 3})
    either.ask(name, count=3)
    either.tell(name, 0, 0.5)
    either.tell(name, 1, 0.5)
    assert either.asked(name) == {"trials": [], "study_state": "ACTIVE"}
    assert len(rounds_of(either, name)) == 1
    either.clock.turn(60)
    (again,) = either.ask(name, count=5)
    assert (again["number"], again["attempt"]) == (2, 2)
    either.tell(name, 2, 0.5, attempt=2)
    assert len(rounds_of(either, name)) == 2
    assert len(either.ask(name, count=5)) == 3


@pytest.mark.parametrize("end", ["FAIL", "PRUNED", "stopped"])
def test_a_round_without_a_complete_trial_leaves_the_ranges(api: Any, end: str) -> None:
    name = api.create(narrowing={"rounds": 2, "trials_per_round": 2})
    api.ask(name, count=2)
    for number in range(2):
        if end == "stopped":
            api.work(name, number, "release")
            api.post(f"/v1/studies/{name}/trials/{number}:stop")
        else:
            api.work(name, number, "tell", state=end)
    _first, second = rounds_of(api, name)
    assert (second["changes"], second["from_trials"]) == ([], [])
    assert second["search_space"] == api.study(name)["search_space"]


def test_enqueued_trials_count_in_the_round_that_gives_them_out(api: Any) -> None:
    name = api.create(narrowing={"rounds": 2, "trials_per_round": 2, "keep": 1.0})
    api.enqueue(name, {"x": 0.4}, {"x": 0.6}, {"x": 0.99})
    given = api.ask(name, count=5)
    assert [trial["params"]["x"] for trial in given] == [0.4, 0.6]
    for trial in given:
        api.tell(name, trial["number"], 0.5)
    (outside,) = api.ask(name)
    assert (outside["params"], api.trial(name, 2)["round"]) == ({"x": 0.99}, 1)
    assert [round_["trials"] for round_ in rounds_of(api, name)] == [2, 1]


@pytest.mark.slow
def test_all_rounds_together_give_out_rounds_times_trials(either: Any) -> None:
    name = either.create(search_space=SPACE, narrowing={"rounds": 3, "trials_per_round": 4, "expand": True})
    total = 0
    while either.state(name) == "ACTIVE":
        for given in either.ask(name, count=100):
            either.tell(name, given["number"], given["params"]["n"])
            total += 1
    assert total == 12
    rounds = rounds_of(either, name)
    assert [round_["trials"] for round_ in rounds] == [4, 4, 4]
    assert [round_["first_trial"] for round_ in rounds] == [0, 4, 8]
    lows = [round_["search_space"]["n"]["low"] for round_ in rounds]
    assert lows[0] <= lows[1] <= lows[2]


def test_a_lower_limit_of_trials_cuts_the_rounds_short(api: Any) -> None:
    name = api.create(narrowing={"rounds": 3, "trials_per_round": 4}, limits={"trials": 6})
    api.finish(name, *[0.5] * 6)
    assert (api.state(name), [round_["trials"] for round_ in rounds_of(api, name)]) == ("COMPLETED", [4, 2])


@pytest.mark.slow
@pytest.mark.parametrize(("body", "kept"), [({}, 1), (None, 1), ({"keep": 0.5}, 2), ({"keep": 1}, 4)])
def test_by_hand_without_narrowing(either: Any, body: Any, kept: int) -> None:
    name = either.create()
    run(either, name, ({"x": 0.1}, 0.9), ({"x": 0.2}, 0.8), ({"x": 0.3}, 0.7), ({"x": 0.4}, 0.6))
    answer = either.post(f"/v1/studies/{name}:narrow", body)
    assert answer.status_code == 201, answer.text
    assert answer.json() == rounds_of(either, name)[1]
    assert answer.json()["from_trials"] == list(range(kept))
    (given,) = either.ask(name)
    space = answer.json()["search_space"]["x"]
    assert space["low"] <= given["params"]["x"] <= space["high"]
    assert either.trial(name, given["number"])["round"] == 1


def test_by_hand_before_a_round_is_over(api: Any) -> None:
    name = api.create(narrowing={"rounds": 3, "trials_per_round": 4, "keep": 0.5})
    api.ask(name, count=3)
    api.tell(name, 0, 0.5)
    assert api.post(f"/v1/studies/{name}:narrow").json()["round"] == 1
    api.tell(name, 1, 0.9)
    assert len(rounds_of(api, name)) == 2
    assert len(api.ask(name, count=10)) == 4
    assert api.limit(name, trials=12).status_code == 200


@pytest.mark.parametrize("body", [{"keep": 0}, {"keep": 1.5}, {"keep": "0.2"}, {"colour": 1}, [], {"keep": True}])
def test_a_wrong_narrow_is_refused(api: Any, body: Any) -> None:
    assert api.post(f"/v1/studies/{api.create()}:narrow", body).status_code == 422


def test_a_crowded_edge_moves_outwards_but_not_beyond_the_objective(either: Any) -> None:
    space = {
        "learning_rate": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
        "dropout": {"type": "float", "low": 0.0, "high": 0.6},
        "hidden_units": {"type": "int", "low": 10, "high": 9000},
    }
    name = either.create(
        search_space=space,
        objective={"kind": "neural_network"},
        narrowing={"rounds": 3, "trials_per_round": 2, "keep": 1.0, "expand": True},
    )
    at_the_edge = {"learning_rate": 9.9e-3, "dropout": 0.59, "hidden_units": 8990}
    run(either, name, (at_the_edge, 0.5), (at_the_edge, 0.6))
    moved = rounds_of(either, name)[1]
    assert math.isclose(moved["search_space"]["learning_rate"]["high"], 0.1)
    assert 0.99 < moved["search_space"]["dropout"]["high"] < 1.0
    assert moved["search_space"]["hidden_units"]["high"] == 10_000
    kinds = {(change["parameter"], change["side"]): change["kind"] for change in moved["changes"]}
    assert kinds["learning_rate", "high"] == "expanded"
    assert kinds["learning_rate", "low"] == "narrowed"
    either.finish(name, 0.5, 0.5)
    assert len(rounds_of(either, name)) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        ({"type": "float", "low": 0.0, "high": 1.0, "step": 0.1}, (0.7, 0.8)),
        ({"type": "float", "low": 0.0, "high": 1.0, "step": 0.1}, (0.2, 0.3)),
        ({"type": "float", "low": 0.05, "high": 0.95, "step": 0.3}, (0.65, 0.95)),
        ({"type": "float", "low": 0.0, "high": 1e308}, (0.0, 0.0)),
        ({"type": "float", "low": -1e308, "high": 5e307}, (5e307, 5e307)),
        ({"type": "int", "low": 0, "high": 2**53}, (2**53, 2**53)),
        ({"type": "int", "low": -(2**53), "high": 2**53}, (2**53, -(2**53))),
        ({"type": "int", "low": 1, "high": 2**53, "log": True}, (2**53, 2**53)),
        ({"type": "float", "low": 1e-308, "high": 1e308, "log": True}, (1e308, 1e-308)),
        ({"type": "float", "low": 5e-324, "high": 1e-300, "log": True}, (5e-324, 1e-300)),
        ({"type": "int", "low": 5, "high": 5}, (5, 5)),
    ],
)
def test_a_study_survives_the_narrowing_of_any_range(
    api: Any, parameter: dict[str, Any], values: tuple[float, float]
) -> None:
    name = api.create(
        search_space={"x": parameter}, narrowing={"rounds": 4, "trials_per_round": 2, "keep": 1.0, "expand": True}
    )
    run(api, name, *[({"x": value}, 0.5) for value in values])
    for _ in range(3):
        api.study(name)
        for given in api.ask(name, count=2):
            api.tell(name, given["number"], 0.4)
    assert api.state(name) == "COMPLETED"
    assert len(rounds_of(api, name)) == 4


def test_the_conditions_of_a_dropped_choice_go_with_it(api: Any) -> None:
    name = api.create(search_space=SPACE, narrowing={"rounds": 3, "trials_per_round": 1, "keep": 1.0})
    run(api, name, ({"lr": 1e-3, "n": 1, "c": "a"}, 0.5))
    assert "m" not in rounds_of(api, name)[1]["search_space"]
    api.enqueue(name, {"c": "b"})
    (given,) = api.ask(name)
    assert set(given["params"]) == {"lr", "n", "c", "m"}, "an enqueue may still give what the round has dropped"
    api.tell(name, given["number"], 0.9)
    assert api.ask(name)


def test_a_paused_study_begins_its_next_round_when_it_goes_on(api: Any) -> None:
    name = api.create(narrowing={"rounds": 2, "trials_per_round": 1})
    api.ask(name)
    api.verb(name, "pause")
    api.tell(name, 0, 0.5)
    api.verb(name, "resume")
    assert len(rounds_of(api, name)) == 2
    assert len(api.ask(name)) == 1


def test_narrowing_is_for_one_direction(api: Any) -> None:
    name = api.create(directions=["maximize", "minimize"])
    assert api.post(f"/v1/studies/{name}:narrow").status_code in (409, 422)
