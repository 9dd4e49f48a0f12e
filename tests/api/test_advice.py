"""Advice: each kind is right on a study that is made for it, and none is given on studies that have nothing wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.tuner import Tuner

Function = Callable[[dict[str, Any], random.Random], float | None]

X: dict[str, Any] = {"type": "float", "low": 0.0, "high": 1.0}
XY = {"x": X, "y": X}
FIVE = {f"x{k}": X for k in range(5)}
RATES = {
    "lr": {"type": "float", "low": 1e-6, "high": 1.0, "log": True},
    "decay": {"type": "float", "low": 1e-8, "high": 1e-2, "log": True},
}
CONDITIONAL = {
    "optimizer": {"type": "categorical", "choices": ["sgd", "momentum"]},
    "lr": {"type": "float", "low": 1e-5, "high": 1.0, "log": True},
    "momentum": {"type": "float", "low": 0.1, "high": 0.99, "when": {"optimizer": ["momentum"]}},
}
COUNTED = {
    "units": {"type": "int", "low": 1, "high": 64, "log": True},
    "kind": {"type": "categorical", "choices": ["a", "b", "c"]},
}


def bowl(middle: float = 0.45, noise: float = 0.0, sign: float = -1.0) -> Function:
    def value(params: dict[str, Any], rng: random.Random) -> float:
        return sign * sum((each - middle) ** 2 for each in params.values()) + rng.gauss(0, noise)

    return value


def of_rates(params: dict[str, Any], rng: random.Random) -> float:
    return 1 - 0.05 * (math.log10(params["lr"]) + 3) ** 2 - 0.03 * (math.log10(params["decay"]) + 5) ** 2


def of_optimizers(params: dict[str, Any], rng: random.Random) -> float:
    loss = 0.3 if params["optimizer"] == "sgd" else (params["momentum"] - 0.6) ** 2
    return 1 - 0.1 * (math.log10(params["lr"]) + 2.5) ** 2 - loss


def of_counts(params: dict[str, Any], rng: random.Random) -> float:
    return -((math.log2(params["units"]) - 3) ** 2) - "abc".index(params["kind"])


def valley(params: dict[str, Any], rng: random.Random) -> float:
    x, y = 4 * params["x"] - 2, 4 * params["y"] - 2
    return -((1 - x) ** 2 + 100 * (y - x * x) ** 2)


def sometimes_failing(params: dict[str, Any], rng: random.Random) -> float | None:
    return None if rng.random() < 0.1 else bowl()(params, rng)


def searched(
    api: Any, space: dict[str, Any], value: Function, trials: int, sampler: str = "tpe", seed: int = 3, **fields: Any
) -> str:
    """A study of so many imported trials, drawn by this sampler as a study of it would; None is a FAIL."""
    name: str = api.create(search_space=space, sampler={"name": sampler, "seed": seed}, **fields)
    directions = fields.get("directions", ["maximize"])
    body = {"name": name, "search_space": space, "sampler": {"name": sampler, "seed": seed}, "directions": directions}
    spec = StudySpec.model_validate(body)
    tuner, rng, told = Tuner(spec), random.Random(seed), []
    for number in range(trials):
        params = tuner.draw(number, spec.search_space, {}).params
        found = value(params, rng)
        values = None if found is None else (found,) * len(directions)
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        tuner.absorb([HistoryTrial(number, state, params, values, failed_in_training=values is None)])
        told.append({"params": params, "state": str(state)} | ({} if values is None else {"values": values}))
    api.imported(name, *told)
    return name


def advice(api: Any, name: str) -> list[Any]:
    answer = api.get(f"/v1/studies/{name}/advice")
    assert answer.status_code == 200, answer.text
    items: list[Any] = answer.json()["items"]
    for item in items:
        assert set(item) == {"code", "parameter", "detail", "evidence", "suggestion"}
        assert item["detail"].strip()
    return items


def codes(api: Any, name: str) -> list[tuple[str, str | None]]:
    return [(item["code"], item["parameter"]) for item in advice(api, name)]


CLEAN: dict[str, tuple[dict[str, Any], Function, int, dict[str, Any]]] = {
    "a smooth function": (XY, bowl(), 60, {}),
    "with a little noise, at random": (XY, bowl(0.55, noise=0.005), 80, {"sampler": "random"}),
    "five parameters": (FIVE, bowl(0.4), 100, {}),
    "less is better": (FIVE, bowl(0.6, sign=1.0), 120, {"directions": ["minimize"]}),
    "logarithms": (RATES, of_rates, 60, {}),
    "a conditional parameter": (CONDITIONAL, of_optimizers, 80, {}),
    "integers and choices": (COUNTED, of_counts, 80, {"sampler": "random"}),
    "two directions": (XY, bowl(0.5), 60, {"directions": ["maximize", "minimize"], "sampler": "random"}),
    "a small one": ({"x": X}, bowl(0.5), 12, {"sampler": "random"}),
    "a curved valley": (XY, valley, 120, {}),
    "failures anywhere": (XY, sometimes_failing, 100, {"sampler": "random"}),
    "a long one": (XY, bowl(0.5, noise=0.003), 300, {"sampler": "random"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLEAN)
def test_of_a_study_with_nothing_wrong_nothing_is_said(api: Any, kind: str) -> None:
    space, value, trials, fields = CLEAN[kind]
    assert advice(api, searched(api, space, value, trials, **fields)) == []


@pytest.mark.slow
def test_of_a_new_study_nothing_is_said(either: Any) -> None:
    name = either.create()
    assert advice(either, name) == []
    assert either.get("/v1/studies/no-such-study/advice").status_code == 404


# -- each kind --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_best_trials_that_crowd_an_edge(either: Any, sampler: str) -> None:
    name = searched(either, XY, lambda p, rng: p["x"] - (p["y"] - 0.5) ** 2, 100, sampler, seed=1)
    (item,) = advice(either, name)
    assert (item["code"], item["parameter"]) == ("edge", "x")
    assert item["suggestion"] == {"parameter": "x", "high": 2.0}
    assert item["evidence"]["side"] == "high"


def test_an_edge_of_a_logarithmic_range_is_moved_by_a_power_of_ten(api: Any) -> None:
    def value(params: dict[str, Any], rng: random.Random) -> float:
        return math.log10(params["lr"]) + 0.5 * (math.log10(params["decay"]) + 5) ** 2

    name = searched(api, RATES, value, 60, directions=["minimize"])
    (item,) = advice(api, name)
    assert (item["code"], item["parameter"]) == ("edge", "lr")
    assert item["suggestion"] == {"parameter": "lr", "low": pytest.approx(1e-7)}


def test_a_best_value_just_inside_of_the_range_is_no_edge(api: Any) -> None:
    name = searched(api, XY, lambda p, rng: -((p["x"] - 0.05) ** 2) - (p["y"] - 0.5) ** 2, 150, seed=1)
    assert ("edge", "x") not in codes(api, name)


@pytest.mark.parametrize("trials", [30, 60])
def test_a_parameter_that_hardly_matters(api: Any, trials: int) -> None:
    name = searched(api, XY, lambda p, rng: -((p["x"] - 0.4) ** 2) + 1e-4 * p["y"], trials, "random")
    (item,) = advice(api, name)
    assert (item["code"], item["parameter"], item["suggestion"]) == ("hardly_matters", "y", None)


def test_of_fewer_than_twenty_trials_nothing_is_said_not_to_matter(api: Any) -> None:
    name = searched(api, XY, lambda p, rng: -((p["x"] - 0.4) ** 2), 19, "random")
    assert "hardly_matters" not in dict(codes(api, name))


def test_what_matters_only_together_with_another_one_is_not_said_to_hardly_matter(api: Any) -> None:
    name = searched(api, XY, lambda p, rng: (p["x"] - 0.5) * (p["y"] - 0.5), 80, "random")
    assert "hardly_matters" not in dict(codes(api, name))


def test_a_conditional_parameter_is_judged_among_the_trials_that_have_it(api: Any) -> None:
    def value(params: dict[str, Any], rng: random.Random) -> float:
        loss = 0.8 if params["optimizer"] == "sgd" else 0.0  # momentum makes no difference
        return 1 - 0.1 * (math.log10(params["lr"]) + 2.5) ** 2 - loss

    name = searched(api, CONDITIONAL, value, 120, "random")
    assert ("hardly_matters", "momentum") in codes(api, name)
    name = searched(api, CONDITIONAL, of_optimizers, 120, "random")
    assert ("hardly_matters", "momentum") not in codes(api, name)


def test_a_wide_range_without_logarithm(api: Any) -> None:
    space = {"rate": {**X, "low": 1e-3, "high": 1.0}, "near": {**X, "low": 0.01, "high": 1.0}, "zero": X}
    (item,) = advice(api, api.create(search_space=space))
    assert (item["code"], item["parameter"]) == ("log_scale", "rate")
    assert item["suggestion"] == {"parameter": "rate", "log": True}
    assert item["evidence"]["decades"] == 3.0


def test_too_few_trials(api: Any) -> None:
    name = searched(api, FIVE, bowl(), 49, "random")
    assert codes(api, name) == [("few_trials", None)]
    assert advice(api, name)[0]["evidence"] == {"trials": 49, "parameters": 5}
    assert advice(api, name)[0]["detail"].startswith("49 trials for 5 parameters:")
    assert codes(api, searched(api, FIVE, bowl(), 50, "random")) == []
    assert codes(api, searched(api, FIVE, bowl(), 20, "random", limits={"trials": 100})) == []  # more will come


def test_a_grid_that_is_exhausted_has_not_too_few(api: Any) -> None:
    space = {"a": {"type": "int", "low": 0, "high": 1}, "b": {"type": "int", "low": 0, "high": 1}}
    name = api.create(search_space=space, sampler={"name": "grid"})
    for given in api.ask(name, count=9):
        api.tell(name, given["number"], float(given["number"]))
    assert (api.state(name), codes(api, name)) == ("COMPLETED", [])


def test_a_space_of_which_every_point_was_tried_needs_no_more(api: Any) -> None:
    space = {
        "a": {"type": "categorical", "choices": [1, 2, 3]},
        "b": {"type": "float", "low": 0, "high": 1, "step": 0.5},
    }
    name = api.create(search_space=space)
    points = [{"a": a, "b": b} for a in (1, 2, 3) for b in (0.0, 0.5, 1.0)]
    api.imported(name, *[{"params": p, "state": "COMPLETE", "values": [p["a"] - p["b"]]} for p in points])
    assert codes(api, name) == []


def test_noise_known_from_repeated_params(either: Any) -> None:
    rng = random.Random(1)
    name = either.create(search_space=XY)
    points = [{"x": k / 10, "y": (k * 7 % 10) / 10} for k in range(10)]
    told = [(point, 0.8 + 0.02 * point["x"] + rng.gauss(0, 0.03)) for point in points for _ in range(2)]
    either.imported(name, *[{"params": p, "state": "COMPLETE", "values": [v]} for p, v in told])
    (item,) = advice(either, name)
    assert item["code"] == "within_noise"
    assert item["evidence"]["from"] == "repeated params"
    assert item["evidence"]["best"] == either.study(name)["best"]["number"]
    assert 0.01 < item["evidence"]["noise"] < 0.06
    assert item["suggestion"]["confirm"]["seeds"] == 5


def test_noise_known_from_a_smooth_fit(api: Any) -> None:
    name = searched(api, XY, bowl(0.5, noise=0.1), 80)
    (item,) = advice(api, name)
    assert (item["code"], item["evidence"]["from"]) == ("within_noise", "a smooth fit")
    assert 0.04 < item["evidence"]["noise"] < 0.2


def test_what_is_said_of_noise_once_the_best_are_confirmed(either: Any) -> None:
    name = searched(either, XY, bowl(0.5, noise=0.1), 80)
    either.verb(name, "stop")
    either.post(f"/v1/studies/{name}:confirm", {"top": 2, "seeds": 3})
    assert "within_noise" not in dict(codes(either, name))
    first, second = (
        trial["number"] for trial in either.get(f"/v1/studies/{name}/trials?order_by=value").json()["items"][:2]
    )
    for given, value in zip(either.ask(name, count=9), (0.5, 0.4, 0.4, 0.5, 0.6, 0.5), strict=True):
        either.tell(name, given["number"], value)
    (item,) = [item for item in advice(either, name) if item["code"] == "within_noise"]
    assert (item["evidence"], item["suggestion"]) == ({"best": first, "near": [second], "from": "replicates"}, None)


def test_nothing_better_for_long(api: Any) -> None:
    name = api.create(search_space=XY)
    rng = random.Random(1)
    told = [(0.9 if k == 20 else rng.random() / 2) for k in range(150)]
    params = [{"x": rng.random(), "y": rng.random()} for _ in told]
    api.imported(name, *[{"params": p, "state": "COMPLETE", "values": [v]} for p, v in zip(params, told, strict=True)])
    (item,) = advice(api, name)
    assert (item["code"], item["evidence"]) == ("stagnation", {"since": 129, "complete": 150, "best": 20})


def test_of_even_draws_the_best_may_come_at_any_time(api: Any) -> None:
    space, value, trials, fields = CLEAN["a long one"]
    name = searched(api, space, value, trials, **fields)
    assert api.study(name)["best"]["number"] < 10
    assert advice(api, name) == []


def test_where_trials_fail(either: Any) -> None:
    name = searched(either, XY, lambda p, rng: None if p["x"] > 0.8 else bowl(0.4)(p, rng), 60, "random")
    (item,) = advice(either, name)
    assert (item["code"], item["parameter"]) == ("failures", "x")
    evidence = item["evidence"]
    assert evidence["low"] == pytest.approx(0.8, abs=0.1)
    assert evidence["high"] == 1.0
    assert evidence["failed"] == evidence["failed_in_all"] == either.study(name)["counts"]["FAIL"]
    assert item["suggestion"] == {"parameter": "x", "high": evidence["low"]}


def test_a_choice_with_which_trials_fail(api: Any) -> None:
    def value(params: dict[str, Any], rng: random.Random) -> float | None:
        return None if params["kind"] == "b" and rng.random() < 0.8 else of_counts(params, rng)

    item = advice(api, searched(api, COUNTED, value, 90, "random"))[0]
    assert (item["code"], item["parameter"], item["evidence"]["choice"]) == ("failures", "kind", "b")
    assert item["suggestion"] == {"parameter": "kind", "choices": ["a", "c"]}


def test_what_the_service_has_ended_is_no_failure_of_the_params(api: Any) -> None:
    name = api.create(search_space=XY)
    for given in api.ask(name, count=40):
        ended = given["params"]["x"] > 0.7
        api.tell(name, given["number"], 0.5) if not ended else None
    api.verb(name, "stop")
    api.clock.turn(61)
    assert api.study(name)["counts"]["FAIL"] > 5
    assert "failures" not in dict(codes(api, name))


def test_a_parameter_that_never_varied(api: Any) -> None:
    name = api.create(search_space=XY)
    rng = random.Random(1)
    told = [{"x": rng.random(), "y": 0.25} for _ in range(40)]
    api.imported(name, *[{"params": p, "state": "COMPLETE", "values": [-((p["x"] - 0.4) ** 2)]} for p in told])
    (item,) = advice(api, name)
    assert (item["code"], item["parameter"], item["evidence"]) == ("constant", "y", {"value": 0.25, "trials": 40})


def test_a_worker_that_fails_where_others_do_not(either: Any) -> None:
    name = either.create(search_space=XY)
    for k in range(30):
        (given,) = either.ask(name, worker_id=f"gpu-{k % 3}")
        if k % 3 == 1:
            either.work(name, given["number"], "tell", state="FAIL", reason="CUDA error")
        else:
            either.tell(name, given["number"], bowl(0.4)(given["params"], random.Random(1)))
    (item,) = advice(either, name)
    assert item["code"] == "workers"
    assert item["evidence"] == {"worker_id": "gpu-1", "trials": 10, "failed": 10, "others": 20, "others_failed": 0}
    assert item["suggestion"] == {"drain": "gpu-1"}


def curves(api: Any, crossing: bool, **fields: Any) -> str:
    """Forty trials of twenty steps each; crossing: whoever begins well ends badly."""
    name: str = api.create(search_space=XY, **fields)
    rng, told = random.Random(1), []
    for _ in range(40):
        params = {"x": rng.random(), "y": rng.random()}
        value = 1 - (params["x"] - 0.4) ** 2 - (params["y"] - 0.4) ** 2
        start = 1 - value if crossing else value / 2
        reports = [{"step": k, "value": start + (value - start) * k / 20} for k in range(1, 21)]
        told.append({"params": params, "state": "COMPLETE", "values": [value], "reports": reports})
    api.imported(name, *told)
    return name


def test_what_a_pruner_would_have_saved(either: Any) -> None:
    (item,) = advice(either, curves(either, crossing=False))
    assert (item["code"], item["suggestion"]) == ("pruning", {"pruner": {"name": "median"}})
    assert item["evidence"]["steps"] == 800
    assert 240 < item["evidence"]["saved"] < 600
    assert item["evidence"]["lost"] == 0.0


def test_pruning_that_would_have_lost_the_best_is_not_advised_nor_where_there_is_a_pruner(api: Any) -> None:
    assert advice(api, curves(api, crossing=True)) == []
    assert advice(api, curves(api, crossing=False, pruner={"name": "median"})) == []


def test_the_most_important_comes_first_and_infinite_values_do_no_harm(api: Any) -> None:
    name = api.create(search_space={**XY, "wide": {**X, "low": 1e-3, "high": 10.0}})
    rng = random.Random(2)
    told = []
    for k in range(60):
        params = {"x": rng.random(), "y": 0.5, "wide": rng.uniform(1e-3, 10)}
        value = ["Infinity", "-Infinity", 1e308, -1e308][k % 4] if k % 5 == 0 else params["x"]
        told.append({"params": params, "state": "COMPLETE", "values": [value]})
        told[-1] = {"params": params, "state": "FAIL"} if params["x"] > 0.8 else told[-1]
    api.imported(name, *told)
    assert [code for code, _ in codes(api, name)][:2] == ["failures", "log_scale"]
    assert codes(api, name)[-1] == ("constant", "y")
