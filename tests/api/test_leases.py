"""Every state of a trial against every worker call: the contract's table, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hpo_service.domain.errors import HpoError  # noqa: F401 - the codes below are its words

Ask = Callable[..., list[dict[str, Any]]]
Create = Callable[..., dict[str, Any]]

CALLS: dict[str, dict[str, Any]] = {
    "report": {"attempt": 1, "reports": [{"step": 1, "value": 0.5}]},
    "heartbeat": {"attempt": 1},
    "tell": {"attempt": 1, "state": "COMPLETE", "values": [0.7]},
    "release": {"attempt": 1},
}


def call(client: TestClient, name: str, **fields: Any) -> Any:
    return client.post(f"/v1/studies/mnist/trials/0:{name}", json={**CALLS[name], **fields})


def running(client: TestClient, clock: Any, ask: Ask) -> None:
    pass


def lapsed(client: TestClient, clock: Any, ask: Ask) -> None:
    clock.turn(61)
    assert client.get("/v1/studies/mnist/trials/0").json()["state"] == "WAITING"


def released(client: TestClient, clock: Any, ask: Ask) -> None:
    assert call(client, "release").status_code == 200


def given_out_again(client: TestClient, clock: Any, ask: Ask) -> None:
    clock.turn(61)
    assert ask(worker_id="other")[0]["attempt"] == 2


def told_the_same(client: TestClient, clock: Any, ask: Ask) -> None:
    assert call(client, "tell").status_code == 200


def told_otherwise(client: TestClient, clock: Any, ask: Ask) -> None:
    assert call(client, "tell", values=[0.1]).status_code == 200


def exhausted(client: TestClient, clock: Any, ask: Ask) -> None:
    client.patch("/v1/studies/mnist", json={"limits": {"attempts": 1}})
    clock.turn(61)


TABLE = {
    # the trial is:    report              heartbeat           tell                release
    running: ("200", "200", "200", "200"),
    lapsed: ("200", "200", "200", "200"),
    released: ("lease_lost", "lease_lost", "lease_lost", "200"),
    given_out_again: ("lease_lost", "lease_lost", "lease_lost", "200"),
    told_the_same: ("trial_finished", "trial_finished", "200", "200"),
    told_otherwise: ("trial_finished", "trial_finished", "result_conflict", "200"),
    exhausted: ("trial_finished", "trial_finished", "result_conflict", "200"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("situation", "name", "expected"),
    [
        pytest.param(situation, name, expected, id=f"{situation.__name__}-{name}")
        for situation, row in TABLE.items()
        for name, expected in zip(CALLS, row, strict=True)
    ],
)
def test_each_call_on_each_state_answers_as_the_table_says(
    situation: Callable[..., None],
    name: str,
    expected: str,
    client: TestClient,
    clock: Any,
    create: Create,
    ask: Ask,
) -> None:
    create()
    ask()
    situation(client, clock, ask)
    answer = call(client, name)
    if expected == "200":
        assert answer.status_code == 200, answer.text
        return
    assert (answer.status_code, answer.json()["code"]) == (409, expected)
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_attempt_that_never_was_holds_nothing(client: TestClient, create: Create, ask: Ask) -> None:
    create()
    ask()
    for attempt in (0, 2, 99):
        assert call(client, "heartbeat", attempt=attempt).json()["code"] == "lease_lost"


def test_a_late_report_takes_the_trial_back_and_its_lease_did_not_run_out(
    client: TestClient, clock: Any, create: Create, ask: Ask
) -> None:
    create()
    ask()
    lapsed(client, clock, ask)
    assert call(client, "report").status_code == 200
    assert client.get("/v1/studies/mnist/trials/0").json()["state"] == "RUNNING"
    (attempt,) = client.get("/v1/studies/mnist/trials/0/attempts").json()["items"]
    assert (attempt["end"], attempt["ended_at"]) == (None, None)
    assert ask(worker_id="other")[0]["number"] == 1


@pytest.mark.slow
def test_a_silent_worker_loses_its_lease_and_the_trial_is_given_out_again(
    client: TestClient, clock: Any, create: Create, ask: Ask
) -> None:
    create()
    first = ask()[0]
    call(client, "report")
    clock.turn(60)
    again = ask(worker_id="other")[0]
    assert (again["number"], again["attempt"], again["params"]) == (0, 2, first["params"])
    assert again["seed"] == first["seed"]
    trial = client.get("/v1/studies/mnist/trials/0").json()
    assert (trial["reports"], trial["worker_id"], trial["attempt"]) == ([], "other", 2)
    ends = [a["end"] for a in client.get("/v1/studies/mnist/trials/0/attempts").json()["items"]]
    assert ends == ["expired", None]


def test_after_as_many_lapses_as_attempts_the_trial_fails(
    client: TestClient, clock: Any, create: Create, ask: Ask
) -> None:
    create(limits={"attempts": 3, "trials": 1})
    for attempt in (1, 2, 3):
        assert ask()[0]["attempt"] == attempt
        clock.turn(61)
    trial = client.get("/v1/studies/mnist/trials/0").json()
    assert (trial["state"], trial["reason"], trial["attempt"]) == ("FAIL", "attempts_exhausted", 3)
    assert client.get("/v1/studies/mnist").json()["state"] == "COMPLETED"


def test_a_release_does_not_count_as_an_attempt_that_ran_out(
    client: TestClient, clock: Any, create: Create, ask: Ask
) -> None:
    create(limits={"attempts": 1})
    for attempt in range(1, 6):
        assert ask()[0]["attempt"] == attempt
        assert call(client, "release", attempt=attempt).json()["state"] == "WAITING"


def test_a_heartbeat_keeps_the_lease(client: TestClient, clock: Any, create: Create, ask: Ask) -> None:
    create()
    ask()
    for _ in range(5):
        clock.turn(40)
        assert call(client, "heartbeat").json()["should_stop"] is False
    assert ask()[0]["number"] == 1


def test_a_clock_that_steps_back_freezes_no_trial(client: TestClient, clock: Any, create: Create, ask: Ask) -> None:
    create()
    ask()
    clock.turn(-2 * 86_400)
    assert client.get("/v1/studies/mnist/trials/0").json()["state"] == "WAITING"
    assert ask(worker_id="other")[0]["attempt"] == 2


def test_the_last_report_for_a_step_is_the_one_that_counts(client: TestClient, create: Create, ask: Ask) -> None:
    create()
    ask()
    call(client, "report", reports=[{"step": 1, "value": 0.5}, {"step": 2, "value": "NaN"}])
    call(client, "report", reports=[{"step": 1, "value": 0.6, "metrics": {"train_loss": 1.5}}])
    reports = client.get("/v1/studies/mnist/trials/0").json()["reports"]
    assert reports == [
        {"step": 1, "value": 0.6, "metrics": {"train_loss": 1.5}},
        {"step": 2, "value": "NaN", "metrics": {}},
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("told", "state", "values", "reason"),
    [
        ({"state": "COMPLETE", "values": ["NaN"]}, "FAIL", None, "nan"),
        ({"state": "COMPLETE", "values": ["Infinity"]}, "COMPLETE", ["Infinity"], None),
        ({"state": "PRUNED"}, "PRUNED", [0.5], None),
        ({"state": "PRUNED", "values": [0.4]}, "PRUNED", [0.4], None),
        ({"state": "FAIL", "reason": "diverged"}, "FAIL", None, "diverged"),
    ],
)
def test_what_is_told_is_what_is_recorded(
    told: dict[str, Any], state: str, values: Any, reason: Any, client: TestClient, create: Create, ask: Ask
) -> None:
    create()
    ask()
    call(client, "report", reports=[{"step": 2, "value": 0.5}, {"step": 1, "value": 0.9}])
    body = {"attempt": 1, **told}
    first = client.post("/v1/studies/mnist/trials/0:tell", json=body)
    assert first.status_code == 200
    again = client.post("/v1/studies/mnist/trials/0:tell", json=body)
    assert again.json() == first.json() == client.get("/v1/studies/mnist/trials/0").json()
    assert (first.json()["state"], first.json()["values"], first.json()["reason"]) == (state, values, reason)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"state": "COMPLETE"}, "/values"),
        ({"state": "COMPLETE", "values": []}, "/values"),
        ({"state": "COMPLETE", "values": [0.1, 0.2]}, "/values"),
        ({"state": "FAIL", "values": [0.1]}, "/values"),
        ({"state": "RUNNING"}, "/state"),
        ({"state": "COMPLETE", "values": ["0.5"]}, "/values/0"),
        ({"state": "COMPLETE", "values": [True]}, "/values/0"),
        ({"state": "COMPLETE", "values": [0.5], "colour": 1}, "/colour"),
    ],
)
def test_a_malformed_tell_is_refused_where_it_is_wrong_and_loses_nothing(
    body: dict[str, Any], pointer: str, client: TestClient, create: Create, ask: Ask
) -> None:
    create()
    ask()
    answer = client.post("/v1/studies/mnist/trials/0:tell", json={"attempt": 1, **body})
    assert answer.status_code == 422
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]
    assert client.get("/v1/studies/mnist/trials/0").json()["state"] == "RUNNING"
