"""Waiting asks against a real server: what wakes them, and what sends them home at once."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from hpo_service.api.app import create_app
from hpo_service.operations import asking, change_poller
from hpo_service.settings import Settings
from tests.patience import PATIENCE_SECONDS

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
AT_ONCE = 15  # seconds; whoever is not answered at once waits for 20
_numbers = itertools.count()


class Server:
    """The app in uvicorn in a thread, on a loopback port, by the real clock."""

    def __init__(self, url: str) -> None:
        config = uvicorn.Config(
            create_app(Settings(database_url=url), with_keys=False),
            host="127.0.0.1",
            port=0,
            log_level="warning",
            lifespan="on",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=40)
        self.url = f"http://127.0.0.1:{port}"
        self.pool = ThreadPoolExecutor(8)

    def close(self) -> None:
        self.pool.shutdown()
        self.http.close()
        self._server.should_exit = True
        self._thread.join(PATIENCE_SECONDS)

    def post(self, path: str, json: Any = None) -> Any:
        answer = self.http.post(path, json=json) if json is not None else self.http.post(path)
        assert answer.status_code < 400, answer.text
        return answer.json()

    def create(self, **fields: Any) -> str:
        name = f"poll-{next(_numbers)}"
        body = {"name": name, "search_space": SPACE, "sampler": {"name": "random", "seed": 1}, **fields}
        return str(self.post("/v1/studies", body)["name"])

    def ask(self, name: str | None, wait: float = 0, **fields: Any) -> Any:
        body = {"worker_id": "w", "request_id": f"poll-{next(_numbers)}", "wait_seconds": wait, **fields}
        path = "/v1/trials:ask" if name is None else f"/v1/studies/{name}/trials:ask"
        return self.post(path, body)

    def tell(self, name: str, number: int) -> None:
        body = {"attempt": 1, "state": "COMPLETE", "values": [0.5]}
        self.post(f"/v1/studies/{name}/trials/{number}:tell", body)

    def waiting(self, name: str | None, **fields: Any) -> Future[Any]:
        """An ask that waits by now."""
        future = self.pool.submit(self.ask, name, 20, **fields)
        time.sleep(0.3)
        assert not future.done(), future.result()
        return future


@pytest.fixture(scope="module")
def server(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("polls") / "hpo.db"
    shutil.copy(_sqlite_template, path)
    server = Server(f"sqlite:///{path}")
    yield server
    server.close()


def limit(server: Server, name: str, **limits: Any) -> None:
    answer = server.http.patch(f"/v1/studies/{name}", json={"limits": limits})
    assert answer.status_code == 200


@pytest.fixture
def only_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is told, or waits for all of its time: neither it nor anybody else looks meanwhile."""

    async def no_poll(_poller: change_poller.ChangePoller) -> None: ...

    monkeypatch.setattr(change_poller.ChangePoller, "poll", no_poll)
    monkeypatch.setattr(asking, "CALLER_LOOKED_AT_SECONDS", 3600.0)


WAKES: dict[str, tuple[dict[str, Any], Callable[[Server, str], Any], Callable[[Server, str], Any]]] = {
    # what: (the study, what is done before, what wakes)
    "resume": (
        {},
        lambda s, n: s.post(f"/v1/studies/{n}:pause"),
        lambda s, n: s.post(f"/v1/studies/{n}:resume"),
    ),
    "release": (
        {"limits": {"trials": 1}},
        lambda s, n: s.ask(n),
        lambda s, n: s.post(f"/v1/studies/{n}/trials/0:release", {"attempt": 1}),
    ),
    "a raised limit": (
        {"limits": {"trials": 1}},
        lambda s, n: s.ask(n),
        lambda s, n: limit(s, n, trials=2),
    ),
    "more may run": (
        {"limits": {"running": 1}},
        lambda s, n: s.ask(n),
        lambda s, n: limit(s, n, running=2),
    ),
    "one fewer runs": (
        {"limits": {"running": 1}},
        lambda s, n: s.ask(n),
        lambda s, n: s.tell(n, 0),
    ),
    "the next round": (
        {"narrowing": {"rounds": 2, "trials_per_round": 1}},
        lambda s, n: s.ask(n),
        lambda s, n: s.tell(n, 0),
    ),
}


@pytest.mark.slow
@pytest.mark.usefixtures("only_told")
@pytest.mark.parametrize("what", WAKES)
def test_a_waiting_ask_wakes_when_something_can_be_given(server: Server, what: str) -> None:
    fields, before, wake = WAKES[what]
    name = server.create(**fields)
    before(server, name)
    asked = server.waiting(name)
    wake(server, name)
    assert len(asked.result()["trials"]) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("only_told")
