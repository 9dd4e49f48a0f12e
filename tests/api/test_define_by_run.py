"""Define by run: a study whose search space grows by what its trials suggest."""

from __future__ import annotations

from typing import Any

import pytest

X = {"type": "float", "low": 0.0, "high": 1.0}
LAYERS = {"type": "int", "low": 1, "high": 4}
KIND = {"type": "categorical", "choices": ["svc", "forest"]}


def by_run(api: Any, **fields: Any) -> str:
    return str(api.create(search_space={}, define_by_run=True, **fields))


def suggest(api: Any, name: str, number: int, attempt: int = 1, **parameters: Any) -> Any:
    return api.work(name, number, "suggest", attempt=attempt, parameters=parameters)


def suggested(api: Any, name: str, number: int, attempt: int = 1, **parameters: Any) -> Any:
    answer = suggest(api, name, number, attempt, **parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()["params"]


def test_a_trial_has_what_it_asks_for_and_the_study_learns_what_there_is(either: Any) -> None:
    name = by_run(either)
    (given,) = either.ask(name)
    assert given["params"] == {}
    x = suggested(either, name, 0, x=X)
    assert set(x) == {"x"}
    assert 0 <= x["x"] <= 1
    both = suggested(either, name, 0, layers=LAYERS, x=X)
    assert both["x"] == x["x"], "asked again, it answers the same"
    assert either.trial(name, 0)["params"] == both
    study = either.study(name)
    assert study["define_by_run"] is True
    assert {parameter: given["type"] for parameter, given in study["search_space"].items()} == {
        "x": "float",
        "layers": "int",
    }
    assert study["rounds"][0]["search_space"] == study["search_space"]
    either.tell(name, 0, 0.5)
    assert either.study(name)["best"]["params"] == both


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["auto", "random", "tpe", "gp", "cmaes", "qmc", "nsgaii"])
def test_each_sampler_draws_what_is_asked_for_and_goes_on_with_more(either: Any, sampler: str) -> None:
    name = by_run(either, sampler={"name": sampler, "seed": 3})
    for number in range(14):
        either.ask(name)
        asked: Any = {"x": X} | ({"layers": LAYERS} if number % 2 else {}) | ({"late": X} if number > 7 else {})
        params = suggested(either, name, number, **asked)
        assert params.keys() == asked.keys()
        either.tell(name, number, params["x"])
    assert list(either.study(name)["search_space"]) == ["x", "layers", "late"]
    assert [either.trial(name, number)["params"].keys() for number in (0, 1, 9)] == [
        {"x"},
        {"x", "layers"},
        {"x", "layers", "late"},
    ]


def test_in_a_finite_space_nothing_is_drawn_twice_while_something_is_left(api: Any) -> None:
    for sampler in ("auto", "random"):
        name = by_run(api, sampler={"name": sampler, "seed": 3})
        seen = []
        for number in range(8):
            api.ask(name)
            seen.append(suggested(api, name, number, layers=LAYERS, kind=KIND))
            api.tell(name, number, 0.5)
        assert len({tuple(params.values()) for params in seen}) == 8


def test_another_definition_of_a_known_name_is_refused_with_both(either: Any) -> None:
    name = by_run(either)
    either.ask(name)
    suggested(either, name, 0, x=X, kind=KIND)
    for other in ({**X, "high": 2.0}, {**X, "step": 0.5}, {**X, "low": 1e-3, "log": True}, LAYERS):
        answer = suggest(either, name, 0, x=other)
        assert either.pointers(answer) == ["/parameters/x"]
    assert "[0, 1]" in answer.json()["detail"]
    assert "int [1, 4]" in answer.json()["detail"]
    assert either.pointers(suggest(either, name, 0, kind={**KIND, "choices": ["forest", "svc"]})) == [
        "/parameters/kind"
    ]
    assert suggest(either, name, 0, x={"type": "float", "low": 0, "high": 1}).status_code == 200
    assert list(either.study(name)["search_space"]) == ["x", "kind"]


def test_a_new_attempt_has_the_params_of_the_one_before(either: Any) -> None:
    name = by_run(either, lease_seconds=10)
    either.ask(name)
    first = suggested(either, name, 0, x=X)
    either.clock.turn(11)
    (again,) = either.ask(name)
    assert (again["number"], again["attempt"], again["params"]) == (0, 2, first)
    assert suggested(either, name, 0, 2, x=X) == first
    assert either.code(suggest(either, name, 0, 1, x=X)) == "lease_lost"


