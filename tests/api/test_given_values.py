"""What is given comes back as what it is: enqueued params, choices that are lists, ordered choices, wide grids."""

from __future__ import annotations

import io
import json
from collections import Counter
from typing import Any

import pyarrow.parquet
import pytest

from hpo_service.domain.search_space import SearchSpace

CONDITIONAL: dict[str, Any] = {
    "opt": {"type": "categorical", "choices": ["sgd", "mom", "nesterov"]},
    "mom": {"type": "float", "low": 0.0, "high": 1.0, "when": {"opt": ["mom", "nesterov"]}},
    "damp": {"type": "float", "low": 0.0, "high": 1.0, "when": {"opt": ["nesterov"]}},
}
LISTS: dict[str, Any] = {
    "layers": {"type": "categorical", "choices": [[64], [64, 64], [[32, 0.5], "wide", None, True], []]},
    "x": {"type": "float", "low": 0.0, "high": 1.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe", "grid", "qmc", "nsgaii"])
def test_a_conditional_param_without_its_parent_is_given_out_with_one(api: Any, sampler: str) -> None:
    space = {**CONDITIONAL, "mom": {**CONDITIONAL["mom"], "step": 0.01}, "damp": {**CONDITIONAL["damp"], "step": 0.5}}
    parents: Counter[str] = Counter()
    for seed in range(8):
        name = api.create(search_space=space, sampler={"name": sampler, "seed": seed})
        api.enqueue(name, {"mom": 0.77}, {"mom": 0.77}, {"damp": 0.5})
        given = [trial["params"] for trial in api.ask(name, count=3)]
        assert [params["mom"] for params in given[:2]] == [0.77, 0.77]
        assert (given[2]["damp"], given[2]["opt"]) == (0.5, "nesterov")
        parents.update(params["opt"] for params in given[:2])
    assert set(parents) == {"mom", "nesterov"}, "the parent is drawn among those under which it exists"


@pytest.mark.parametrize(
    ("params", "pointer"),
    [({"opt": "sgd", "mom": 0.5}, "mom"), ({"opt": "mom", "damp": 0.5}, "damp"), ({"mom": 0.5, "lr": 1}, "lr")],
)
def test_what_no_trial_can_have_together_is_refused(api: Any, params: Any, pointer: str) -> None:
    name = api.create(search_space=CONDITIONAL)
    answer = api.post(f"/v1/studies/{name}/trials:enqueue", {"trials": [{"params": params}]})
    assert f"/trials/0/params/{pointer}" in api.pointers(answer)
    assert api.study(name)["counts"]["WAITING"] == 0


def test_an_enqueued_number_is_the_choice_the_step_or_the_int_it_equals(either: Any) -> None:
    space = {
        "c": {"type": "categorical", "choices": [2, 4]},
        "l": {"type": "categorical", "choices": [[2], [4]]},
        "s": {"type": "float", "low": 0.0, "high": 0.3, "step": 0.1},
        "n": {"type": "int", "low": 0, "high": 10},
    }
    name = either.create(search_space=space)
    queued = either.enqueue(name, {"c": 2.0, "l": [4.0], "s": 0.1 + 0.2, "n": 3.0})
    (given,) = either.ask(name)
    imported = either.imported(name, {"params": queued[0]["params"] | {"c": 4.0}, "state": "FAIL"})
    for params, c in ((queued[0]["params"], "2"), (given["params"], "2"), (imported[0]["params"], "4")):
        assert json.dumps(params) == f'{{"c": {c}, "l": [4], "s": 0.3, "n": 3}}'


@pytest.mark.parametrize(
    "parameter",
    [
        {"type": "float", "low": 0, "high": 2e7, "step": 1},
        {"type": "float", "low": 1.7e9, "high": 1.8e9, "step": 60},
        {"type": "float", "low": 0, "high": 100, "step": 1e-6},
        {"type": "float", "low": -1e12, "high": 1e12, "step": 0.25},
    ],
)
@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "nsgaii"])
def test_grids_that_a_double_can_hold_are_taken_and_drawn_exactly(api: Any, parameter: Any, sampler: str) -> None:
    params = {"n_startup_trials": 3} if sampler in ("tpe", "cmaes") else {}
    name = api.create(search_space={"x": parameter}, sampler={"name": sampler, "seed": 3, "params": params})
    space = SearchSpace.model_validate({"x": parameter})["x"]
    for number in range(12):
        (given,) = api.ask(name)
        value = given["params"]["x"]
        assert space.exact(value) == value
        api.tell(name, number, value)
    (again,) = api.imported(name, {"params": {"x": value}, "state": "COMPLETE", "values": [1]})
    assert again["params"]["x"] == value


def test_a_grid_that_no_double_can_hold_is_refused(api: Any) -> None:
    space = {"x": {"type": "float", "low": 1e10, "high": 2e10, "step": 1e-6}}
    answer = api.post("/v1/studies", {"name": "too-fine", "search_space": space})
    assert api.pointers(answer) == ["/search_space/x/step"]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc", "nsgaii"])
def test_lists_are_drawn_stored_and_read_back(either: Any, sampler: str) -> None:
    options = {"n_startup_trials": 3} if sampler == "tpe" else {}
    name = either.create(search_space=LISTS, sampler={"name": sampler, "seed": 2, "params": options})
    assert either.study(name)["search_space"]["layers"]["choices"] == LISTS["layers"]["choices"]
    seen = []
    for number in range(20):
        (given,) = either.ask(name)
        assert given["params"]["layers"] in LISTS["layers"]["choices"]
        seen.append(given["params"]["layers"])
        either.tell(name, number, number / 7)
    assert [either.trial(name, number)["params"]["layers"] for number in range(20)] == seen
    assert sum(either.get(f"/v1/studies/{name}/importances").json()["importances"].values()) == pytest.approx(1)


