"""A tell that asks for the next trial too: both in one transaction, or neither."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

_requests = itertools.count()


def following(**fields: Any) -> dict[str, Any]:
    return {"worker_id": "w", "request_id": f"next-{next(_requests)}", **fields}


def told(api: Any, name: str, number: int, value: float = 0.5, **ask: Any) -> Any:
    answer = api.work(name, number, "tell", state="COMPLETE", values=[value], next=following(**ask))
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_answer_is_the_trial_and_what_an_ask_would_have_answered(either: Any) -> None:
    one, other = (either.create(lease_seconds=30, objective={"kind": "mine"}) for _ in range(2))
    either.ask(one)
    either.ask(other)
    answer = told(either, one, 0, worker_id="gpu-3")
    plain = either.tell(other, 0, 0.5)
    asked = either.asked(other, worker_id="gpu-3")
    assert set(answer) == {*plain, "next"}
    assert (answer["state"], answer["values"]) == ("COMPLETE", [0.5])
    assert {**answer["next"], "trials": []} == {**asked, "trials": []}
    (given,), (expected,) = answer["next"]["trials"], asked["trials"]
    assert {**given, "lease": 0} == {**expected, "study": one, "lease": 0}
    assert given["lease"]["duration_seconds"] == 30
    held = either.trial(one, 1)
    assert (held["state"], held["worker_id"], held["params"]) == ("RUNNING", "gpu-3", given["params"])


def test_repeated_it_is_answered_the_same_and_gives_out_nothing_more(either: Any) -> None:
    name = either.create()
    either.ask(name)
    body = {"attempt": 1, "state": "COMPLETE", "values": [0.5], "next": following(count=3)}
    first = either.post(f"/v1/studies/{name}/trials/0:tell", body).json()
    assert [trial["number"] for trial in first["next"]["trials"]] == [1, 2, 3]
    either.tell(name, 2, 0.25)
    assert either.post(f"/v1/studies/{name}/trials/0:tell", body).json() == first
    assert either.study(name)["counts"]["RUNNING"] == 2


def test_an_ask_under_the_same_request_is_answered_the_same(either: Any) -> None:
    name = either.create()
    either.ask(name)
    answer = told(either, name, 0, request_id=f"shared-{name}")
    assert either.asked(name, request_id=f"shared-{name}") == answer["next"]


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ({"attempt": 2, "state": "COMPLETE", "values": [0.5]}, "lease_lost"),
        ({"attempt": 1, "state": "COMPLETE", "values": [0.5, 0.5]}, "invalid"),
    ],
)
def test_a_refused_result_gives_out_nothing(either: Any, result: dict[str, Any], code: str) -> None:
    name = either.create()
    either.ask(name)
    ask = following()
    answer = either.post(f"/v1/studies/{name}/trials/0:tell", {**result, "next": ask})
    assert either.code(answer) == code
    counts = either.study(name)["counts"]
    assert (counts["RUNNING"], counts["WAITING"], counts["COMPLETE"]) == (1, 0, 0)
    assert [trial["number"] for trial in either.asked(name, **ask)["trials"]] == [1]


def test_another_result_of_a_finished_trial_gives_out_nothing(either: Any) -> None:
    name = either.create()
    either.ask(name)
    either.tell(name, 0, 0.5)
    answer = either.work(name, 0, "tell", state="COMPLETE", values=[0.75], next=following())
    assert either.code(answer) == "result_conflict"
    assert either.study(name)["counts"]["RUNNING"] == 0


def test_the_last_result_of_a_study_is_followed_by_nothing(either: Any) -> None:
    name = either.create(limits={"trials": 2})
    either.ask(name)
    assert len(told(either, name, 0)["next"]["trials"]) == 1
    assert told(either, name, 1)["next"] == {"trials": [], "study_state": "COMPLETED"}


def test_a_paused_study_takes_the_result_and_gives_nothing(either: Any) -> None:
    name = either.create()
    either.ask(name)
    either.verb(name, "pause")
    answer = told(either, name, 0)
    assert answer["state"] == "COMPLETE"
    assert answer["next"] == {"trials": [], "study_state": "PAUSED"}


def test_the_place_of_the_finished_trial_is_free_for_the_next(either: Any) -> None:
    name = either.create(limits={"running": 1})
    either.ask(name)
    assert [trial["number"] for trial in told(either, name, 0)["next"]["trials"]] == [1]
    assert either.ask(name) == []


def test_the_result_that_ends_a_round_is_followed_by_a_trial_of_the_next(either: Any) -> None:
    name = either.create(narrowing={"rounds": 2, "trials_per_round": 2, "keep": 0.5})
    either.ask(name, count=2)
    assert told(either, name, 0)["next"]["trials"] == []
    (given,) = told(either, name, 1)["next"]["trials"]
    assert (given["number"], either.trial(name, given["number"])["round"]) == (2, 1)


def test_a_draining_worker_tells_its_result_and_is_sent_away(own: Any) -> None:
    name = own.create()
    own.ask(name, worker_id="tired")
    own.post("/v1/workers/tired:drain")
    answer = told(own, name, 0, worker_id="tired")
    assert answer["state"] == "COMPLETE"
    assert answer["next"] == {"trials": [], "study_state": "ACTIVE", "drain": True}


@pytest.mark.slow
def test_a_worker_that_was_not_heard_of_before_is_listed(own: Any) -> None:
    name = own.create()
    own.ask(name, worker_id="old")
    told(own, name, 0, worker_id="new")
    assert {worker["worker_id"] for worker in own.get("/v1/workers").json()["items"]} == {"old", "new"}


@pytest.mark.slow
def test_so_many_workers_together_are_never_given_too_many(either: Any) -> None:
    name = either.create(limits={"trials": 100})

    def work(worker: int) -> int:
        done, trials = 0, either.ask(name, worker_id=f"w{worker}")
        while trials:
            (trial,) = trials
            trials = told(either, name, trial["number"], worker_id=f"w{worker}")["next"]["trials"]
            done += 1
        return done

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(work, range(16))) == 100
    assert either.study(name)["counts"]["COMPLETE"] == 100
    assert either.state(name) == "COMPLETED"


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        ({"count": 101}, "/next/count"),
        ({"worker_id": ""}, "/next/worker_id"),
        ({"wait_seconds": 1}, "/next/wait_seconds"),
    ],
)
def test_what_is_wrong_with_the_ask_is_said_and_nothing_is_told(api: Any, wrong: dict[str, Any], pointer: str) -> None:
    name = api.create()
    api.ask(name)
    answer = api.work(name, 0, "tell", state="COMPLETE", values=[0.5], next=following(**wrong))
    assert api.pointers(answer) == [pointer]
    assert api.trial(name, 0)["state"] == "RUNNING"


def test_in_a_batch_nothing_is_asked_for(api: Any) -> None:
    name = api.create()
    api.ask(name)
    call = {"study": name, "number": 0, "call": "tell", "attempt": 1, "state": "COMPLETE", "values": [0.5]}
    assert api.pointers(api.post("/v1/trials:batch", {"calls": [{**call, "next": following()}]})) == ["/calls/0/next"]
