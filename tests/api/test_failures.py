"""Failures have a failure_limit: a study of which nothing comes through pauses, and says why."""

from __future__ import annotations

from typing import Any

import pytest


def fail(api: Any, name: str, reason: str | None = "ValueError: no", **fields: Any) -> Any:
    (given,) = api.ask(name)
    body = {"attempt": given["attempt"], "state": "FAIL", "reason": reason, **fields}
    answer = api.work(name, given["number"], "tell", **body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.slow
def test_a_study_of_which_nothing_comes_through_pauses_and_says_why(either: Any) -> None:
    name = either.create(limits={"failures": 3})
    began = either.trial(name, fail(either, name)["number"])["finished_at"]
    either.clock.turn(5)
    fail(either, name)
    assert (either.state(name), either.study(name)["state_reason"]) == ("ACTIVE", None)
    before = either.get(f"/v1/studies/{name}").headers["etag"]
    fail(either, name, "RuntimeError: CUDA out of memory")
    study = either.study(name)
    assert study["state"] == "PAUSED"
    assert "3 trials" in study["state_reason"]
    assert began in study["state_reason"]
    assert "RuntimeError: CUDA out of memory" in study["state_reason"]
    assert either.get(f"/v1/studies/{name}").headers["etag"] != before
    assert either.asked(name) == {"trials": [], "study_state": "PAUSED"}
    (listed,) = [each for each in either.get("/v1/studies?page_size=1000").json()["items"] if each["name"] == name]
    assert listed["state_reason"] == study["state_reason"]


def test_resuming_starts_the_count_anew(either: Any) -> None:
    name = either.create(limits={"failures": 2})
    for _ in range(2):
        for _ in range(2):
            assert either.state(name) == "ACTIVE"
            fail(either, name)
        assert either.state(name) == "PAUSED"
        assert "2 trials" in either.study(name)["state_reason"]
        resumed = either.verb(name, "resume").json()
        assert (resumed["state"], resumed["state_reason"]) == ("ACTIVE", None)


def test_twenty_are_enough_when_nothing_is_said(api: Any) -> None:
    name = api.create()
    assert api.study(name)["limits"]["failures"] == 20
    for _ in range(19):
        fail(api, name, None)
    assert api.state(name) == "ACTIVE"
    fail(api, name, None)
    assert (api.state(name), "20 trials" in api.study(name)["state_reason"]) == ("PAUSED", True)


def test_nan_counts_and_so_does_what_is_told_in_a_batch_or_with_the_next_ask(either: Any) -> None:
    name = either.create(limits={"failures": 3})
    numbers = [given["number"] for given in either.ask(name, count=3)]
    either.tell(name, numbers[0], "NaN")
    call = {"study": name, "number": numbers[1], "call": "tell", "attempt": 1, "state": "FAIL"}
    assert either.post("/v1/trials:batch", {"calls": [call]}).status_code == 200
    following = {"worker_id": "w", "request_id": f"{name}-next"}
    told = either.work(name, numbers[2], "tell", state="FAIL", reason="x", next=following).json()
    assert told["next"] == {"trials": [], "study_state": "PAUSED"}


@pytest.mark.parametrize("through", ["COMPLETE", "PRUNED"])
def test_a_trial_that_came_through_ends_the_counting(either: Any, through: str) -> None:
    name = either.create(limits={"failures": 2})
    fail(either, name)
    (given,) = either.ask(name)
    values = {"values": [0.5]} if through == "COMPLETE" else {}
    assert either.work(name, given["number"], "tell", state=through, **values).status_code == 200
    for _ in range(5):
        fail(either, name)
    assert either.state(name) == "ACTIVE"


@pytest.mark.parametrize("through", [{"state": "COMPLETE", "values": [0.5]}, {"state": "PRUNED"}])
def test_an_imported_trial_counts_as_one_that_came_through(api: Any, through: dict[str, Any]) -> None:
    name = api.create(limits={"failures": 2})
    api.imported(name, {"params": {"x": 0.5}, **through})
    for _ in range(5):
        fail(api, name)
    assert api.state(name) == "ACTIVE"


def test_an_imported_failure_counts_as_nothing(api: Any) -> None:
    name = api.create(limits={"failures": 2})
    api.imported(name, *[{"params": {"x": 0.5}, "state": "FAIL"}] * 5)
    fail(api, name)
    assert api.state(name) == "ACTIVE"


def test_what_the_service_fails_and_what_was_stopped_by_hand_counts_as_nothing(api: Any) -> None:
    name = api.create(limits={"failures": 1, "attempts": 1}, lease_seconds=1)
    api.ask(name)
    api.clock.turn(2)
    assert api.trial(name, 0)["reason"] == "attempts_exhausted"
    (given,) = api.ask(name)
    api.post(f"/v1/studies/{name}/trials/{given['number']}:stop")
    api.work(name, given["number"], "tell", state="FAIL", reason="stopped")
    assert api.state(name) == "ACTIVE"


@pytest.mark.slow
def test_counting_goes_on_while_the_limit_is_null_and_a_lower_one_holds_at_once(either: Any) -> None:
    name = either.create(limits={"failures": None})
    for _ in range(25):
        fail(either, name)
    assert either.state(name) == "ACTIVE"
    answer = either.limit(name, failures=26)
    assert answer.json()["state"] == "ACTIVE"
    fail(either, name)
    assert (either.state(name), "26 trials" in either.study(name)["state_reason"]) == ("PAUSED", True)
    other = either.create(limits={"failures": None})
    for _ in range(3):
        fail(either, other)
    assert either.limit(other, failures=3).json()["state"] == "PAUSED"


def test_running_trials_of_a_study_that_paused_go_on(api: Any) -> None:
    name = api.create(limits={"failures": 1})
    running, failing = api.ask(name, count=2)
    api.work(name, failing["number"], "tell", state="FAIL")
    assert api.work(name, running["number"], "heartbeat").json()["should_stop"] is False
    api.tell(name, running["number"], 0.5)
    assert (api.state(name), api.study(name)["best"]["number"]) == ("PAUSED", running["number"])
    api.verb(name, "resume")
    fail(api, name)
    assert api.state(name) == "ACTIVE"


def test_who_pauses_a_study_needs_no_reason_and_other_states_have_none(api: Any) -> None:
    name = api.create(limits={"failures": 1})
    assert api.verb(name, "pause").json()["state_reason"] is None
    api.verb(name, "resume")
    fail(api, name)
    assert api.study(name)["state_reason"]
    assert api.verb(name, "pause").json()["state_reason"], "paused again it is paused for the same reason"
    assert api.verb(name, "cancel").json()["state_reason"] is None


def test_a_long_reason_is_cut(api: Any) -> None:
    name = api.create(limits={"failures": 1})
    fail(api, name, "x" * 2000)
    assert len(api.study(name)["state_reason"]) < 600


def test_a_study_is_the_same_as_before_there_was_this_limit(own: Any) -> None:
    """The body it was created with lacks the new default."""
    body = {"name": "old", "search_space": {"x": {"type": "float", "low": 0.0, "high": 1.0}}}
    assert own.post("/v1/studies", body).status_code == 201
    database = own.client.app.state.service.database

    def forget(record: Any) -> None:
        import sqlalchemy as sa

        query = "UPDATE hpo_studies SET created_with = replace(created_with, '\"failures\": 20, ', '')"
        assert record._db.execute(sa.text(query)).rowcount == 1
        assert '"failures"' not in record._db.execute(sa.text("SELECT created_with FROM hpo_studies")).scalar()

    own.client.portal.call(database.write, forget)
    assert own.post("/v1/studies", body).status_code == 200
    assert own.post("/v1/studies", {**body, "limits": {"failures": 3}}).status_code == 409


# The machine's own failures


def again(api: Any, name: str, number: int, attempt: int, reason: str | None = "disk full", **fields: Any) -> Any:
    body = {"attempt": attempt, "state": "FAIL", "retry": True, **fields}
    return api.work(name, number, "tell", **(body if reason is None else {**body, "reason": reason}))


def ends(api: Any, name: str, number: int) -> list[str | None]:
    items = api.get(f"/v1/studies/{name}/trials/{number}/attempts").json()["items"]
    return [item["end"] for item in items]


def test_a_trial_whose_machine_failed_is_given_out_again(either: Any) -> None:
    name = either.create(limits={"failures": 1, "trials": 1})
    (given,) = either.ask(name)
    either.work(name, 0, "report", reports=[{"step": 0, "value": 1}])
    answer = again(either, name, 0, 1)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["state"], told["values"], told["reason"], told["attempt"]) == ("WAITING", None, None, 1)
    assert ends(either, name, 0) == ["told"]
    study = either.study(name)
    assert (study["state"], study["counts"]["WAITING"]) == ("ACTIVE", 1), "it is no failure of the study's"
    assert again(either, name, 0, 1).json() == told, "the same call again costs nothing"
    (once_more,) = either.ask(name)
    assert (once_more["number"], once_more["attempt"], once_more["params"]) == (0, 2, given["params"])
    assert once_more["reports"] == []
    assert again(either, name, 0, 1).status_code == 200
    assert either.trial(name, 0)["state"] == "RUNNING"
    either.tell(name, 0, 0.5, attempt=2)
    assert ends(either, name, 0) == ["told", "told"]