def test_a_suggest_is_judged_as_a_report_is(either: Any) -> None:
    name = by_run(either, lease_seconds=10)
    either.ask(name)
    either.clock.turn(11)
    assert either.trial(name, 0)["state"] == "WAITING"
    suggested(either, name, 0, x=X)
    assert either.trial(name, 0)["state"] == "RUNNING", "its lease is taken back"
    either.tell(name, 0, 1.0)
    assert either.code(suggest(either, name, 0, x=X)) == "trial_finished"
    either.ask(name)
    either.work(name, 1, "release")
    assert either.code(suggest(either, name, 1, x=X)) == "lease_lost"
    assert either.code(suggest(either, name, 7, x=X)) == "not_found"


def test_in_a_given_space_it_answers_what_the_trial_has(either: Any) -> None:
    space = {"kind": KIND, "c": {**X, "when": {"kind": ["svc"]}}, "depth": {**LAYERS, "when": {"kind": ["forest"]}}}
    name = either.create(search_space=space)
    (given,) = either.ask(name)
    params = suggested(either, name, 0, kind=KIND, c=X, depth=LAYERS)
    assert params == given["params"]
    assert len(params) == 2
    assert either.pointers(suggest(either, name, 0, kind=KIND, other=X)) == ["/parameters/other"]
    assert either.pointers(suggest(either, name, 0, c={**X, "high": 3.0})) == ["/parameters/c"]
    assert list(either.study(name)["search_space"]) == ["kind", "c", "depth"]


def test_in_a_batch_each_call_stands_for_itself(either: Any) -> None:
    name = by_run(either)
    either.ask(name, count=2)
    call = {"study": name, "call": "suggest", "attempt": 1}
    calls = [
        {**call, "number": 0, "parameters": {"x": X}},
        {**call, "number": 1, "parameters": {"x": LAYERS}},
        {**call, "number": 1, "parameters": {"x": X, "y": X}},
    ]
    answer = either.post("/v1/trials:batch", {"calls": calls})
    assert answer.status_code == 207
    assert [result["status"] for result in answer.json()["results"]] == [200, 422, 200]
    assert answer.json()["results"][2]["body"]["params"].keys() == {"x", "y"}
    assert list(either.study(name)["search_space"]) == ["x", "y"]


def test_what_an_enqueue_gives_is_there_when_it_is_asked_for(either: Any) -> None:
    name = by_run(either)
    queued = either.enqueue(name, {"x": 0.25, "kind": "svc", "unused": None}, {"x": 7.0})
    assert [trial["params"] for trial in queued] == [{"x": 0.25, "kind": "svc", "unused": None}, {"x": 7.0}]
    (given,) = either.ask(name)
    assert given["params"] == {}
    assert suggested(either, name, 0, x=X, kind=KIND) == {"x": 0.25, "kind": "svc"}
    either.tell(name, 0, 1.0)
    assert either.trial(name, 0)["params"] == {"x": 0.25, "kind": "svc"}
    either.ask(name)
    refused = suggest(either, name, 1, x=X)
    assert either.pointers(refused) == ["/parameters/x"]
    assert "enqueued with 7.0" in refused.json()["detail"]
    outside = {"trials": [{"params": {"x": 8.0}}]}
    assert either.pointers(either.post(f"/v1/studies/{name}/trials:enqueue", outside)) == ["/trials/0/params/x"]


def test_what_is_known_before_may_be_given_with_its_conditions(either: Any) -> None:
    space = {"kind": KIND, "c": {**X, "when": {"kind": ["svc"]}}}
    name = either.create(search_space=space, define_by_run=True, sampler={"name": "tpe", "seed": 1})
    for number in range(12):
        assert either.ask(name)[0]["params"] == {}
        params = suggested(either, name, number, kind=KIND)
        if params["kind"] == "svc" or number == 11:
            params = suggested(either, name, number, c=X, kind=KIND)
        assert either.trial(name, number)["params"] == params
        either.tell(name, number, 0.5)
    assert either.study(name)["search_space"]["c"]["when"] == {"kind": ["svc"]}


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"sampler": {"name": "grid"}}, "/sampler/name"),
        ({"narrowing": {"rounds": 2, "trials_per_round": 5}}, "/narrowing"),
        ({"objective": {"kind": "neural_network"}}, "/define_by_run"),
        ({"define_by_run": False}, "/search_space"),
        ({"define_by_run": 1}, "/define_by_run"),
    ],
)
def test_what_has_to_know_the_space_before_is_refused(api: Any, fields: dict[str, Any], pointer: str) -> None:
    body = {"name": "refused", "search_space": {}, "define_by_run": True, **fields}
    assert pointer in api.pointers(api.post("/v1/studies", body))