@pytest.mark.parametrize("what", ["a new study", "an enqueue", "the sealed test"])
def test_the_first_form_wakes_too(server: Server, what: str) -> None:
    kind = f"kind-{next(_numbers)}"
    objective: dict[str, Any] = {"kind": kind}
    name = ""
    if what == "an enqueue":
        name = server.create(objective=objective)
        server.post(f"/v1/studies/{name}:pause")
    if what == "the sealed test":
        kind = "neural_network"
        space = {"learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}}
        name = server.create(objective={"kind": kind}, search_space=space, limits={"trials": 1})
        server.ask(name)
        server.tell(name, 0)
    asked = server.waiting(None, objectives=[kind])
    if what == "a new study":
        server.create(objective=objective)
    elif what == "an enqueue":
        server.post(f"/v1/studies/{name}/trials:enqueue", {"trials": [{"params": {"x": 0.5}}]})
        server.post(f"/v1/studies/{name}:resume")
    else:
        server.post(f"/v1/studies/{name}:test", {})
    assert len(asked.result()["trials"]) == 1


@pytest.mark.usefixtures("only_told")
@pytest.mark.parametrize(("verb", "state"), [("stop", "STOPPING"), ("cancel", "CANCELLED")])
def test_a_waiting_ask_is_answered_when_the_study_ends(server: Server, verb: str, state: str) -> None:
    name = server.create(limits={"running": 1})
    server.ask(name)
    asked = server.waiting(name)
    began = time.monotonic()
    server.post(f"/v1/studies/{name}:{verb}")
    assert asked.result() == {"trials": [], "study_state": state}
    assert time.monotonic() - began < AT_ONCE
    began = time.monotonic()
    assert server.ask(name, wait=20) == {"trials": [], "study_state": state}
    assert time.monotonic() - began < AT_ONCE


def test_a_waiting_ask_is_answered_when_the_study_completes_and_when_it_is_deleted(server: Server) -> None:
    name = server.create(limits={"trials": 1})
    server.ask(name)
    asked = server.waiting(name)
    server.tell(name, 0)
    assert asked.result() == {"trials": [], "study_state": "COMPLETED"}
    began = time.monotonic()
    assert server.ask(name, wait=20)["study_state"] == "COMPLETED"
    assert time.monotonic() - began < AT_ONCE
    gone = server.create(limits={"running": 1})
    server.ask(gone)
    body = {"worker_id": "w", "request_id": "gone", "wait_seconds": 20}
    deleted = server.pool.submit(server.http.post, f"/v1/studies/{gone}/trials:ask", json=body)
    time.sleep(0.3)
    server.http.delete(f"/v1/studies/{gone}?force=true")
    assert deleted.result(timeout=PATIENCE_SECONDS).status_code == 404


@pytest.mark.slow
def test_a_limit_of_seconds_ends_the_wait(server: Server) -> None:
    name = server.create(limits={"seconds": 3, "running": 1})
    server.ask(name)
    asked = server.waiting(name)
    server.tell(name, 0)
    assert len(asked.result()["trials"]) == 1
    asked = server.pool.submit(server.ask, name, 20)
    time.sleep(3)
    server.tell(name, 1)
    assert asked.result(timeout=PATIENCE_SECONDS) == {"trials": [], "study_state": "COMPLETED"}


@pytest.mark.slow
def test_a_lease_that_runs_out_wakes_who_waits(server: Server) -> None:
    name = server.create(limits={"trials": 1}, lease_seconds=1)
    server.ask(name)
    began = time.monotonic()
    (again,) = server.ask(name, wait=20)["trials"]
    assert (again["number"], again["attempt"]) == (0, 2)
    assert time.monotonic() - began < AT_ONCE


@pytest.mark.slow
def test_a_paused_study_lets_who_asks_wait_until_the_time_is_over(server: Server) -> None:
    name = server.create()
    server.post(f"/v1/studies/{name}:pause")
    began = time.monotonic()
    assert server.ask(name, wait=1.5) == {"trials": [], "study_state": "PAUSED"}
    assert 1.4 < time.monotonic() - began < AT_ONCE


@pytest.mark.slow
def test_of_many_that_wait_each_gets_its_own_trial(server: Server) -> None:
    name = server.create()
    server.post(f"/v1/studies/{name}:pause")
    asked = [server.waiting(name) for _ in range(6)]
    server.post(f"/v1/studies/{name}:resume")
    assert sorted(one.result()["trials"][0]["number"] for one in asked) == list(range(6))


@pytest.mark.usefixtures("only_told")
def test_a_worker_that_is_drained_while_it_waits_goes_home(server: Server) -> None:
    name = server.create(limits={"running": 1})
    worker = f"drained-{next(_numbers)}"
    server.ask(name, worker_id=worker)
    asked = server.waiting(name, worker_id=worker)
    began = time.monotonic()
    server.post(f"/v1/workers/{worker}:drain")
    answer = asked.result()
    assert (answer["trials"], answer["drain"]) == ([], True)
    assert time.monotonic() - began < AT_ONCE


@pytest.mark.slow
def test_who_has_hung_up_is_given_nothing(server: Server) -> None:
    name = server.create()
    server.post(f"/v1/studies/{name}:pause")
    body = {"worker_id": "w", "request_id": f"hung-{next(_numbers)}", "wait_seconds": 20}
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{server.url}/v1/studies/{name}/trials:ask", json=body, timeout=0.5)
    time.sleep(0.3)
    server.post(f"/v1/studies/{name}:resume")
    time.sleep(0.5)
    assert server.http.get(f"/v1/studies/{name}").json()["counts"]["RUNNING"] == 0


def events(
    server: Server, name: str, last: int | None, count: int, act: Callable[[], None]
) -> list[tuple[int, str, Any]]:
    """Follow the study until so many events have come, after `act` has been done with the stream open."""

    async def follow() -> list[tuple[int, str, Any]]:
        found: list[tuple[int, str, Any]] = []
        headers = {} if last is None else {"Last-Event-ID": str(last)}
        async with (
            httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE_SECONDS) as http,
            http.stream("GET", f"/v1/studies/{name}/events", headers=headers) as stream,
        ):
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = stream.aiter_lines()
            await anext(lines)
            acting = asyncio.create_task(asyncio.to_thread(act))
            event: dict[str, str] = {}
            while len(found) < count:
                line = await asyncio.wait_for(anext(lines), 8)
                if line == "" and "data" in event:
                    found.append((int(event["id"]), event["event"], json.loads(event["data"])))
                    event = {}
                elif ": " in line and not line.startswith(":"):
                    key, value = line.split(": ", 1)
                    event[key] = value
            await acting
        return found

    return asyncio.run(follow())


