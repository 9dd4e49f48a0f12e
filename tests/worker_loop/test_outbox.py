"""What is sent when, what a refusal does to it, and that nothing is lost while the server is away."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo_worker import heartbeat
from hpo_worker.outbox import BYTES_IN_A_CALL, REPORTS_IN_A_CALL, HeldJob, Outbox, flush_interval

GOES_ON = {"should_stop": False, "reason": None}
LOST = {"code": "lease_lost", "detail": "gone"}


def held(outbox: Outbox, number: int | None = 0, lease: float = 60.0, flush: float = 1.0) -> HeldJob:
    job = HeldJob("s", number, 1, lease, flush, renewed_at=0.0, sent_at=0.0)
    outbox.hold(job)
    return job


def said(outbox: Outbox, now: float) -> list[tuple[str, list[int]]]:
    return [(call.verb, [report["step"] for report in call.body.get("reports", ())]) for call in outbox.calls(now)]


def take_all(outbox: Outbox, now: float, status: int = 200, body: dict[str, Any] = GOES_ON) -> None:
    for call in outbox.calls(now):
        outbox.take(call, status, body, now)


def test_epochs_within_the_flush_interval_are_one_report():
    outbox = Outbox()
    job = held(outbox)
    for step in range(5):
        outbox.report(job, step, 0.1 * step)
    assert said(outbox, 0.9) == []
    assert said(outbox, 1.0) == [("report", [0, 1, 2, 3, 4])]


def test_an_epoch_after_a_pause_is_reported_at_once():
    outbox = Outbox()
    job = held(outbox)
    outbox.report(job, 0, 0.5)
    assert said(outbox, 5.0) == [("report", [0])]


def test_a_silent_epoch_keeps_its_lease_at_a_third():
    outbox = Outbox()
    held(outbox, lease=60.0)
    assert said(outbox, 19.9) == []
    assert said(outbox, 20.0) == [("heartbeat", [])]
    take_all(outbox, 20.0)
    assert outbox.due_at() == 40.0


def test_reports_and_result_say_what_they_were_trained_on_and_heartbeats_need_not():
    outbox = Outbox()
    job = held(outbox)
    job.dataset_sha256 = "1" * 64
    assert [call.body for call in outbox.calls(20.0)] == [{"attempt": 1}]
    outbox.report(job, 0, 0.5)
    outbox.finish(job, {"state": "COMPLETE", "values": [0.5]})
    assert [call.body["dataset_sha256"] for call in outbox.calls(20.0)] == ["1" * 64] * 2


def test_the_result_goes_at_once_and_after_its_reports():
    outbox = Outbox()
    job = held(outbox)
    outbox.report(job, 0, 0.5)
    outbox.finish(job, {"state": "COMPLETE", "values": [0.5]})
    assert said(outbox, 0.0) == [("report", [0]), ("tell", [])]
    take_all(outbox, 0.0)
    assert job.is_resolved
    assert outbox.jobs == []


def test_a_report_made_while_another_is_on_its_way_is_kept():
    outbox = Outbox()
    job = held(outbox)
    outbox.report(job, 0, 0.5)
    (call,) = outbox.calls(1.0)
    outbox.report(job, 0, 0.7)
    outbox.report(job, 1, 0.8)
    outbox.take(call, 200, GOES_ON, 1.0)
    assert [report.body["value"] for report in job.reports.values()] == [0.7, 0.8]


def test_nothing_is_lost_while_the_server_is_away():
    outbox = Outbox()
    job = held(outbox)
    for step in range(1000):
        outbox.report(job, step, 0.5)
        outbox.calls(float(step))  # nobody answers
    steps = [step for _, steps in said(outbox, 1000.0) for step in steps]
    assert steps == list(range(1000))
    assert all(len(steps) <= REPORTS_IN_A_CALL for _, steps in said(outbox, 1000.0))


def test_a_large_report_has_a_call_of_its_own():
    outbox = Outbox()
    job = held(outbox)
    for step in range(3):
        outbox.report(job, step, 0.5, {"weights": "x" * (BYTES_IN_A_CALL // 2)})
    assert said(outbox, 1.0) == [("report", [0]), ("report", [1]), ("report", [2])]


def test_metrics_that_no_call_can_carry_are_refused_where_they_are_made():
    outbox = Outbox()
    job = held(outbox)
    with pytest.raises(ValueError, match="step 3"):
        outbox.report(job, 3, 0.5, {"weights": "x" * BYTES_IN_A_CALL})
    with pytest.raises(TypeError, match="no form in JSON"):
        outbox.report(job, 3, 0.5, {"weights": object()})
    assert job.reports == {}


@pytest.mark.parametrize("code", ["lease_lost", "trial_finished", "result_conflict", "not_found"])
def test_a_trial_that_is_gone_is_dropped_with_all_that_was_to_be_said_of_it(code):
    outbox = Outbox()
    job = held(outbox)
    outbox.report(job, 0, 0.5)
    take_all(outbox, 1.0, 409, {"code": code, "detail": "gone"})
    assert job.lost == code
    assert job.is_resolved
    assert outbox.jobs == []


def test_a_result_told_again_after_a_lost_answer_is_not_a_lost_trial():
    outbox = Outbox()
    job = held(outbox)
    outbox.report(job, 0, 0.5)
    outbox.finish(job, {"state": "COMPLETE", "values": [0.5]})
    report, tell = outbox.calls(0.0)
    outbox.take(report, 409, {"code": "trial_finished", "detail": "by this very tell"}, 1.0)
    outbox.take(tell, 200, {"number": 0}, 1.0)
    assert job.is_resolved
    assert job.lost is None


def test_a_result_that_breaks_a_rule_is_told_as_a_failure_with_the_rule():
    outbox = Outbox()
    job = held(outbox)
    outbox.finish(job, {"state": "COMPLETE", "values": [1.0]})
    take_all(outbox, 0.0, 422, {"code": "invalid", "detail": "two directions, one value"})
    assert job.result == {"state": "FAIL", "reason": "two directions, one value"}
    take_all(outbox, 0.0)
    assert job.is_resolved
    assert job.lost is None


def test_a_refused_failure_is_not_told_for_ever():
    outbox = Outbox()
    job = held(outbox)
    outbox.finish(job, {"state": "FAIL", "reason": "x"})
    take_all(outbox, 0.0, 422, {"code": "invalid", "detail": "no"})
    assert job.is_resolved
    assert job.lost == "invalid"


def test_a_refused_report_is_not_sent_again():
    outbox = Outbox()
    job = held(outbox)
    outbox.report(job, -1, 0.5)
    take_all(outbox, 1.0, 422, {"code": "invalid", "detail": "step is negative"})
    assert job.reports == {}
    assert not job.is_resolved


def test_the_answer_to_a_report_stops_the_trial():
    outbox = Outbox()
    job = held(outbox)
    outbox.report(job, 0, 0.5)
    take_all(outbox, 1.0, 200, {"should_stop": True, "reason": "pruned"})
    assert job.stop_reason == "pruned"


@given(st.floats(1, 86_400), st.booleans())
def test_the_flush_interval_is_never_above_a_third_of_the_lease(lease, pruned):
    assert 0 < flush_interval(lease, pruned=pruned) <= min(1.0, lease / 3)


def test_one_call_that_the_server_cannot_take_keeps_no_other_unresolved(monkeypatch):
    monkeypatch.setattr("hpo_worker.heartbeat.PAUSE_SECONDS", 0.0)
    outbox = Outbox()
    jobs = [held(outbox, number) for number in range(3)]
    for job in jobs:
        outbox.finish(job, {"state": "COMPLETE", "values": [0.5]})

    class Server:
        def batch(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
            bad = {"status": 503, "body": {"detail": "this study is held"}}
            return [bad if call["number"] == 1 else {"status": 200, "body": GOES_ON} for call in calls]

    heartbeat.send(Server(), outbox, 0.0)  # type: ignore[arg-type]
    assert [job.is_resolved for job in jobs] == [True, False, True]
    assert outbox.calls(0.0) != []
