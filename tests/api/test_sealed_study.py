"""The sealed test: asked for once, done by one worker or by the next one, and nothing is added afterwards."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

SHA = "0" * 64
RESULT: dict[str, Any] = {
    "attempt": 1,
    "state": "COMPLETE",
    "test_accuracy": 0.7,
    "validation_accuracy": 0.75,
    "members": [{"seed": 1, "test_accuracy": 0.7}],
    "dataset_sha256": SHA,
}
NETWORK: dict[str, Any] = {
    "search_space": {"learning_rate": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True}},
    "objective": {"kind": "neural_network", "epochs": 3},
    "limits": {"trials": 2},
}


def finished(api: Any, **fields: Any) -> str:
    name: str = api.create(**{**NETWORK, **fields})
    api.finish(name, 0.5, 0.8)
    return name


def seal(api: Any, name: str, **body: Any) -> Any:
    return api.post(f"/v1/studies/{name}:test", body)


def sealed(api: Any, **fields: Any) -> str:
    name = finished(api, **fields)
    assert seal(api, name).status_code == 202
    return name


def take(api: Any, name: str, **fields: Any) -> Any:
    """Ask by the first form until this study's test comes; what other tests have left behind is cancelled."""
    for _ in range(500):
        found = api.ask_any(objectives=["neural_network"], **fields)["trials"]
        if not found:
            return None
        if found[0]["study"] == name:
            return found[0]
        api.post(f"/v1/studies/{found[0]['study']}:cancel", {})  # refused where it is sealed: it has but one test
    raise AssertionError("never came")


def call(api: Any, name: str, verb: str, **body: Any) -> Any:
    return api.post(f"/v1/studies/{name}/test:{verb}", {"attempt": 1, **body})


@pytest.mark.slow
def test_it_is_one_job_for_one_worker_and_its_result_is_read_on_the_study(either: Any) -> None:
    name = finished(either)
    assert either.study(name)["test"] is None
    answer = seal(either, name, ensemble=3)
    assert (answer.status_code, answer.json()["state"]) == (202, "COMPLETED")
    assert answer.json()["test"]["state"] == "WAITING"
    job = take(either, name, worker_id="tester")
    assert (job["purpose"], job["number"], job["attempt"], job["ensemble"]) == ("test", None, 1, 3)
    assert job["params"] == either.study(name)["best"]["params"]
    assert job["objective"] == NETWORK["objective"]
    assert set(job["lease"]) == {"expires_at", "duration_seconds"}
    assert either.study(name)["test"]["state"] == "RUNNING"
    assert take(either, name) is None
    kept = call(either, name, "heartbeat").json()
    assert set(kept) == {"should_stop", "reason", "lease_expires_at", "study_state"}
    told = call(either, name, "tell", **RESULT)
    assert told.status_code == 200
    test = either.study(name)["test"]
    assert told.json() == test
    assert {key: test[key] for key in ("state", "test_accuracy", "validation_accuracy", "ensemble")} == {
        "state": "COMPLETE",
        "test_accuracy": 0.7,
        "validation_accuracy": 0.75,
        "ensemble": 3,
    }
    assert test["gap"] == pytest.approx(0.05)
    assert (test["members"], test["dataset_sha256"]) == (RESULT["members"], SHA)
    assert test["config"]["learning_rate"] == job["params"]["learning_rate"]
    assert test["config"]["epochs"] == 3
    assert test["at"].endswith("Z")
    assert take(either, name) is None


@pytest.mark.slow
def test_asking_again_never_evaluates_twice(either: Any) -> None:
    name = finished(either)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: seal(either, name).status_code, range(8)))
    assert sorted(answers) == [200] * 7 + [202]
    take(either, name)
    call(either, name, "tell", **RESULT)
    again = seal(either, name, ensemble=1)
    assert (again.status_code, again.json()["test"]["state"]) == (200, "COMPLETE")
    other = seal(either, name, ensemble=2)
    assert (other.status_code, either.code(other)) == (409, "study_sealed")
    assert take(either, name) is None


