"""Limits: when giving out ends, exactly, and what goes on after."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest


@pytest.mark.slow
def test_sixteen_askers_get_exactly_as_many_trials_as_the_limit(either: Any) -> None:
    limit = 45
    name = either.create(limits={"trials": limit})

    def asker(number: int) -> list[tuple[int, int]]:
        held: list[tuple[int, int]] = []
        first = True
        while True:
            answer = either.asked(name, worker_id=f"w{number}", count=1 + number % 3)
            if not answer["trials"] and answer["study_state"] != "ACTIVE":
                return held
            for given in answer["trials"]:
                held.append((given["number"], given["attempt"]))
                # Each asker hands its first trial back once: a retry does not count again.
                if first:
                    first = False
                    either.work(name, given["number"], "release", attempt=given["attempt"])
                else:
                    either.tell(name, given["number"], 0.5, attempt=given["attempt"])

    with ThreadPoolExecutor(16) as pool:
        grants = [grant for held in pool.map(asker, range(16)) for grant in held]
    assert len(set(grants)) == len(grants)
    assert {number for number, _ in grants} == set(range(limit))
    study = either.study(name)
    assert (study["state"], study["counts"]["COMPLETE"]) == ("COMPLETED", limit)


def test_one_ask_for_many_stops_at_the_limit(api: Any) -> None:
    name = api.create(limits={"trials": 3})
    assert len(api.ask(name, count=100)) == 3
    assert api.asked(name, count=100) == {"trials": [], "study_state": "ACTIVE"}


def test_a_study_completes_when_the_last_trial_has_finished_however_it_ended(api: Any) -> None:
    name = api.create(limits={"trials": 3})
    api.ask(name, count=3)
    api.tell(name, 0, 0.5)
    api.work(name, 1, "tell", state="FAIL")
    assert api.state(name) == "ACTIVE"
    assert api.work(name, 2, "tell", state="PRUNED").status_code == 200
    assert api.asked(name) == {"trials": [], "study_state": "COMPLETED"}


def test_retries_are_still_given_out_once_the_limit_is_reached(api: Any) -> None:
    name = api.create(limits={"trials": 2})
    api.ask(name, count=2)
    api.work(name, 0, "release")
    api.tell(name, 1, 0.5)
    assert api.state(name) == "ACTIVE"
    (again,) = api.ask(name, count=5)
    assert (again["number"], again["attempt"]) == (0, 2)
    api.tell(name, 0, 0.4, attempt=2)
    assert api.state(name) == "COMPLETED"


def test_raising_a_limit_makes_a_completed_study_active_again(either: Any) -> None:
    name = either.create(limits={"trials": 1})
    either.finish(name, 0.5)
    assert either.state(name) == "COMPLETED"
    assert either.limit(name, trials=2).json()["state"] == "ACTIVE"
    either.finish(name, 0.6)
    assert either.state(name) == "COMPLETED"
    assert either.limit(name, trials=None).json()["state"] == "ACTIVE"


def test_a_limit_below_what_was_given_out_simply_stops_giving_out(api: Any) -> None:
    name = api.create(limits={"trials": 5})
    api.ask(name, count=3)
    assert api.limit(name, trials=1).json()["state"] == "ACTIVE"
    assert api.ask(name) == []
    for number in range(3):
        api.tell(name, number, 0.5)
    study = api.study(name)
    assert (study["state"], study["counts"]["COMPLETE"]) == ("COMPLETED", 3)


def test_a_paused_study_completes_when_it_is_resumed(api: Any) -> None:
    name = api.create(limits={"trials": 1})
    api.ask(name)
    api.verb(name, "pause")
    api.tell(name, 0, 0.5)
    assert api.state(name) == "PAUSED"
    assert api.verb(name, "resume").json()["state"] == "COMPLETED"


def test_only_so_many_run_at_one_time(either: Any) -> None:
    name = either.create(limits={"running": 2})
    assert len(either.ask(name, count=5)) == 2
    assert either.asked(name) == {"trials": [], "study_state": "ACTIVE"}
    either.tell(name, 0, 0.5)
    assert [trial["number"] for trial in either.ask(name, count=5)] == [2]
    either.work(name, 2, "release")
    assert [(trial["number"], trial["attempt"]) for trial in either.ask(name, count=5)] == [(2, 2)]
    either.limit(name, running=None)
    assert len(either.ask(name, count=3)) == 3


def test_sixteen_askers_never_hold_more_than_may_run(api: Any) -> None:
    name = api.create(limits={"running": 5})
    with ThreadPoolExecutor(16) as pool:
        given = list(pool.map(lambda n: api.ask(name, worker_id=f"w{n}"), range(16)))
    assert sum(map(len, given)) == 5
    assert api.study(name)["counts"]["RUNNING"] == 5


def test_seconds_count_from_the_creation(either: Any) -> None:
    name = either.create(limits={"seconds": 100})
    either.ask(name)
    either.clock.turn(50)
    either.work(name, 0, "heartbeat")
    either.clock.turn(50)
    assert either.asked(name) == {"trials": [], "study_state": "ACTIVE"}
    either.tell(name, 0, 0.5)
    assert either.state(name) == "COMPLETED"
    assert either.limit(name, seconds=200).json()["state"] == "ACTIVE"
    assert len(either.ask(name)) == 1


def test_an_idle_study_completes_by_time_alone(either: Any) -> None:
    name = either.create(limits={"seconds": 10})
    either.clock.turn(10)
    assert either.state(name) == "COMPLETED"


@pytest.mark.parametrize(("direction", "reached", "missed"), [("maximize", 0.8, 0.7), ("minimize", 0.2, 0.9)])
def test_a_target_ends_giving_out_and_running_trials_finish(
    api: Any, direction: str, reached: float, missed: float
) -> None:
    name = api.create(directions=[direction], limits={"target": reached})
    api.ask(name, count=3)
    api.tell(name, 0, missed)
    assert len(api.ask(name)) == 1
    api.tell(name, 1, reached)
    assert api.asked(name) == {"trials": [], "study_state": "ACTIVE"}
    api.tell(name, 2, missed)
    api.tell(name, 3, missed)
    assert api.state(name) == "COMPLETED"
    assert api.limit(name, target=None).json()["state"] == "ACTIVE"


def test_a_target_is_for_the_first_direction(api: Any) -> None:
    name = api.create(directions=["minimize", "maximize"], limits={"target": 0.5})
    api.ask(name)
    api.tell(name, 0, 0.6, 0.9)
    assert api.state(name) == "ACTIVE"
    api.ask(name)
    api.tell(name, 1, 0.5, 0.0)
    assert api.state(name) == "COMPLETED"


def test_releases_do_not_count_towards_the_attempts(api: Any) -> None:
    name = api.create(limits={"attempts": 2, "trials": 1})
    for attempt in range(1, 6):
        assert api.ask(name)[0]["attempt"] == attempt
        assert api.work(name, 0, "release", attempt=attempt).json()["state"] == "WAITING"
    for attempt in (6, 7):
        assert api.ask(name)[0]["attempt"] == attempt
        api.clock.turn(60)
    trial = api.trial(name, 0)
    assert (trial["state"], trial["reason"], trial["attempt"]) == ("FAIL", "attempts_exhausted", 7)


def test_enqueued_trials_never_given_out_stay_waiting_once_a_limit_is_reached(either: Any) -> None:
    name = either.create(limits={"trials": 1})
    either.enqueue(name, {"x": 0.1})
    either.enqueue(name, {"x": 0.2})
    either.finish(name, 0.5)
    study = either.study(name)
    assert (study["state"], study["counts"]["WAITING"]) == ("COMPLETED", 1)
    assert either.trial(name, 1)["state"] == "WAITING"
    either.limit(name, trials=2)
    (given,) = either.ask(name)
    assert (given["number"], given["params"]) == (1, {"x": 0.2})


def test_imported_trials_do_not_count(api: Any) -> None:
    name = api.create(limits={"trials": 1})
    api.imported(name, {"params": {"x": 0.1}, "state": "COMPLETE", "values": [0.5]})
    assert api.state(name) == "ACTIVE"
    assert len(api.ask(name, count=2)) == 1


def test_a_lowered_limit_of_attempts_holds_for_the_next_lapse(api: Any) -> None:
    name = api.create()
    api.ask(name)
    api.clock.turn(60)
    assert api.trial(name, 0)["state"] == "WAITING"
    api.limit(name, attempts=1)
    (again,) = api.ask(name)
    assert (again["number"], again["attempt"]) == (0, 2)
    api.clock.turn(60)
    assert api.trial(name, 0)["reason"] == "attempts_exhausted"
