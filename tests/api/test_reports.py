"""Reports, heartbeats, stops and attempts: how a worker learns that it shall end."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_each_sign_of_life_renews_the_lease(either: Any) -> None:
    name = either.create(lease_seconds=10)
    (given,) = either.ask(name)
    assert seconds(given["lease"]["expires_at"]) == either.clock.now + 10
    for call, body in (("heartbeat", {}), ("report", {"reports": [{"step": 1, "value": 0.5}]})):
        either.clock.turn(9)
        kept = either.work(name, 0, call, **body).json()
        assert set(kept) == {"should_stop", "reason", "lease_expires_at", "study_state"}
        assert seconds(kept["lease_expires_at"]) == either.clock.now + 10
        assert (kept["should_stop"], kept["reason"], kept["study_state"]) == (False, None, "ACTIVE")
    either.clock.turn(9)
    assert either.trial(name, 0)["state"] == "RUNNING"
    either.clock.turn(1)
    assert either.trial(name, 0)["state"] == "WAITING"


@pytest.mark.parametrize(
    ("report", "pointer"),
    [
        ({"step": -1, "value": 1}, "/reports/0/step"),
        ({"step": 1.5, "value": 1}, "/reports/0/step"),
        ({"step": 2**31, "value": 1}, "/reports/0/step"),
        ({"step": 2**80, "value": 1}, "/reports/0/step"),
        ({"value": 1}, "/reports/0/step"),
        ({"step": 1}, "/reports/0/value"),
        ({"step": 1, "value": None}, "/reports/0/value"),
        ({"step": 1, "value": "nan"}, "/reports/0/value"),
        ({"step": 1, "value": 10**400}, "/reports/0/value"),
        ({"step": 1, "value": 1, "metrics": [1]}, "/reports/0/metrics"),
        ({"step": 1, "value": 1, "colour": 1}, "/reports/0/colour"),
    ],
)
def test_a_wrong_report_is_refused_where_it_is_wrong(api: Any, report: dict[str, Any], pointer: str) -> None:
    name = api.create()
    api.ask(name)
    assert pointer in api.pointers(api.work(name, 0, "report", reports=[report]))
    assert api.trial(name, 0)["reports"] == []


def test_the_largest_step_and_every_measured_value_are_kept(either: Any) -> None:
    name = either.create()
    either.ask(name)
    values = [0, -0.5, 1e308, 5e-324, "NaN", "Infinity", "-Infinity", 2**53]
    reports = [{"step": 2**31 - 1 - n, "value": value} for n, value in enumerate(values)]
    assert either.work(name, 0, "report", reports=reports).status_code == 200
    assert [report["value"] for report in either.trial(name, 0)["reports"]] == values[::-1]


@pytest.mark.parametrize("words", ['{"attempt": 1, "reports": [{"step": 1, "value": 1e400}]}'])
def test_a_number_too_large_for_a_double_is_not_infinity(api: Any, words: str) -> None:
    name = api.create()
    api.ask(name)
    headers = {"content-type": "application/json"}
    answer = api.post(f"/v1/studies/{name}/trials/0:report", content=words, headers=headers)
    assert answer.status_code in (400, 422)
    told = '{"attempt": 1, "state": "COMPLETE", "values": [-1e400]}'
    answer = api.post(f"/v1/studies/{name}/trials/0:tell", content=told, headers=headers)
    assert answer.status_code in (400, 422)


def test_a_hopeless_trial_is_told_to_stop_and_its_last_report_is_its_value(either: Any) -> None:
    name = either.create(pruner={"name": "threshold", "params": {"lower": 0.5}})
    either.ask(name, count=2)
    kept = either.work(name, 0, "report", reports=[{"step": 1, "value": 0.6}]).json()
    assert kept["should_stop"] is False
    kept = either.work(name, 0, "report", reports=[{"step": 2, "value": 0.4}]).json()
    assert (kept["should_stop"], kept["reason"]) == (True, "pruned")
    assert either.work(name, 0, "heartbeat").json()["reason"] == "pruned"
    told = either.work(name, 0, "tell", state="PRUNED").json()
    assert (told["state"], told["values"], told["reason"]) == ("PRUNED", [0.4], None)
    assert either.work(name, 1, "report", reports=[{"step": 1, "value": 0.9}]).json()["should_stop"] is False


def test_the_median_of_complete_trials_decides(api: Any) -> None:
    name = api.create(pruner={"name": "median", "params": {"n_startup_trials": 3}})
    for value in (0.1, 0.5, 0.9):
        (given,) = api.ask(name)
        api.work(name, given["number"], "report", reports=[{"step": 1, "value": value}])
        api.tell(name, given["number"], value)
    api.ask(name, count=2)
    assert api.work(name, 3, "report", reports=[{"step": 1, "value": 0.4}]).json()["reason"] == "pruned"
    assert api.work(name, 4, "report", reports=[{"step": 1, "value": 0.6}]).json()["reason"] is None


@pytest.mark.parametrize(
    "pruner",
    [
        {"name": "median"},
        {"name": "percentile", "params": {"percentile": 25}},
        {"name": "halving", "params": {"min_resource": 1}},
        {"name": "hyperband", "params": {"max_resource": 9}},
        {"name": "hyperband", "params": {"max_resource": 2**31 - 1, "reduction_factor": 2}},
        {"name": "patient", "params": {"patience": 1}},
        {"name": "patient", "params": {"patience": 1, "wrapped": {"name": "median"}}},
        {"name": "threshold", "params": {"upper": 0.9}},
        {"name": "wilcoxon"},
    ],
)
def test_every_pruner_takes_any_reports(api: Any, pruner: dict[str, Any]) -> None:
    name = api.create(pruner=pruner)
    for values in ([0.1, 0.2, "NaN"], ["NaN"] * 3, ["Infinity", 0.5, "-Infinity"], [0.3, 0.3, 0.3], [1e308, -1e308, 0]):
        (given,) = api.ask(name)
        for step, value in enumerate(values):
            kept = api.work(name, given["number"], "report", reports=[{"step": step * 7, "value": value}])
            assert kept.json()["reason"] in (None, "pruned")
        api.work(name, given["number"], "report", reports=[])
        api.tell(name, given["number"], 0.5)
    assert api.study(name)["counts"]["COMPLETE"] == 5


def test_a_retry_begins_without_reports_and_without_the_order_to_stop(either: Any) -> None:
    name = either.create(pruner={"name": "threshold", "params": {"lower": 0.5}})
    either.ask(name)
    assert either.work(name, 0, "report", reports=[{"step": 1, "value": 0.1}]).json()["should_stop"] is True
    either.work(name, 0, "release")
    assert either.trial(name, 0)["reports"] != [], "they are dropped when it is given out again"
    (again,) = either.ask(name)
    assert (again["number"], again["attempt"], again["reports"]) == (0, 2, [])
    assert either.trial(name, 0)["reports"] == []
    assert either.work(name, 0, "heartbeat", attempt=2).json()["should_stop"] is False


def test_a_stopped_trial_learns_it_from_its_next_report(either: Any) -> None:
    name = either.create()
    either.ask(name)
    stop = f"/v1/studies/{name}/trials/0:stop"
    stopped = either.post(stop)
    assert (stopped.status_code, stopped.json()["state"]) == (200, "RUNNING")
    assert either.post(stop).status_code == 200
    kept = either.work(name, 0, "report", reports=[{"step": 1, "value": 0.5}]).json()
    assert (kept["should_stop"], kept["reason"]) == (True, "stopped")
    assert either.tell(name, 0, 0.5)["state"] == "COMPLETE"
    refused = either.post(stop)
    assert (refused.status_code, either.code(refused)) == (409, "trial_finished")


def test_a_waiting_trial_that_is_stopped_has_failed(either: Any) -> None:
    name = either.create()
    either.enqueue(name, {"x": 0.5})
    stopped = either.post(f"/v1/studies/{name}/trials/0:stop").json()
    assert (stopped["state"], stopped["reason"], stopped["attempt"]) == ("FAIL", "stopped", 0)
    assert stopped["finished_at"] is not None
    assert either.ask(name)[0]["number"] == 1
    assert either.code(either.post(f"/v1/studies/{name}/trials/0:stop")) == "trial_finished"
    assert either.post(f"/v1/studies/{name}/trials/7:stop").status_code == 404


def test_attempts_are_listed_with_how_they_ended(either: Any) -> None:
    name = either.create()
    path = f"/v1/studies/{name}/trials/0/attempts"
    either.ask(name, worker_id="a")
    began = either.get(path).json()["items"][0]
    assert (began["attempt"], began["worker_id"], began["ended_at"], began["end"]) == (1, "a", None, None)
    either.work(name, 0, "release")
    either.ask(name, worker_id="b")
    either.clock.turn(60)
    either.ask(name, worker_id="c")
    either.clock.turn(5)
    either.tell(name, 0, 0.5, attempt=3)
    items = either.get(path).json()["items"]
    assert [(item["attempt"], item["worker_id"], item["end"]) for item in items] == [
        (1, "a", "released"),
        (2, "b", "expired"),
        (3, "c", "told"),
    ]
    assert set(items[0]) == {"attempt", "worker_id", "started_at", "ended_at", "end"}
    assert seconds(items[2]["ended_at"]) - seconds(items[2]["started_at"]) == 5


def test_a_late_tell_of_a_lapsed_attempt_counts(either: Any) -> None:
    name = either.create()
    either.ask(name)
    either.clock.turn(60)
    assert either.trial(name, 0)["state"] == "WAITING"
    assert either.tell(name, 0, 0.5)["state"] == "COMPLETE"
    (attempt,) = either.get(f"/v1/studies/{name}/trials/0/attempts").json()["items"]
    assert attempt["end"] == "told"
    assert either.study(name)["counts"] == {"WAITING": 0, "RUNNING": 0, "COMPLETE": 1, "PRUNED": 0, "FAIL": 0}


def test_metrics_of_the_end_are_kept_with_the_trial(either: Any) -> None:
    name = either.create()
    either.ask(name)
    metrics = {"a": 1, "b": [1.5, None, True, {"c": "d"}], "é": "ü"}
    told = either.work(name, 0, "tell", state="COMPLETE", values=[1], metrics=metrics).json()
    assert told["metrics"] == metrics
    assert either.trial(name, 0)["metrics"] == metrics


@pytest.mark.parametrize("reason", ["\u0000", "a\u0000b"])
def test_a_reason_with_a_nul_is_refused(either: Any, reason: str) -> None:
    name = either.create()
    either.ask(name, count=2)
    for number, call in ((0, {"state": "FAIL"}), (1, None)):
        verb = "tell" if call else "release"
        answer = either.work(name, number, verb, reason=reason, **(call or {}))
        assert either.pointers(answer) == ["/reason"]


@pytest.mark.parametrize("text", ["é ü 中 🙂", "\u007f\u0085\u2028"])
def test_any_text_in_metrics_metadata_choices_and_objective_comes_back(either: Any, text: str) -> None:
    space = {"c": {"type": "categorical", "choices": [text]}}
    name = either.create(
        search_space=space, metadata={text: [text]}, objective={"kind": "mine", text: text}, sampler={"name": "random"}
    )
    (given,) = either.ask(name)
    assert (given["params"], given["objective"]) == ({"c": text}, {"kind": "mine", text: text})
    reports = [{"step": 1, "value": 1, "metrics": {text: text}}]
    assert either.work(name, 0, "report", reports=reports).status_code == 200
    assert either.trial(name, 0)["reports"] == [{"step": 1, "value": 1.0, "metrics": {text: text}}]
    assert either.study(name)["metadata"] == {text: [text]}