@pytest.mark.parametrize(
    ("reason", "says"), [("disk full", "attempts_exhausted: disk full"), (None, "attempts_exhausted")]
)
def test_attempts_end_the_trial_as_leases_that_run_out_do(either: Any, reason: str | None, says: str) -> None:
    name = either.create(limits={"attempts": 3, "failures": 1}, lease_seconds=1)
    either.ask(name)
    again(either, name, 0, 1, reason)
    either.ask(name)
    either.clock.turn(2)
    assert either.trial(name, 0)["state"] == "WAITING"
    either.ask(name)
    told = again(either, name, 0, 3, reason, metrics={"free": 0}).json()
    assert (told["state"], told["reason"], told["metrics"]) == ("FAIL", says, {"free": 0})
    assert ends(either, name, 0) == ["told", "expired", "told"]
    assert again(either, name, 0, 3, reason).json() == told
    assert either.state(name) == "ACTIVE", "a machine's failure is none of the study's"


def test_who_has_told_it_holds_the_trial_no_more(api: Any) -> None:
    name = api.create()
    api.ask(name)
    again(api, name, 0, 1)
    codes = [
        api.code(api.work(name, 0, "report", reports=[{"step": 0, "value": 1}])),
        api.code(api.work(name, 0, "heartbeat")),
        api.code(api.work(name, 0, "tell", state="COMPLETE", values=[1])),
        api.code(api.work(name, 0, "release")),
    ]
    assert codes == ["lease_lost", "lease_lost", "lease_lost", "200"]
    assert api.trial(name, 0)["state"] == "WAITING"