def test_events_come_in_order_as_the_resource_now_reads(server: Server) -> None:
    name = server.create()

    def act() -> None:
        server.ask(name)
        server.tell(name, 0)
        server.post(f"/v1/studies/{name}:pause")

    found = events(server, name, None, 2, act)
    ids = [number for number, _, _ in found]
    assert ids == sorted(ids)
    last_of = {kind: data for _, kind, data in found}
    assert set(last_of) <= {"trial", "study", "round"}
    everything = events(server, name, 0, 3, lambda: None)
    by_kind = {kind: data for _, kind, data in everything}
    assert by_kind["trial"] == server.http.get(f"/v1/studies/{name}/trials/0").json()
    assert by_kind["study"] == server.http.get(f"/v1/studies/{name}").json()
    assert by_kind["round"] == by_kind["study"]["rounds"][0]


def test_each_event_has_an_id_of_its_own_so_that_none_is_lost_between_two(server: Server) -> None:
    name = server.create()
    everything = events(server, name, 0, 2, lambda: None)
    assert {kind for _, kind, _ in everything} == {"study", "round"}
    resumed = events(server, name, everything[0][0], 1, lambda: None)
    assert resumed[0][1] == everything[1][1]


def test_following_goes_on_after_the_last_event(server: Server) -> None:
    name = server.create()
    for _ in range(5):
        server.ask(name)
    everything = events(server, name, 0, 7, lambda: None)
    trials = [(number, data["number"]) for number, kind, data in everything if kind == "trial"]
    assert [n for _, n in trials] == list(range(5))
    rest = events(server, name, trials[2][0], 2, lambda: None)
    assert [data["number"] for _, kind, data in rest if kind == "trial"] == [3, 4][: len(rest)]


def test_the_tests_progress_is_an_event_of_the_study(server: Server) -> None:
    space = {"learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}}
    name = server.create(objective={"kind": "neural_network"}, search_space=space, limits={"trials": 1})
    server.ask(name)
    server.tell(name, 0)
    server.post(f"/v1/studies/{name}:test", {})
    result = {
        "attempt": 1,
        "state": "COMPLETE",
        "test_accuracy": 0.7,
        "validation_accuracy": 0.7,
        "members": [],
        "dataset_sha256": "0" * 64,
    }

    def act() -> None:
        server.ask(None, objectives=["neural_network"])
        server.post(f"/v1/studies/{name}/test:tell", result)

    (_, kind, study), *_ = events(server, name, None, 1, act)
    assert (kind, study["test"]["state"]) in (("study", "RUNNING"), ("study", "COMPLETE"))