def test_what_the_sampler_cannot_draw_is_refused_when_it_is_suggested(api: Any) -> None:
    name = by_run(api, sampler={"name": "cmaes"})
    api.ask(name)
    assert api.pointers(suggest(api, name, 0, x=X, kind=KIND)) == ["/parameters/kind"]
    assert api.study(name)["search_space"] == {}, "a call that is refused leaves nothing behind"
    assert api.trial(name, 0)["params"] == {}
    suggested(api, name, 0, kind={**KIND, "ordered": True})


def test_the_space_is_bounded(api: Any) -> None:
    name = by_run(api)
    api.ask(name)
    hundred: Any = {f"p{n}": X for n in range(100)}
    suggested(api, name, 0, **hundred)
    assert api.pointers(suggest(api, name, 0, more=X)) == ["/parameters"]
    wide = by_run(api)
    api.ask(wide)
    choices = {"type": "categorical", "choices": [f"{n}-" + "x" * 4000 for n in range(200)]}
    suggested(api, wide, 0, a=choices)
    assert api.code(suggest(api, wide, 0, b=choices)) == "too_large"
    too_long = {"type": "categorical", "choices": ["x" * 5000]}
    assert api.code(suggest(api, wide, 0, b=too_long)) == "too_large"


def test_wrong_suggests_are_refused_where_they_are_wrong(api: Any) -> None:
    name = by_run(api)
    api.ask(name)
    assert "/parameters/x/high" in api.pointers(suggest(api, name, 0, x={**X, "high": -1.0}))
    assert "/parameters/x/when" in api.pointers(suggest(api, name, 0, x={**X, "when": {"y": [1]}}))
    assert "/parameters" in api.pointers(suggest(api, name, 0))
    assert "/parameters" in api.pointers(api.work(name, 0, "suggest"))


def test_it_is_not_narrowed_by_hand(api: Any) -> None:
    assert api.code(api.verb(by_run(api), "narrow")) == "study_state"


def test_the_same_body_opens_the_study_that_has_grown(api: Any) -> None:
    name = by_run(api)
    api.ask(name)
    before = api.get(f"/v1/studies/{name}").headers["etag"]
    suggested(api, name, 0, x=X)
    assert api.get(f"/v1/studies/{name}").headers["etag"] != before
    body = {"name": name, "search_space": {}, "define_by_run": True, "sampler": {"name": "random", "seed": 1}}
    again = api.post("/v1/studies", body)
    assert again.status_code == 200
    assert list(again.json()["search_space"]) == ["x"]


def test_the_export_has_the_columns_of_the_space_as_it_has_grown(api: Any) -> None:
    name = by_run(api)
    api.ask(name, count=2)
    suggested(api, name, 0, x=X)
    suggested(api, name, 1, layers=LAYERS)
    head = api.get(f"/v1/studies/{name}/trials:export?format=csv").text.splitlines()[0]
    assert "params_x,params_layers" in head


def test_one_direction_may_be_said_shortly(api: Any) -> None:
    for direction in ("minimize", "maximize"):
        assert api.study(api.create(direction=direction))["directions"] == [direction]
    assert api.study(api.create())["directions"] == ["maximize"]
    space = {"x": X}
    both = {"name": "both", "search_space": space, "direction": "minimize", "directions": ["minimize"]}
    assert api.pointers(api.post("/v1/studies", both)) == ["/direction"]
    for wrong in ("up", None, ["minimize"], "MINIMIZE"):
        refused = api.post("/v1/studies", {"name": "both", "search_space": space, "direction": wrong})
        assert api.pointers(refused) == ["/direction"]
