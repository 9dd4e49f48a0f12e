"""A study is bound to the data that its first trial was trained on, and takes nothing of other data afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.test_sealed_study import RESULT, finished, seal, take

ONE, OTHER = "1" * 64, "2" * 64

CALLS: dict[str, dict[str, Any]] = {
    "heartbeat": {},
    "report": {"reports": [{"step": 1, "value": 0.5}]},
    "tell": {"state": "COMPLETE", "values": [0.5]},
}


def bound_to(api: Any, name: str) -> Any:
    return api.get(f"/v1/studies/{name}").json()["dataset_sha256"]


@pytest.mark.parametrize("call", CALLS)
def test_the_first_call_that_names_its_data_binds_the_study_and_others_are_refused(either: Any, call: str) -> None:
    name = either.create()
    either.ask(name, count=2)
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


def test_a_batch_that_names_other_data_in_one_call_keeps_the_others(either: Any) -> None:
    name = either.create()
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
