"""What people put in: trials to be given out first, and finished ones from elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

SPACE: dict[str, Any] = {
    "lr": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
    "units": {"type": "int", "low": 10, "high": 100, "step": 10},
    "opt": {"type": "categorical", "choices": ["sgd", "momentum", 1, True, None]},
    "m": {"type": "float", "low": 0.5, "high": 0.9, "when": {"opt": ["momentum"]}},
}
WHOLE = {"lr": 1e-3, "units": 50, "opt": "momentum", "m": 0.6}


def test_enqueued_trials_are_given_out_in_their_order_before_sampled_ones(either: Any) -> None:
    name = either.create()
    queued = either.enqueue(name, {"x": 0.1}, {"x": 0.2}, {"x": 0.3})
    assert [trial["number"] for trial in queued] == [0, 1, 2]
    for trial in queued:
        assert (trial["state"], trial["attempt"], trial["worker_id"], trial["round"]) == ("WAITING", 0, None, None)
        assert (trial["started_at"], trial["finished_at"]) == (None, None)
    assert either.study(name)["counts"]["WAITING"] == 3
    given = either.ask(name, count=4)
    assert [trial["params"]["x"] for trial in given[:3]] == [0.1, 0.2, 0.3]
    assert [trial["number"] for trial in given] == [0, 1, 2, 3]


def test_a_missing_param_is_sampled_and_a_given_one_kept(either: Any) -> None:
    name = either.create(search_space=SPACE)
    either.enqueue(name, {"opt": "momentum"}, {"opt": "sgd"}, {"units": 50}, {}, WHOLE)
    given = [trial["params"] for trial in either.ask(name, count=5)]
    assert set(given[0]) == {"lr", "units", "opt", "m"}
    assert (given[0]["opt"], given[1]["opt"], given[2]["units"]) == ("momentum", "sgd", 50)
    assert set(given[1]) == {"lr", "units", "opt"}
    assert set(given[3]) >= {"lr", "units", "opt"}
    assert given[4] == WHOLE


def test_true_is_not_one_and_null_is_a_choice(api: Any) -> None:
    name = api.create(search_space={"c": {"type": "categorical", "choices": [1, True, None, "1"]}})
    api.enqueue(name, {"c": True}, {"c": 1}, {"c": None}, {"c": "1"})
    given = [trial["params"]["c"] for trial in api.ask(name, count=4)]
    assert given == [True, 1, None, "1"]
    assert [type(value) for value in given] == [bool, int, type(None), str]


@pytest.mark.parametrize(
    ("params", "pointer"),
    [
        ({"colour": 1}, "/colour"),
        ({"lr": 1}, "/lr"),
        ({"lr": "0.001"}, "/lr"),
        ({"lr": True}, "/lr"),
        ({"lr": None}, "/lr"),
        ({"lr": [0.1]}, "/lr"),
        ({"units": 55}, "/units"),
        ({"units": 50.5}, "/units"),
        ({"units": 10**400}, "/units"),
        ({"units": 110}, "/units"),
        ({"opt": "adam"}, "/opt"),
        ({"opt": False}, "/opt"),
        ({"opt": "sgd", "m": 0.6}, "/m"),
        ({"opt": "momentum", "m": 0.95}, "/m"),
    ],
)
def test_params_outside_the_search_space_are_refused_where_they_are(
    api: Any, params: dict[str, Any], pointer: str
) -> None:
    name = api.create(search_space=SPACE)
    base = f"/v1/studies/{name}/trials"
    found = api.pointers(api.post(f"{base}:enqueue", {"trials": [{"params": {}}, {"params": params}]}))
    assert f"/trials/1/params{pointer}" in found
    trials = [{"params": WHOLE, "state": "FAIL"}, {"params": {**WHOLE, **params}, "state": "FAIL"}]
    if pointer != "/m" or params["opt"] == "momentum":
        assert f"/trials/1/params{pointer}" in api.pointers(api.post(f"{base}:import", {"trials": trials}))
    assert api.get(base).json()["items"] == []


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/trials"),
        ({"trials": []}, "/trials"),
        ({"trials": [{"params": {}}] * 1001}, "/trials"),
        ({"trials": [{}]}, "/trials/0/params"),
        ({"trials": [{"params": {}, "state": "FAIL"}]}, "/trials/0/state"),
        ({"trials": [{"params": {}}], "request_id": ""}, "/request_id"),
        ({"trials": [{"params": {}}], "colour": 1}, "/colour"),
    ],
)
def test_a_wrong_enqueue_is_refused_where_it_is_wrong(api: Any, body: dict[str, Any], pointer: str) -> None:
    name = api.create()
    assert pointer in api.pointers(api.post(f"/v1/studies/{name}/trials:enqueue", body))


@pytest.mark.parametrize(
    ("trial", "pointer"),
    [
        ({"state": "RUNNING"}, "/trials/0/state"),
        ({"state": "COMPLETE"}, "/trials/0/values"),
        ({"state": "COMPLETE", "values": [0.5, 0.5]}, "/trials/0/values"),
        ({"state": "FAIL", "values": [0.5]}, "/trials/0/values"),
        ({"state": "COMPLETE", "values": ["high"]}, "/trials/0/values/0"),
        ({"state": "PRUNED", "reports": [{"step": -1, "value": 1}]}, "/trials/0/reports/0/step"),
        ({"state": "FAIL", "attempt": 1}, "/trials/0/attempt"),
    ],
)
def test_a_wrong_import_is_refused_where_it_is_wrong(api: Any, trial: dict[str, Any], pointer: str) -> None:
    name = api.create()
    body = {"trials": [{"params": {"x": 0.5}, **trial}]}
    assert pointer in api.pointers(api.post(f"/v1/studies/{name}/trials:import", body))


@pytest.mark.slow
@pytest.mark.parametrize("call", ["enqueue", "import"])
def test_a_repeated_request_answers_with_the_same_trials(either: Any, call: str) -> None:
    name = either.create()
    trial: dict[str, Any] = {"params": {"x": 0.5}}
    if call == "import":
        trial |= {"state": "COMPLETE", "values": [0.5]}
    path = f"/v1/studies/{name}/trials:{call}"
    first = either.post(path, {"request_id": "r", "trials": [trial]})
    either.finish(name, 0.7)
    again = either.post(path, {"request_id": "r", "trials": [trial]})
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    without = [either.post(path, {"trials": [trial]}).json()["trials"][0]["number"] for _ in range(2)]
    assert without[1] == without[0] + 1


def test_a_request_of_an_enqueue_is_none_of_an_import_or_an_ask(api: Any) -> None:
    name = api.create()
    api.enqueue(name, {"x": 0.5}, request_id="r")
    assert api.imported(name, {"params": {"x": 0.5}, "state": "FAIL"}, request_id="r")[0]["number"] == 1
    assert api.ask(name, request_id="r")[0]["number"] == 0


def test_an_imported_trial_reads_as_it_was_given_and_counts_among_the_finished(either: Any) -> None:
    name = either.create()
    reports = [{"step": 3, "value": 0.5, "metrics": {"loss": 1.5}}, {"step": 1, "value": "Infinity"}]
    added = either.imported(
        name,
        {"params": {"x": 0.1}, "state": "COMPLETE", "values": [0.9], "reports": reports},
        {"params": {"x": 0.2}, "state": "PRUNED", "reports": reports},
        {"params": {"x": 0.3}, "state": "PRUNED", "values": [0.4]},
        {"params": {"x": 0.4}, "state": "FAIL"},
        {"params": {"x": 0.5}, "state": "COMPLETE", "values": ["NaN"]},
        {"params": {"x": 0.6}, "state": "COMPLETE", "values": ["-Infinity"]},
    )
    assert [trial["number"] for trial in added] == list(range(6))
    assert added == [either.trial(name, number) for number in range(6)]
    assert [trial["state"] for trial in added] == ["COMPLETE", "PRUNED", "PRUNED", "FAIL", "FAIL", "COMPLETE"]
    assert [trial["values"] for trial in added] == [[0.9], [0.5], [0.4], None, None, ["-Infinity"]]
    assert [trial["reason"] for trial in added[3:5]] == [None, "nan"]
    assert added[0]["reports"] == [
        {"step": 1, "value": "Infinity", "metrics": {}},
        {"step": 3, "value": 0.5, "metrics": {"loss": 1.5}},
    ]
    assert all((trial["attempt"], trial["worker_id"]) == (0, None) for trial in added)
    study = either.study(name)
    assert study["counts"] == {"WAITING": 0, "RUNNING": 0, "COMPLETE": 2, "PRUNED": 2, "FAIL": 2}
    assert (study["best"]["number"], study["best"]["attempt"]) == (0, 0)
    assert either.get(f"/v1/studies/{name}/trials/0/attempts").json() == {"items": []}


@pytest.mark.parametrize("verb", ["report", "heartbeat", "tell"])
def test_nobody_holds_an_imported_or_a_queued_trial(api: Any, verb: str) -> None:
    name = api.create()
    api.enqueue(name, {"x": 0.5})
    api.imported(name, {"params": {"x": 0.5}, "state": "FAIL"})
    bodies: dict[str, dict[str, Any]] = {"report": {"reports": []}, "heartbeat": {}, "tell": {"state": "FAIL"}}
    body = bodies[verb]
    for attempt in (0, 1):
        assert api.code(api.work(name, 0, verb, attempt=attempt, **body)) == "lease_lost"
        finished = "result_conflict" if verb == "tell" else "trial_finished"
        assert api.code(api.work(name, 1, verb, attempt=attempt, **body)) == finished
        assert api.work(name, 0, "release", attempt=attempt).status_code == 200
    assert api.trial(name, 0)["state"] == "WAITING"


def test_samplers_learn_from_imported_trials(api: Any) -> None:
    name = api.create(sampler={"name": "tpe", "seed": 1})
    many = [{"params": {"x": i / 100}, "state": "COMPLETE", "values": [-abs(i / 100 - 0.8)]} for i in range(100)]
    api.imported(name, *many)
    drawn = [trial["params"]["x"] for trial in api.ask(name, count=20)]
    assert sum(0.6 < x < 1.0 for x in drawn) >= 15


@pytest.mark.parametrize("state", ["PAUSED", "STOPPED", "CANCELLED"])
def test_what_is_enqueued_where_nothing_is_given_out_never_runs(api: Any, state: str) -> None:
    name = api.create()
    api.verb(name, {"PAUSED": "pause", "STOPPED": "stop", "CANCELLED": "cancel"}[state])
    answer = api.post(f"/v1/studies/{name}/trials:enqueue", {"trials": [{"params": {"x": 0.5}}]})
    assert answer.status_code in (201, 409)
    if state != "PAUSED" and answer.status_code == 201:
        assert answer.json()["trials"][0]["state"] == "FAIL", "WAITING ones of such a study are FAIL"
    assert api.ask(name) == []


def test_an_imported_trial_keeps_its_reason_and_its_metrics(either: Any) -> None:
    name = either.create()
    either.imported(
        name,
        {"params": {"x": 0.1}, "state": "FAIL", "reason": "infeasible", "metrics": {"host": "gpu-3"}},
        {"params": {"x": 0.2}, "state": "COMPLETE", "values": ["NaN"], "reason": "ignored for a NaN"},
    )
    first, second = (either.trial(name, number) for number in (0, 1))
    assert (first["state"], first["reason"], first["metrics"]) == ("FAIL", "infeasible", {"host": "gpu-3"})
    assert (second["state"], second["reason"]) == ("FAIL", "nan")
    too_large = [{"params": {"x": 0.1}, "state": "FAIL", "metrics": {"a": "x" * 400_000}}]
    assert either.post(f"/v1/studies/{name}/trials:import", {"trials": too_large}).status_code == 413
