"""Asking: what is given, what a repeated request gets, and who gets what first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

LEARNING_RATE = {"learning_rate": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True}}
ROUTES = ("one", "any")


def asked(api: Any, route: str, name: str, **body: Any) -> Any:
    path = f"/v1/studies/{name}/trials:ask" if route == "one" else "/v1/trials:ask"
    answer = api.post(path, {"worker_id": "w", "objectives": [f"kind-{name}"], **body})
    assert answer.status_code == 200
    return answer.json()


def of_own_kind(api: Any, **fields: Any) -> str:
    """A study that no other test's worker can train."""
    name: str = api.create()
    api.call("DELETE", f"/v1/studies/{name}")
    return str(api.create(name=name, objective={"kind": f"kind-{name}"}, **fields))


def test_a_trial_is_given_with_all_that_a_worker_needs(api: Any) -> None:
    name = api.create(lease_seconds=30, objective={"kind": "mine", "epochs": 5})
    answer = api.asked(name, worker_id="gpu-3")
    (given,) = answer["trials"]
    assert answer["study_state"] == "ACTIVE"
    assert set(given) == {"study", "number", "attempt", "params", "seed", "objective", "reports", "artifacts", "lease"}
    assert (given["study"], given["number"], given["attempt"], given["reports"]) == (name, 0, 1, [])
    assert given["objective"] == {"kind": "mine", "epochs": 5}
    assert given["lease"]["duration_seconds"] == 30
    trial = api.trial(name, 0)
    assert {key: trial[key] for key in ("params", "seed", "attempt")} == {
        key: given[key] for key in ("params", "seed", "attempt")
    }
    assert (trial["state"], trial["worker_id"], trial["round"]) == ("RUNNING", "gpu-3", 0)
    assert trial["started_at"] < given["lease"]["expires_at"]
    assert trial["finished_at"] is None


@pytest.mark.parametrize("route", ROUTES)
def test_a_repeated_request_gets_the_same_answer_whatever_became_of_its_trials(either: Any, route: str) -> None:
    name = of_own_kind(either)
    first = asked(either, route, name, request_id=f"r-{name}", count=4)
    assert len(first["trials"]) == 4
    assert asked(either, route, name, request_id=f"r-{name}", count=4) == first
    either.tell(name, 0, 0.5)
    either.work(name, 1, "release")
    either.clock.turn(61)
    either.ask(name, count=1, worker_id="other")
    assert asked(either, route, name, request_id=f"r-{name}", count=4) == first
    for verb in ("pause", "resume", "stop", "cancel"):
        either.verb(name, verb)
        again = asked(either, route, name, request_id=f"r-{name}")
        assert again["trials"] == first["trials"], verb


@pytest.mark.parametrize("route", ROUTES)
def test_an_empty_answer_is_not_remembered(api: Any, route: str) -> None:
    name = of_own_kind(api)
    api.verb(name, "pause")
    assert asked(api, route, name, request_id=f"e-{name}")["trials"] == []
    api.verb(name, "resume")
    assert len(asked(api, route, name, request_id=f"e-{name}")["trials"]) == 1


def test_a_request_is_remembered_for_its_route_and_study(api: Any) -> None:
    first, second = of_own_kind(api), of_own_kind(api)
    request = f"q-{first}"
    numbers = [asked(api, "one", name, request_id=request)["trials"][0]["study"] for name in (first, second)]
    assert numbers == [first, second]
    (given,) = asked(api, "any", first, request_id=request)["trials"]
    assert (given["study"], given["number"]) == (first, 1)


def test_many_repeats_at_the_same_time_give_out_one_trial(either: Any) -> None:
    name = of_own_kind(either)
    for route in ROUTES:
        with ThreadPoolExecutor(12) as pool:
            requests = [pool.submit(asked, either, route, name, request_id=f"m-{route}-{name}") for _ in range(12)]
            answers = [request.result()["trials"] for request in requests]
        assert all(answer == answers[0] for answer in answers)
    assert either.study(name)["counts"]["RUNNING"] == 2


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"worker_id": None}, "/worker_id"),
        ({"worker_id": ""}, "/worker_id"),
        ({"worker_id": "a" * 129}, "/worker_id"),
        ({"worker_id": "é"}, "/worker_id"),
        ({"worker_id": "a\n"}, "/worker_id"),
        ({"worker_id": "a\u007f"}, "/worker_id"),
        ({"worker_id": 5}, "/worker_id"),
        ({"request_id": ""}, "/request_id"),
        ({"request_id": "\u0000"}, "/request_id"),
        ({"count": 0}, "/count"),
        ({"count": 101}, "/count"),
        ({"count": 1.5}, "/count"),
        ({"count": True}, "/count"),
        ({"count": 2**80}, "/count"),
        ({"wait_seconds": -1}, "/wait_seconds"),
        ({"wait_seconds": 30.5}, "/wait_seconds"),
        ({"wait_seconds": "5"}, "/wait_seconds"),
        ({"objectives": "neural_network"}, "/objectives"),
        ({"objectives": [None]}, "/objectives/0"),
        ({"colour": 1}, "/colour"),
    ],
)
def test_a_wrong_ask_is_refused_where_it_is_wrong(api: Any, body: dict[str, Any], pointer: str) -> None:
    name = api.create()
    right = {"worker_id": "w", "request_id": "r", **body}
    for path in (f"/v1/studies/{name}/trials:ask", "/v1/trials:ask"):
        assert pointer in api.pointers(api.post(path, right))
    assert api.study(name)["counts"]["RUNNING"] == 0


