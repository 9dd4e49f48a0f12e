"""What a worker that leaves sends of the trials it holds, in the little time that it has: few calls, each made once."""

from __future__ import annotations

import time

import pytest

from hpo_service.client import NEVER, Client
from hpo_worker.heartbeat import HeartbeatSender
from hpo_worker.loop import Worker, WorkRequest
from hpo_worker.objective import NeuralNetwork
from hpo_worker.outbox import HeldJob, Outbox


@pytest.fixture
def client(server):
    with Client(server, retries=NEVER) as client:
        yield client


@pytest.fixture
def outbox():
    return Outbox()


@pytest.fixture
def worker(client, outbox):
    return Worker(client, HeartbeatSender(client, outbox), outbox, NeuralNetwork(None), worker_id="me", studies=("s",))


def hold_all(client, outbox):
    now = time.monotonic()
    given = client.ask("me", "s", count=4)["trials"]
    jobs = [HeldJob("s", each["number"], each["attempt"], 60, 1, now, now) for each in given]
    for job in jobs:
        outbox.hold(job)
    return jobs


def test_all_trials_go_back_in_one_call(worker, client, outbox, stand_in):
    hold_all(client, outbox)

    worker.hand_back(client)

    assert sorted(stand_in.released) == [(number, 1) for number in range(4)]
    assert [verb for verb, _ in stand_in.calls] == ["ask", "batch"]
    assert worker.outcome_counts == {"released": 4}
    assert outbox.jobs == []


def test_a_result_that_is_known_is_told_and_the_rest_released(worker, client, outbox, stand_in):
    first, *_ = hold_all(client, outbox)
    outbox.finish(first, {"state": "COMPLETE", "values": [0.5]})

    worker.hand_back(client)

    assert stand_in.told[first.number]["values"] == [0.5]
    assert sorted(number for number, _ in stand_in.released) == [1, 2, 3]


def test_a_trial_that_is_not_there_any_more_keeps_no_other_from_going_back(worker, client, outbox, stand_in):
    hold_all(client, outbox)
    stand_in.gone.add(0)

    worker.hand_back(client)

    assert sorted(number for number, _ in stand_in.released) == [1, 2, 3]
    assert worker.outcome_counts == {"released": 3}


def test_trials_whose_grant_was_on_its_way_go_back_too(worker, client, stand_in):
    worker.asking = WorkRequest("s", 0.0, "the request", 4)
    client.ask("me", "s", count=4, request_id="the request")

    worker.hand_back(client)

    assert sorted(stand_in.released) == [(number, 1) for number in range(4)]
    assert stand_in.count("batch") == 1