def test_told_after_its_lease_ran_out_it_costs_one_attempt_and_not_two(api: Any) -> None:
    name = api.create(limits={"attempts": 2}, lease_seconds=1)
    api.ask(name)
    api.clock.turn(2)
    assert api.trial(name, 0)["state"] == "WAITING"
    assert again(api, name, 0, 1).json()["state"] == "WAITING"
    assert ends(api, name, 0) == ["told"]
    api.ask(name)
    assert again(api, name, 0, 2).json()["state"] == "FAIL"


def test_only_a_fail_is_tried_again_and_only_by_its_holder(api: Any) -> None:
    name = api.create()
    api.ask(name)
    for state, values in (("COMPLETE", {"values": [1]}), ("PRUNED", {})):
        answer = api.work(name, 0, "tell", state=state, retry=True, **values)
        assert api.pointers(answer) == ["/retry"]
    assert api.pointers(api.work(name, 0, "tell", state="FAIL", retry=1)) == ["/retry"]
    assert api.code(again(api, name, 0, 2)) == "lease_lost"
    api.tell(name, 0, 0.5)
    assert api.code(again(api, name, 0, 1)) == "result_conflict"


@pytest.mark.parametrize(("verb", "reason"), [("stop", "study_stopped"), ("cancel", "study_cancelled")])
def test_in_a_study_that_ends_it_ends_the_trial(api: Any, verb: str, reason: str) -> None:
    name = api.create()
    api.ask(name)
    api.verb(name, verb)
    assert again(api, name, 0, 1).json()["reason"] == reason


def test_with_the_next_ask_it_is_the_next_trial(either: Any) -> None:
    name = either.create()
    either.ask(name)
    told = again(either, name, 0, 1, next={"worker_id": "w", "request_id": f"{name}-again"}).json()
    (given,) = told["next"]["trials"]
    assert (told["state"], given["number"], given["attempt"]) == ("WAITING", 0, 2)


def test_in_a_batch_it_is_told_too(either: Any) -> None:
    name = either.create()
    either.ask(name, count=2)
    calls = [
        {"study": name, "number": 0, "call": "tell", "attempt": 1, "state": "FAIL", "retry": True, "reason": "x"},
        {"study": name, "number": 1, "call": "tell", "attempt": 1, "state": "FAIL", "retry": False},
    ]
    results = either.post("/v1/trials:batch", {"calls": calls}).json()["results"]
    assert [result["body"]["state"] for result in results] == ["WAITING", "FAIL"]
