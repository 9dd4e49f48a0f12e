"""A study of the built-in network is bound to the data of its first trial that has shown a value, and to no other."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.test_sealed_study import NETWORK, RESULT, finished, seal, take

ONE, OTHER = "1" * 64, "2" * 64

CALLS: dict[str, dict[str, Any]] = {
    "heartbeat": {},
    "report": {"reports": [{"step": 1, "value": 0.5}]},
    "tell": {"state": "COMPLETE", "values": [0.5]},
}


def bound_to(api: Any, name: str) -> Any:
    return api.get(f"/v1/studies/{name}").json()["dataset_sha256"]


def built_in(trials: int) -> dict[str, Any]:
    """A study that has no trials left for the other tests of this server, which ask any study."""
    return {**NETWORK, "limits": {"trials": trials}}


@pytest.mark.parametrize("call", CALLS)
def test_the_first_trial_that_has_shown_a_value_binds_the_study_and_other_data_is_refused(
    either: Any, call: str
) -> None:
    name = either.create(**built_in(2))
    either.ask(name, count=2)
    if call == "heartbeat":
        either.work(name, 0, "report", **CALLS["report"])
    assert bound_to(either, name) is None

    assert either.work(name, 0, call, **CALLS[call], dataset_sha256=ONE).status_code == 200
    assert bound_to(either, name) == ONE

    for later, body in CALLS.items():
        refused = either.work(name, 1, later, **body, dataset_sha256=OTHER)
        assert (refused.status_code, either.code(refused)) == (409, "study_state")
        assert ONE in refused.json()["detail"]
        assert OTHER in refused.json()["detail"]
    untouched = either.trial(name, 1)
    assert (untouched["state"], untouched["reports"]) == ("RUNNING", [])
    assert either.work(name, 1, "report", **CALLS["report"], dataset_sha256=ONE).status_code == 200
    assert either.work(name, 1, "tell", **CALLS["tell"]).status_code == 200
    assert bound_to(either, name) == ONE


SHOWS_NOTHING: dict[str, dict[str, Any]] = {
    "heartbeat": {},
    "report": {"reports": []},
    "tell": {"state": "FAIL", "reason": "no data"},
    "retry": {"state": "FAIL", "retry": True},
    "pruned": {"state": "PRUNED"},
}


@pytest.mark.parametrize("call", SHOWS_NOTHING)
def test_a_trial_that_has_shown_no_value_binds_nothing(either: Any, call: str) -> None:
    name = either.create(**built_in(1))
    either.ask(name)
    verb = call if call in CALLS else "tell"
    assert either.work(name, 0, verb, **SHOWS_NOTHING[call], dataset_sha256=ONE).status_code == 200
    assert bound_to(either, name) is None
    either.verb(name, "cancel")


def test_a_trial_that_failed_after_a_report_binds_its_study(api: Any) -> None:
    name = api.create(**built_in(1))
    api.ask(name)
    api.work(name, 0, "report", **CALLS["report"])
    api.work(name, 0, "tell", state="FAIL", reason="diverged", dataset_sha256=ONE)
    assert bound_to(api, name) == ONE


@pytest.mark.parametrize("objective", [None, {"kind": "mine"}])
@pytest.mark.parametrize("call", CALLS)
def test_a_study_that_others_train_is_never_bound(either: Any, objective: Any, call: str) -> None:
    name = either.create(objective=objective)
    either.ask(name, count=2)
    for number, sha in enumerate([ONE, OTHER]):
        assert either.work(name, number, call, **CALLS[call], dataset_sha256=sha).status_code == 200
    assert bound_to(either, name) is None


def test_a_batch_that_names_other_data_in_one_call_keeps_the_others(either: Any) -> None:
    name = either.create(**built_in(3))
    either.ask(name, count=3)
    reports = [{"step": 1, "value": 0.5}]
    calls = [
        {"study": name, "number": n, "call": "report", "attempt": 1, "reports": reports, "dataset_sha256": sha}
        for n, sha in enumerate([ONE, OTHER, ONE])
    ]

    answer = either.post("/v1/trials:batch", {"calls": calls})

    assert [each["status"] for each in answer.json()["results"]] == [200, 409, 200]
    assert [len(either.trial(name, n)["reports"]) for n in range(3)] == [1, 0, 1]
    assert bound_to(either, name) == ONE


def test_a_call_of_a_lost_trial_binds_nothing(either: Any) -> None:
    name = either.create()
    either.ask(name)
    either.work(name, 0, "release")

    assert either.work(name, 0, "heartbeat", dataset_sha256=ONE).status_code == 409
    assert bound_to(either, name) is None


@pytest.mark.parametrize("wrong", ["1" * 63, "1" * 65, "G" * 64, 1, "A" * 64])
def test_what_is_no_hash_is_refused(either: Any, wrong: Any) -> None:
    name = either.create()
    either.ask(name)
    assert either.work(name, 0, "heartbeat", dataset_sha256=wrong).status_code == 422


def test_a_sealed_test_on_other_data_is_refused(either: Any) -> None:
    name = finished(either, limits={"trials": 3})
    either.ask(name)
    either.work(name, 2, "tell", state="COMPLETE", values=[0.7], dataset_sha256=ONE)
    assert seal(either, name).status_code == 202
    assert take(either, name) is not None
    place = f"/v1/studies/{name}/test"

    for call, body in (("heartbeat", {"attempt": 1}), ("tell", RESULT)):
        refused = either.post(f"{place}:{call}", {**body, "dataset_sha256": OTHER})
        assert (refused.status_code, either.code(refused)) == (409, "study_state")
    assert either.post(f"{place}:tell", {**RESULT, "dataset_sha256": ONE}).status_code == 200
    assert either.get(f"/v1/studies/{name}").json()["test"]["dataset_sha256"] == ONE
