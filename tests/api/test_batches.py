"""Many worker calls in one commit: each answered for itself, in order."""

from __future__ import annotations

from typing import Any

import pytest


def call(study: str, number: int, verb: str, **body: Any) -> dict[str, Any]:
    return {"study": study, "number": number, "call": verb, "attempt": 1, **body}


def sent(api: Any, *calls: Any) -> Any:
    return api.post("/v1/trials:batch", {"calls": list(calls)})


def test_a_batch_does_what_its_calls_would_have_done_in_their_order(either: Any) -> None:
    name, other = either.create(), either.create()
    either.ask(name, count=3)
    either.ask(other)
    answer = sent(
        either,
        call(name, 0, "report", reports=[{"step": 1, "value": 0.5}]),
        call(name, 0, "tell", state="COMPLETE", values=[0.6]),
        call(other, 0, "heartbeat"),
        call(name, 1, "release"),
        call(name, 2, "tell", state="FAIL", reason="broken"),
    )
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [result["status"] for result in results] == [200] * 5
    assert results[0]["body"]["should_stop"] is False
    assert results[1]["body"] == either.trial(name, 0)
    assert results[1]["body"]["reports"] == [{"step": 1, "value": 0.5, "metrics": {}}]
    assert results[2]["body"]["study_state"] == "ACTIVE"
    assert results[3]["body"] == either.trial(name, 1)
    assert results[4]["body"] == either.trial(name, 2)
    counts = either.study(name)["counts"]
    assert counts == {"WAITING": 1, "RUNNING": 0, "COMPLETE": 1, "PRUNED": 0, "FAIL": 1}


def test_a_refused_call_takes_nothing_of_the_others_along(either: Any) -> None:
    name = either.create()
    either.ask(name, count=2)
    answer = sent(
        either,
        call(name, 0, "tell", state="COMPLETE", values=[0.5]),
        call(name, 0, "tell", state="COMPLETE", values=[0.6]),
        call(name, 0, "report", reports=[]),
        call(name, 1, "heartbeat", attempt=2),
        call(name, 99, "heartbeat"),
        call("nothing", 0, "heartbeat"),
        call(name, 0, "tell", state="COMPLETE", values=[0.5]),
        call(name, 0, "release"),
        call(name, 1, "tell", state="COMPLETE", values=[0.7]),
    )
    assert answer.status_code == 207
    results = answer.json()["results"]
    assert [result["status"] for result in results] == [200, 409, 409, 409, 404, 404, 200, 200, 200]
    codes = [result["body"].get("code") for result in results]
    assert codes[1:6] == ["result_conflict", "trial_finished", "lease_lost", "not_found", "not_found"]
    for result in results[1:6]:
        assert result["body"]["status"] == result["status"]
        assert result["body"]["retryable"] is False
    assert [either.trial(name, n)["values"] for n in (0, 1)] == [[0.5], [0.7]]
    assert either.study(name)["counts"]["COMPLETE"] == 2


def test_a_lease_may_be_lost_and_won_within_one_batch(api: Any) -> None:
    name = api.create()
    api.ask(name)
    answer = sent(api, call(name, 0, "release"), call(name, 0, "heartbeat"), call(name, 0, "tell", state="FAIL"))
    assert [result["status"] for result in answer.json()["results"]] == [200, 409, 409]
    assert api.trial(name, 0)["state"] == "WAITING"


@pytest.mark.parametrize(
    ("malformed", "pointer"),
    [
        ({"call": "ask"}, "/calls/3/call"),
        ({"call": None}, "/calls/3/call"),
        ({"call": "heartbeat", "reports": []}, "/calls/3/reports"),
        (
            {"call": "report", "reports": [{"step": 1, "value": 0.5}, {"step": -1, "value": 0.5}]},
            "/calls/3/reports/1/step",
        ),
        ({"call": "report", "reports": [{"step": 1, "value": "high"}]}, "/calls/3/reports/0/value"),
        ({"call": "report"}, "/calls/3/reports"),
        ({"call": "tell", "state": "COMPLETE"}, "/calls/3/values"),
        ({"call": "tell", "state": "RUNNING"}, "/calls/3/state"),
        ({"call": "tell", "state": "FAIL", "values": [1]}, "/calls/3/values"),
        ({"call": "heartbeat", "attempt": -1}, "/calls/3/attempt"),
        ({"call": "heartbeat", "attempt": 2**80}, "/calls/3/attempt"),
        ({"call": "heartbeat", "number": "0"}, "/calls/3/number"),
        ({"call": "heartbeat", "number": 2**80}, "/calls/3/number"),
        ({"call": "heartbeat", "study": 5}, "/calls/3/study"),
        ({"call": "heartbeat", "colour": 1}, "/calls/3/colour"),
    ],
)
def test_a_malformed_call_refuses_the_whole_batch_at_its_place(
    api: Any, malformed: dict[str, Any], pointer: str
) -> None:
    name = api.create()
    api.ask(name)
    tell = call(name, 0, "tell", state="COMPLETE", values=[0.5])
    answer = sent(api, tell, tell, tell, {"study": name, "number": 0, "attempt": 1, **malformed})
    assert pointer in api.pointers(answer)
    assert api.trial(name, 0)["state"] == "RUNNING"


@pytest.mark.parametrize("body", [{}, {"calls": None}, {"calls": {}}, {"calls": [], "colour": 1}, []])
def test_a_malformed_batch_is_refused(api: Any, body: Any) -> None:
    assert api.post("/v1/trials:batch", body).status_code == 422


def test_a_thousand_calls_are_taken_and_one_more_is_not(api: Any) -> None:
    name = api.create()
    api.ask(name, count=100)
    calls = [call(name, n % 100, "report", reports=[{"step": n // 100, "value": n / 1000}]) for n in range(1000)]
    answer = sent(api, *calls)
    assert (answer.status_code, len(answer.json()["results"])) == (200, 1000)
    assert [report["step"] for report in api.trial(name, 42)["reports"]] == list(range(10))
    assert api.pointers(sent(api, *calls, calls[0])) == ["/calls"]


def test_the_wrong_number_of_values_refuses_that_call_alone(api: Any) -> None:
    one, two = api.create(), api.create(directions=["maximize", "minimize"])
    api.ask(one)
    api.ask(two)
    answer = sent(
        api,
        call(one, 0, "tell", state="COMPLETE", values=[0.5, 0.5]),
        call(two, 0, "tell", state="COMPLETE", values=[0.5, 0.5]),
    )
    assert [result["status"] for result in answer.json()["results"]] == [422, 200]
    assert api.trial(one, 0)["state"] == "RUNNING"


def test_a_batch_sees_what_time_has_changed(either: Any) -> None:
    name = either.create(limits={"attempts": 1})
    either.ask(name)
    either.clock.turn(60)
    answer = sent(either, call(name, 0, "heartbeat"))
    assert answer.json()["results"][0]["body"]["code"] == "trial_finished"