@pytest.mark.slow
def test_only_a_finished_study_of_the_network_with_a_complete_trial_has_one(api: Any) -> None:
    active = api.create(**NETWORK)
    api.finish(active, 0.5)
    nothing = api.create(**NETWORK)
    api.verb(nothing, "stop")
    own = api.create(limits={"trials": 1})
    api.finish(own, 0.5)
    other = api.create(objective={"kind": "mine"}, limits={"trials": 1})
    api.finish(other, 0.5)
    cancelled = finished(api)
    api.verb(cancelled, "cancel")
    paused = api.create(**NETWORK)
    api.verb(paused, "pause")
    for name in (active, nothing, own, other, cancelled, paused):
        answer = seal(api, name)
        assert (answer.status_code, api.code(answer)) == (409, "study_state")
        assert api.study(name)["test"] is None
    stopped = api.create(**NETWORK)
    api.finish(stopped, 0.5)
    api.verb(stopped, "stop")
    assert seal(api, stopped).status_code == 202


@pytest.mark.parametrize(
    "body", [{"ensemble": 0}, {"ensemble": "1"}, {"ensemble": 1.5}, {"colour": 1}, {"ensemble": 2**80}]
)
def test_a_wrong_request_is_refused(api: Any, body: Any) -> None:
    name = finished(api)
    assert seal(api, name, **body).status_code == 422
    assert api.study(name)["test"] is None


@pytest.mark.slow
def test_a_worker_that_dies_in_it_is_replaced(either: Any) -> None:
    name = sealed(either)
    assert take(either, name)["attempt"] == 1
    either.clock.turn(60)
    assert either.study(name)["test"]["state"] == "WAITING"
    assert take(either, name)["attempt"] == 2
    for verb, body in (("heartbeat", {}), ("tell", RESULT)):
        assert either.code(call(either, name, verb, **body)) == "lease_lost"
    assert call(either, name, "release").status_code == 200
    assert either.study(name)["test"]["state"] == "RUNNING"
    assert call(either, name, "tell", **{**RESULT, "attempt": 2}).status_code == 200


def test_a_late_heartbeat_takes_the_job_back(api: Any) -> None:
    name = sealed(api)
    take(api, name)
    api.clock.turn(60)
    assert api.study(name)["test"]["state"] == "WAITING"
    assert call(api, name, "heartbeat").status_code == 200
    assert api.study(name)["test"]["state"] == "RUNNING"
    assert take(api, name) is None


def test_released_it_waits_for_the_next_worker(api: Any) -> None:
    name = sealed(api)
    for attempt in range(1, 6):
        assert take(api, name)["attempt"] == attempt
        assert call(api, name, "release", attempt=attempt, reason="preempted").status_code == 200
        assert api.study(name)["test"]["state"] == "WAITING"
        assert api.code(call(api, name, "heartbeat", attempt=attempt)) == "lease_lost"


@pytest.mark.slow
def test_its_calls_are_judged_as_those_of_a_trial(either: Any) -> None:
    name = sealed(either)
    for verb, body in (("heartbeat", {}), ("tell", RESULT)):
        assert either.code(call(either, name, verb, **body)) == "lease_lost"
    take(either, name)
    assert either.code(call(either, name, "heartbeat", attempt=2)) == "lease_lost"
    first = call(either, name, "tell", **RESULT)
    again = call(either, name, "tell", **RESULT)
    assert (again.status_code, again.json()) == (200, first.json())
    other = call(either, name, "tell", **{**RESULT, "test_accuracy": 0.9})
    assert (other.status_code, either.code(other)) == (409, "result_conflict")
    assert either.code(call(either, name, "tell", state="FAIL")) == "result_conflict"
    assert either.code(call(either, name, "heartbeat")) == "trial_finished"
    assert call(either, name, "release").status_code == 200
    assert either.study(name)["test"]["test_accuracy"] == 0.7


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"test_accuracy": None}, "/test_accuracy"),
        ({"validation_accuracy": None}, "/validation_accuracy"),
        ({"test_accuracy": 1.5}, "/test_accuracy"),
        ({"test_accuracy": "0.7"}, "/test_accuracy"),
        ({"test_accuracy": "NaN"}, "/test_accuracy"),
        ({"members": None}, "/members"),
        ({"members": {}}, "/members"),
        ({"dataset_sha256": "x"}, "/dataset_sha256"),
        ({"state": "PRUNED"}, "/state"),
        ({"attempt": -1}, "/attempt"),
        ({"colour": 1}, "/colour"),
    ],
)
def test_a_wrong_result_is_refused_and_loses_nothing(api: Any, change: Any, pointer: str) -> None:
    name = sealed(api)
    take(api, name)
    assert pointer in api.pointers(call(api, name, "tell", **{**RESULT, **change}))
    assert api.study(name)["test"]["state"] == "RUNNING"
    assert call(api, name, "tell", **RESULT).status_code == 200


