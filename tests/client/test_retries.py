"""What the client tries again, how long it waits, and what it never repeats."""

from __future__ import annotations

import random
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from hpo_service.client import NEVER, PATIENTLY, Client, Retries, Unreachable, http_transport
from hpo_service.domain.errors import LeaseLost, StudyStateConflict, Unavailable

ASKED = {"trials": [], "study_state": "ACTIVE"}


def test_an_ask_whose_answer_was_lost_is_the_same_ask_again(client, script, answering):
    answering(answering.lost, answering.lost, answering.answer(body=ASKED))
    assert client.ask("me", "mine", count=2) == ASKED
    assert len(script.requests) == 3
    assert len({request.body["request_id"] for request in script.requests}) == 1
    assert script.requests[0].body == script.requests[2].body


@pytest.mark.parametrize("add", ["enqueue", "import_trials"])
def test_trials_are_added_under_one_request_id(client, script, answering, add):
    answering(answering.lost, answering.answer(201, {"trials": []}))
    getattr(client, add)("mine", [{"params": {"x": 1}}])
    first, second = (request.body["request_id"] for request in script.requests)
    assert first == second


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_an_answer_that_means_later_is_waited_for(client, script, answering, status):
    answering(answering.problem(status, "unavailable"), answering.answer(body={"version": "1"}))
    assert client.version() == {"version": "1"}
    assert len(script.requests) == 2


def test_a_conflict_is_tried_again_only_when_the_server_says_so(client, script, answering):
    answering(answering.problem(409, "study_state", retryable=True), answering.answer(body={"state": "PAUSED"}))
    assert client.pause("mine") == {"state": "PAUSED"}
    answering(answering.problem(409, "study_state"))
    with pytest.raises(StudyStateConflict):
        client.pause("mine")
    assert len(script.requests) == 3


def test_a_lost_lease_is_not_tried_again(client, script, answering):
    answering(answering.problem(409, "lease_lost"))
    with pytest.raises(LeaseLost, match="because of lease_lost"):
        client.tell("mine", 3, 1, "COMPLETE", values=[0.5])
    assert len(script.requests) == 1


def test_the_deadline_ends_the_tries(script, answering):
    answering(answering.problem(503, "unavailable", Retry_After="3600"))
    client = Client(script.url, retries=Retries(deadline=2))
    with pytest.raises(Unavailable):
        client.version()
    assert len(script.requests) == 1


def test_the_wait_that_the_server_asks_for_is_kept(script, answering):
    answering(answering.problem(503, "unavailable", Retry_After="0.3"), answering.answer(body={}))
    began = time.monotonic()
    Client(script.url, retries=Retries(initial=0.001)).version()
    assert time.monotonic() - began >= 0.3


def test_narrowing_is_not_repeated_when_nobody_knows_whether_it_happened(client, script, answering):
    answering(answering.lost, answering.answer(201, {"round": 1}))
    with pytest.raises(Unreachable):
        client.narrow("mine")
    assert len(script.requests) == 1


def test_narrowing_is_repeated_when_it_was_refused_for_now(client, script, answering):
    answering(answering.problem(503, "unavailable"), answering.answer(201, {"round": 1}))
    assert client.narrow("mine") == {"round": 1}


def test_a_delete_whose_answer_was_lost_has_done_its_work(client, answering):
    answering(answering.lost, answering.problem(404, "not_found"))
    client.delete("mine")


def test_nobody_there_is_unreachable_with_the_reason():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unreachable, match="Connection refused"):
        Client(f"http://127.0.0.1:{port}", retries=Retries(deadline=0)).version()


def test_readiness_is_asked_once(client, script, answering):
    answering(answering.problem(503, "unavailable"))
    with pytest.raises(Unavailable):
        client.readyz()
    assert len(script.requests) == 1


def test_waits_grow_up_to_a_limit_and_are_drawn_from_all_of_the_range():
    retries, rng = Retries(initial=0.5, longest=5.0), random.Random(1)
    for failures, bound in [(1, 0.5), (2, 1.0), (4, 4.0), (5, 5.0), (1000, 5.0)]:
        waits = [retries.wait(failures, 0.0, rng) for _ in range(500)]
        assert 0 <= min(waits) < 0.05 * bound
        assert 0.95 * bound < max(waits) <= bound
    assert 7.0 <= retries.wait(1, 7.0, rng) <= 7.5


def test_a_connection_that_the_server_has_closed_meanwhile_is_not_used_again(script, answering):
    """Without any retry: on the old connection the call would have failed."""
    answering(answering.answer(body={"status": "ok"}, last=True), answering.answer(body={"status": "ok"}))
    with Client(script.url) as client:
        for _ in range(3):
            assert client.healthz() == {"status": "ok"}
            time.sleep(0.05)


@pytest.mark.slow
def test_threads_share_a_client_and_each_gets_its_own_answer(script, answering):
    answering(answering.answer(body={"ok": True}))
    with Client(script.url) as client, ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda _: client.healthz(), range(200)))
    assert answers == [{"ok": True}] * 200
    assert len(client._transport._pool._idle) <= 8


def test_heartbeats_are_tried_again_soon_and_for_as_long_as_before() -> None:
    rng = random.Random(1)
    retries = PATIENTLY.for_heartbeats()
    assert max(retries.wait(failures, 0.0, rng) for failures in range(1, 40)) <= 1.0
    assert retries.deadline == PATIENTLY.deadline
    assert NEVER.for_heartbeats().deadline == 0


def test_a_call_that_fails_again_and_again_is_said_in_a_sentence(client, script, answering, monkeypatch):
    # A logger of the test's own: a command that ran in this process may have set up the others for itself.
    said: list[str] = []
    monkeypatch.setattr(http_transport, "log", SimpleNamespace(warning=lambda text, *of_it: said.append(text % of_it)))
    answering(*[answering.lost] * 4, answering.answer(body={"version": "1"}))
    client.version()
    assert len(said) == 2, "one lost connection is no news, and neither are two"
    assert all(re.fullmatch(r"http://\S+ does not answer: .+; trying again in \d+\.\d s", text) for text in said)