@pytest.mark.parametrize("missing", ["worker_id", "request_id"])
def test_who_asks_and_which_request_are_required(api: Any, missing: str) -> None:
    body = {"worker_id": "w", "request_id": "r"}
    del body[missing]
    assert api.pointers(api.post("/v1/trials:ask", body)) == [f"/{missing}"]


def test_identifiers_may_be_any_printable_ascii(api: Any) -> None:
    name = api.create()
    every = "".join(map(chr, range(32, 127)))
    assert api.ask(name, worker_id=every, request_id="".join(reversed(every)))
    assert api.trial(name, 0)["worker_id"] == every
    assert api.ask(name, worker_id="w" * 128, request_id="r" * 128)


@pytest.mark.slow
def test_the_first_form_never_gives_a_study_without_an_objective(own: Any) -> None:
    own.create()
    asked: tuple[dict[str, Any], ...] = ({}, {"objectives": ["neural_network"]}, {"objectives": []})
    for objectives in asked:
        assert own.ask_any(**objectives) == {"trials": []}


@pytest.mark.slow
def test_the_first_form_gives_only_the_kinds_that_were_named(own: Any) -> None:
    mine = own.create(objective={"kind": "mine"})
    network = own.create(search_space=LEARNING_RATE, objective={"kind": "neural_network"})
    assert own.ask_any(objectives=[]) == {"trials": []}
    assert own.ask_any(objectives=["other"]) == {"trials": []}
    assert own.ask_any(objectives=["neural_network"])["trials"][0]["study"] == network
    assert own.ask_any(objectives=["other", "mine"])["trials"][0]["study"] == mine
    assert "study_state" not in own.ask_any()
    assert len(own.ask_any()["trials"]) == 1


def test_the_second_form_gives_any_objective(api: Any) -> None:
    name = api.create(objective={"kind": "mine"})
    assert len(api.ask(name, objectives=["other"])) == 1
    assert len(api.ask(api.create(), objectives=["other"])) == 1


@pytest.mark.slow
def test_studies_share_fairly(own: Any) -> None:
    names = [own.create(objective={"kind": "mine"}) for _ in range(3)]
    given = [own.ask_any()["trials"][0]["study"] for _ in range(9)]
    assert [given.count(name) for name in names] == [3, 3, 3]
    first = next(n for n in range(3) if own.trial(names[0], n)["state"] == "RUNNING")
    own.tell(names[0], first, 0.5)
    assert own.ask_any()["trials"][0]["study"] == names[0]
    own.verb(names[0], "pause")
    assert own.ask_any()["trials"][0]["study"] in names[1:]


@pytest.mark.slow
def test_a_study_that_has_nothing_to_give_is_passed_over(own: Any) -> None:
    full = own.create(objective={"kind": "mine"}, limits={"running": 1})
    other = own.create(objective={"kind": "mine"})
    assert {own.ask_any()["trials"][0]["study"] for _ in range(2)} == {full, other}
    assert [own.ask_any()["trials"][0]["study"] for _ in range(3)] == [other] * 3


def test_retries_come_first_then_enqueued_then_sampled(either: Any) -> None:
    name = either.create()
    either.ask(name)
    either.enqueue(name, {"x": 0.25})
    either.work(name, 0, "release")
    given = either.ask(name, count=3)
    assert [(trial["number"], trial["attempt"]) for trial in given] == [(0, 2), (1, 1), (2, 1)]
    assert given[1]["params"] == {"x": 0.25}


def test_a_worker_that_drains_gets_nothing(either: Any) -> None:
    name = of_own_kind(either)
    worker = f"draining-{name}"
    assert asked(either, "one", name, worker_id=worker, request_id=f"1-{name}")["trials"]
    drained = either.post(f"/v1/workers/{worker}:drain")
    assert (drained.status_code, drained.json()["draining"], drained.json()["trials"]) == (200, True, 1)
    assert either.post(f"/v1/workers/{worker}:drain").status_code == 200
    for route in ROUTES:
        answer = asked(either, route, name, worker_id=worker, request_id=f"2-{name}")
        assert (answer["trials"], answer["drain"]) == ([], True)
    assert either.tell(name, 0, 0.5)["state"] == "COMPLETE"
    assert asked(either, "one", name, request_id=f"3-{name}")["trials"]
    assert asked(either, "one", name, worker_id=worker, request_id=f"1-{name}")["trials"], "a replay is still answered"


@pytest.mark.parametrize("state", ["STOPPING", "STOPPED", "CANCELLED", "COMPLETED"])
def test_a_study_that_is_over_answers_empty_with_its_state(api: Any, state: str) -> None:
    name = api.create(limits={"trials": 1})
    api.ask(name)
    if state == "COMPLETED":
        api.tell(name, 0, 0.5)
    else:
        api.verb(name, "cancel" if state == "CANCELLED" else "stop")
    if state == "STOPPED":
        api.tell(name, 0, 0.5)
    assert api.asked(name) == {"trials": [], "study_state": state}


def test_the_seed_of_a_trial_is_its_own_and_the_same_for_the_same_study(api: Any) -> None:
    seeds = []
    for _ in range(2):
        name = api.create(sampler={"name": "random", "seed": 5})
        seeds.append([trial["seed"] for trial in api.ask(name, count=5)])
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 5