def test_a_test_that_could_not_be_done_reads_in_the_contracts_states(api: Any) -> None:
    name = sealed(api)
    take(api, name)
    assert call(api, name, "tell", state="FAIL", reason="no data").status_code == 200
    assert call(api, name, "tell", state="FAIL", reason="no data").status_code == 200
    test = api.study(name)["test"]
    # Nothing was evaluated: it may wait for a worker that can, or say that it failed; it is never COMPLETE.
    assert test["state"] in ("WAITING", "FAIL")
    assert seal(api, name).status_code == 200


def test_nothing_is_added_to_a_sealed_study(either: Any) -> None:
    name = sealed(either)
    base = f"/v1/studies/{name}"
    params = {"params": {"learning_rate": 1e-3}}
    for answer in (
        either.post(f"{base}/trials:enqueue", {"trials": [params]}),
        either.post(f"{base}/trials:import", {"trials": [{**params, "state": "FAIL"}]}),
        either.limit(name, trials=3),
        either.limit(name, trials=None),
        either.verb(name, "cancel"),
        either.post(f"{base}:narrow"),
    ):
        assert (answer.status_code, either.code(answer)) == (409, "study_sealed")
    assert either.limit(name, trials=1).status_code == 200
    assert either.patch(base, {"metadata": {"note": "done"}}).status_code == 200
    assert either.asked(name) == {"trials": [], "study_state": "COMPLETED"}
    assert either.state(name) == "COMPLETED"


def test_a_request_from_before_the_seal_is_still_answered(api: Any) -> None:
    name = api.create(**NETWORK)
    queued = api.enqueue(name, {"learning_rate": 1e-3}, request_id="e")
    given = api.ask(name, request_id="a", count=2)
    for trial in given:
        api.tell(name, trial["number"], 0.5)
    assert seal(api, name).status_code == 202
    assert api.enqueue(name, {"learning_rate": 1e-3}, request_id="e") == queued
    assert api.ask(name, request_id="a", count=2) == given


@pytest.mark.slow
def test_the_job_is_given_by_the_first_form_only_and_only_to_who_trains_networks(own: Any) -> None:
    name = sealed(own)
    assert own.ask(name) == []
    assert own.ask_any(objectives=["mine"]) == {"trials": []}
    (job,) = own.ask_any(request_id="job")["trials"]
    assert (job["study"], job["purpose"]) == (name, "test")
    call(own, name, "tell", **RESULT)
    assert own.ask_any(request_id="job")["trials"] == [job]
    assert own.ask_any() == {"trials": []}


def test_a_sealed_study_can_be_deleted(api: Any) -> None:
    name = sealed(api)
    assert api.call("DELETE", f"/v1/studies/{name}").status_code == 204


def test_calls_on_a_test_that_was_not_asked_for_find_nothing(api: Any) -> None:
    name = finished(api)
    for verb, body in (("heartbeat", {}), ("tell", RESULT), ("release", {})):
        assert call(api, name, verb, **body).status_code == 404
