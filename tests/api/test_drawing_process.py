"""The process that draws for the server: what it draws, and what happens when it dies or hangs."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hpo_service.api.app import create_app
from hpo_service.operations import long_draws
from hpo_service.reading import reading_process
from hpo_service.settings import Settings

SPACE = {f"p{number}": {"type": "float", "low": 0.0, "high": 1.0} for number in range(6)}
_requests = itertools.count()


def eventually(holds: Callable[[], Any], seconds: float = 120.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it has not come to hold"
        time.sleep(0.05)
    return found


pytestmark = pytest.mark.timeout(400)  # importing what samplers need takes a while on a loaded machine


@pytest.fixture
def client(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setattr(reading_process, "AGAIN_SECONDS", 0.5)
    monkeypatch.setattr(long_draws, "PATIENCE_SECONDS", 60.0)
    app = create_app(Settings(database_url=database_url), with_reaper=False, with_keys=False, with_reading_process=True)
    with TestClient(app, raise_server_exceptions=False) as opened:
        yield opened


def create(client: TestClient, name: str, sampler: dict[str, Any], **fields: Any) -> None:
    spec = {"name": name, "search_space": SPACE, "sampler": {"seed": 7, **sampler}, "limits": {"trials": 50}, **fields}
    answer = client.post("/v1/studies", json=spec)
    assert answer.status_code == 201, answer.text


def answer(client: TestClient, name: str, count: int = 1) -> Any:
    body = {"worker_id": "w", "request_id": f"process-{next(_requests)}", "count": count}
    return client.post(f"/v1/studies/{name}/trials:ask", json=body)


def ask(client: TestClient, name: str, count: int = 1) -> list[dict[str, Any]]:
    answered = answer(client, name, count)
    assert answered.status_code == 200, answered.text
    trials: list[dict[str, Any]] = answered.json()["trials"]
    return trials


def pid(client: Any) -> int | None:
    number: int | None = client.app.state.service.long_draws._process.pid
    return number


def is_up(client: Any) -> bool:
    return bool(client.app.state.service.long_draws._process.is_up)


@pytest.mark.slow
def test_it_is_started_by_the_first_study_that_needs_it_and_draws_what_the_server_would(client, monkeypatch):
    create(client, "quick", {"name": "random"})
    ask(client, "quick")
    assert pid(client) is None
    create(client, "one", {"name": "cmaes", "params": {"popsize": 4}})
    create(client, "other", {"name": "cmaes", "params": {"popsize": 4}})
    eventually(lambda: is_up(client))
    monkeypatch.setattr(long_draws.LongDraws, "_draw_here", None)
    drawn = [ask(client, "one")[0] for _ in range(3)] + ask(client, "one", 3)
    monkeypatch.undo()
    client.app.state.service.long_draws._process = None
    again = [ask(client, "other")[0] for _ in range(3)] + ask(client, "other", 3)
    assert [trial["params"] for trial in drawn] == [trial["params"] for trial in again]


@pytest.mark.slow
def test_after_kill_9_another_one_draws_on(client):
    create(client, "study", {"name": "nsgaii"})
    eventually(lambda: is_up(client))
    ask(client, "study")
    first = pid(client)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert [trial["number"] for trial in ask(client, "study", 2)] == [1, 2]
    eventually(lambda: is_up(client) and pid(client) != first)
    assert [trial["number"] for trial in ask(client, "study")] == [3]


@pytest.mark.slow
def test_one_that_hangs_is_ended_and_who_asked_is_told(client, monkeypatch):
    slow = {"n_ei_candidates": 10_000, "group": True, "n_startup_trials": 0}
    create(client, "quick", {"name": "cmaes"})
    create(client, "slow", {"name": "tpe", "params": slow})
    past = [{"params": dict.fromkeys(SPACE, n / 99), "state": "COMPLETE", "values": [n % 7]} for n in range(99)]
    assert client.post("/v1/studies/slow/trials:import", json={"trials": past}).status_code == 201
    eventually(lambda: is_up(client))
    ask(client, "quick")
    first = pid(client)
    monkeypatch.setattr(long_draws, "HANGS_SECONDS", 0.2)
    refused = answer(client, "slow")
    assert refused.status_code == 503
    assert "the sampler tpe of study 'slow' has not drawn" in refused.json()["detail"]
    eventually(lambda: is_up(client) and pid(client) != first)
    monkeypatch.setattr(long_draws, "HANGS_SECONDS", 60.0)
    assert [trial["number"] for trial in ask(client, "quick")] == [1]
    assert [trial["number"] for trial in ask(client, "slow")] == [99]