def test_lists_may_be_conditions_and_be_narrowed(api: Any) -> None:
    space = {**LISTS, "drop": {"type": "float", "low": 0, "high": 1, "when": {"layers": [[64.0, 64]]}}}
    name = api.create(search_space=space)
    api.enqueue(name, {"drop": 0.5}, {"layers": []})
    first, second = api.ask(name, count=2)
    assert first["params"]["layers"] == [64, 64]
    assert "drop" not in second["params"]
    api.tell(name, 0, 1.0)
    api.tell(name, 1, 0.0)
    round_ = api.post(f"/v1/studies/{name}:narrow", {"keep": 0.5}).json()
    assert round_["search_space"]["layers"]["choices"] == [[64, 64]]
    assert api.ask(name)[0]["params"]["layers"] == [64, 64]


def test_every_point_of_a_grid_with_lists_is_drawn_once(api: Any) -> None:
    space = {"layers": LISTS["layers"], "b": {"type": "categorical", "choices": [True, False], "ordered": True}}
    name = api.create(search_space=space, sampler={"name": "grid"})
    points = [json.dumps(trial["params"]) for trial in api.ask(name, count=50)]
    assert len(points) == len(set(points)) == 8


def test_lists_stand_in_exports_as_json(api: Any) -> None:
    name = api.create(search_space=LISTS)
    api.enqueue(name, *({"layers": layers, "x": 0.5} for layers in LISTS["layers"]["choices"]))
    api.ask(name, count=4)
    base = f"/v1/studies/{name}/trials:export?format="
    texts = [json.dumps(layers) for layers in LISTS["layers"]["choices"]]
    lines = api.get(base + "csv").text.splitlines()
    assert ',"[[32, 0.5], ""wide"", null, true]",' in lines[3]
    assert ",[64],0.5," in lines[1]
    assert [json.loads(line)["params_layers"] for line in api.get(base + "jsonl").text.splitlines()] == [
        json.loads(text) for text in texts
    ]
    table = pyarrow.parquet.read_table(io.BytesIO(api.get(base + "parquet").content))
    assert [json.loads(text) for text in table["params_layers"].to_pylist()] == [json.loads(text) for text in texts]


@pytest.mark.parametrize(
    ("choices", "status", "pointer"),
    [([[[[[1]]]]], 422, "/search_space/c/choices/0"), ([{"a": 1}], 422, "/search_space/c/choices/0"), ([[]], 201, "")],
)
def test_what_can_be_a_choice(api: Any, choices: Any, status: int, pointer: str) -> None:
    body = {"name": "some-choices", "search_space": {"c": {"type": "categorical", "choices": choices}}}
    answer = api.post("/v1/studies", body)
    assert answer.status_code == status
    assert status == 201 or api.pointers(answer) == [pointer]


def test_a_list_of_more_than_a_kibibyte_is_too_large(api: Any) -> None:
    body: Any = {"name": "a-long-list", "search_space": {"c": {"type": "categorical", "choices": [["x" * 1100]]}}}
    assert api.post("/v1/studies", body).status_code == 413
    body["search_space"]["c"]["choices"] = [["x" * 1000]]
    assert api.post("/v1/studies", body).status_code == 201


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "qmc", "nsgaii", "grid"])
def test_ordered_choices_are_drawn_by_every_sampler(api: Any, sampler: str) -> None:
    space: Any = {"batch": {"type": "categorical", "choices": [16, 32, 64, 128, 256], "ordered": True}}
    if sampler != "grid":
        space["x"] = {"type": "float", "low": 0, "high": 1}
    name = api.create(search_space=space, sampler={"name": sampler, "seed": 5})
    assert api.study(name)["search_space"]["batch"]["ordered"] is True
    for number in range(40):
        for given in api.ask(name):
            assert given["params"]["batch"] in space["batch"]["choices"]
            api.tell(name, number, -abs(given["params"]["batch"] - 64))
    assert api.study(name)["best"]["params"]["batch"] == 64


def test_cmaes_takes_choices_only_where_they_are_ordered(api: Any) -> None:
    space = {"batch": {"type": "categorical", "choices": [16, 32]}}
    answer = api.post("/v1/studies", {"name": "cma", "search_space": space, "sampler": {"name": "cmaes"}})
    assert api.pointers(answer) == ["/search_space/batch"]
    assert '"ordered": true' in answer.json()["detail"]


def test_the_networks_layers_can_be_searched(api: Any) -> None:
    space = {"hidden_sizes": {"type": "categorical", "choices": [[100], [100, 50], None]}}
    name = api.create(search_space=space, objective={"kind": "neural_network", "samples": 100})
    assert api.ask(name)[0]["params"]["hidden_sizes"] in ([100], [100, 50], None)
    wrong = {"hidden_sizes": {"type": "categorical", "choices": [[100], [100, 0]]}}
    answer = api.post("/v1/studies", {"name": "nn", "search_space": wrong, "objective": {"kind": "neural_network"}})
    assert api.pointers(answer) == ["/search_space/hidden_sizes/choices/1/1"]
    both = {**space, "hidden_units": {"type": "int", "low": 1, "high": 9}}
    answer = api.post("/v1/studies", {"name": "nn", "search_space": both, "objective": {"kind": "neural_network"}})
    assert api.pointers(answer) == ["/search_space/hidden_units"]
