"""Any calls in any order: the counters stay true, and a restarted server reads what the one before it said."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hpo_service.api.app import create_app
from hpo_service.settings import Settings

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}, "c": {"type": "categorical", "choices": ["a", "b", "c"]}}
NAME = "history"
BASE = f"/v1/studies/{NAME}"
CALLS = 120

WIDER = {"type": "float", "low": -1.0, "high": 1.0}
STUDIES: dict[str, dict[str, Any]] = {
    "plain": {"limits": {"attempts": 2}},
    "limited": {"limits": {"trials": 25, "running": 4, "attempts": 2}},
    "rounds": {"narrowing": {"rounds": 4, "trials_per_round": 6, "keep": 0.5, "expand": True}},
    "pruned": {"pruner": {"name": "median", "params": {"n_startup_trials": 2}}, "sampler": {"name": "tpe", "seed": 1}},
    "by_run": {"search_space": {}, "define_by_run": True, "sampler": {"name": "tpe", "seed": 1}},
    "grid": {"search_space": {"x": {"type": "int", "low": 0, "high": 9}}, "sampler": {"name": "grid", "seed": 1}},
}


class History:
    """Draws one call after the other; sends each to one of the servers."""

    def __init__(self, servers: list[TestClient], clock: Any, seed: int, who: str = "w") -> None:
        self.servers = servers
        self.clock = clock
        self.rng = random.Random(seed)
        self.asked = 0
        self.who = who
        self.grants: set[tuple[int, int]] = set()
        self.results: dict[int, Any] = {}
        self.suggested: dict[tuple[int, str], Any] = {}

    def send(self, method: str, path: str, json: Any = None) -> Any:
        server = self.rng.choice(self.servers)
        answer = server.request(method, path) if json is None else server.request(method, path, json=json)
        assert answer.status_code < 500, f"{method} {path} {json}: {answer.text}"
        return answer

    def attempt(self) -> tuple[int, int]:
        """Often one that was given out, sometimes one that never was."""
        if not self.grants or self.rng.random() < 0.05:
            return self.rng.randrange(30), self.rng.randrange(4)
        recent = sorted(self.grants)[-12:] if self.rng.random() < 0.8 else sorted(self.grants)
        return self.rng.choice(recent)

    def ask(self) -> None:
        body, is_new = self.body_of_ask()
        self.note_given(self.send("POST", f"{BASE}/trials:ask", body).json(), is_new)

    def body_of_ask(self) -> tuple[dict[str, Any], bool]:
        """And whether it is a new request: now and then the one before is repeated."""
        self.asked += 1
        request = self.asked - (self.rng.random() < 0.2)
        body = {
            "worker_id": f"{self.who}{self.asked % 5}",
            "request_id": f"{self.who}{request}",
            "count": self.rng.choice([1, 1, 2, 5]),
        }
        return body, request == self.asked

    def note_given(self, answer: Any, is_new: bool) -> None:
        for given in answer["trials"]:
            grant = (given["number"], given["attempt"])
            assert not is_new or grant not in self.grants, "an attempt is given once"
            self.grants.add(grant)

    def tell_and_ask(self) -> None:
        number, body = self.body_of("tell")
        ask, is_new = self.body_of_ask()
        answer = self.send("POST", f"{BASE}/trials/{number}:tell", {**body, "next": ask})
        self.note(number, "tell", answer.status_code, answer.json())
        if answer.status_code == 200:
            self.note_given(answer.json()["next"], is_new)

    def body_of(self, call: str) -> tuple[int, dict[str, Any]]:
        number, attempt = self.attempt()
        body: dict[str, Any] = {"attempt": attempt}
        if call == "report":
            body["reports"] = [
                {"step": self.rng.randrange(5), "value": self.rng.choice([0.1, 0.5, "NaN", 0.9])}
                for _ in range(self.rng.randrange(3))
            ]
        if call == "suggest":
            names = self.rng.sample(["x", "y", "z"], self.rng.choice([1, 1, 2]))
            body["parameters"] = {name: self.rng.choice([SPACE["x"], SPACE["x"], WIDER]) for name in names}
        if call == "tell":
            body |= self.rng.choice(
                [
                    {"state": "COMPLETE", "values": [round(self.rng.random(), 2)]},
                    {"state": "COMPLETE", "values": [round(self.rng.random(), 2)]},
                    {"state": "PRUNED"},
                    {"state": "FAIL", "reason": "broken"},
                    {"state": "COMPLETE", "values": ["NaN"]},
                    {"state": "COMPLETE", "values": ["-Infinity"]},
                ]
            )
        return number, body

    def note(self, number: int, call: str, status: int, body: Any) -> None:
        if call == "tell" and status == 200:
            told = (body["state"], body["values"])
            assert self.results.setdefault(number, told) == told, "one trial, one result"
        if call == "suggest" and status == 200:
            for name, value in body["params"].items():
                assert self.suggested.setdefault((number, name), value) == value, "asked again, it is the same"

    def work(self, call: str) -> None:
        number, body = self.body_of(call)
        answer = self.send("POST", f"{BASE}/trials/{number}:{call}", body)
        self.note(number, call, answer.status_code, answer.json())

    def batch(self) -> None:
        calls: list[dict[str, Any]] = []
        for _ in range(self.rng.randrange(1, 8)):
            call = self.rng.choice(["report", "heartbeat", "suggest", "tell", "release"])
            number, body = self.body_of(call)
            calls.append({"study": NAME, "number": number, "call": call, **body})
        answer = self.send("POST", "/v1/trials:batch", {"calls": calls})
        for made, result in zip(calls, answer.json()["results"], strict=True):
            self.note(made["number"], made["call"], result["status"], result["body"])

    def enqueue(self) -> None:
        params = [{}, {"x": self.rng.choice([0, 1])}, {"x": 5}]
        trials = [{"params": self.rng.choice(params)} for _ in range(self.rng.randrange(1, 4))]
        self.send("POST", f"{BASE}/trials:enqueue", {"trials": trials})

    def take_in(self) -> None:
        trial = {"params": {"x": 1}, "state": "COMPLETE", "values": [self.rng.choice([0.3, 0.95])]}
        self.send("POST", f"{BASE}/trials:import", {"trials": [trial] * self.rng.randrange(1, 3)})

    def limit(self) -> None:
        limits = {"trials": self.rng.choice([20, 22, 24]), "running": self.rng.choice([None, 3, 8])}
        self.send("PATCH", BASE, {"limits": limits})

    def step(self) -> None:
        calls: list[tuple[int, Callable[[], Any]]] = [
            (30, self.ask),
            (8, lambda: self.work("tell")),
            (8, self.tell_and_ask),
            (8, lambda: self.work("report")),
            (4, lambda: self.work("heartbeat")),
            (8, lambda: self.work("suggest")),
            (4, lambda: self.work("release")),
            (15, self.batch),
            (3, self.enqueue),
            (2, self.take_in),
            (2, self.limit),
            (3, lambda: self.send("POST", f"{BASE}/trials/{self.attempt()[0]}:stop")),
            (2, lambda: self.send("POST", f"{BASE}:pause")),
            (5, lambda: self.send("POST", f"{BASE}:resume")),
            (1, lambda: self.send("POST", f"{BASE}:narrow", {"keep": 0.5})),
            (5, lambda: self.clock.turn(self.rng.choice([1, 20, 61]))),
            (2, lambda: self.send("GET", f"{BASE}/trials?order_by=value")),
        ]
        weights, choices = zip(*calls, strict=True)
        self.rng.choices(choices, weights)[0]()


def everything(server: TestClient) -> dict[str, Any]:
    study = server.get(BASE).json()
    trials = server.get(f"{BASE}/trials?page_size=1000").json()["items"]
    attempts = [server.get(f"{BASE}/trials/{trial['number']}/attempts").json()["items"] for trial in trials]
    by_value = server.get(f"{BASE}/trials?order_by=value&page_size=1000").json()["items"]
    return {"study": study, "trials": trials, "attempts": attempts, "by_value": by_value}


def check(found: dict[str, Any], *histories: History) -> None:
    study, trials = found["study"], found["trials"]
    assert [trial["number"] for trial in trials] == list(range(len(trials)))
    states = Counter(trial["state"] for trial in trials)
    assert study["counts"] == {state: states.get(state, 0) for state in study["counts"]}
    for round_ in study["rounds"]:
        members = [trial["number"] for trial in trials if trial["round"] == round_["round"]]
        assert round_["trials"] == len(members)
    best = max(
        (t for t in trials if t["state"] == "COMPLETE"),
        key=lambda t: (float(t["values"][0]), -t["number"]),
        default=None,
    )
    assert study["best"] == (best and {key: best[key] for key in ("number", "params", "values", "attempt")})
    for trial, attempts in zip(trials, found["attempts"], strict=True):
        assert [attempt["attempt"] for attempt in attempts] == list(range(1, trial["attempt"] + 1))
        assert all(attempt["end"] is not None for attempt in attempts[:-1])
        assert (trial["finished_at"] is not None) is (trial["state"] in ("COMPLETE", "PRUNED", "FAIL"))
        if trial["state"] == "RUNNING":
            assert attempts[-1]["end"] is None
        steps = [report["step"] for report in trial["reports"]]
        assert steps == sorted(set(steps))
    for history in histories:
        for number, told in history.results.items():
            assert (trials[number]["state"], trials[number]["values"]) == told, "what was acknowledged stays"
        for (number, name), value in history.suggested.items():
            assert trials[number]["params"][name] == value, "what was suggested stays"
    grants = [grant for history in histories for grant in history.grants]
    assert len(grants) == len(set(grants)), "an attempt is given to one"
    assert set(grants) <= {
        (trial["number"], attempt["attempt"])
        for trial, attempts in zip(trials, found["attempts"], strict=True)
        for attempt in attempts
    }


@pytest.fixture
def opened(database_url: str, clock: Any) -> Iterator[Callable[[], TestClient]]:
    """Start one more server on the database."""
    with ExitStack() as servers:

        def start() -> TestClient:
            app = create_app(Settings(database_url=database_url), clock, with_reaper=False, with_keys=False)
            return servers.enter_context(TestClient(app, raise_server_exceptions=False))

        start.stop = servers.close  # type: ignore[attr-defined]
        yield start


@pytest.mark.slow
@pytest.mark.parametrize("kind", STUDIES)
def test_after_any_history_a_restarted_server_says_the_same(
    opened: Any, clock: Any, database_url: str, kind: str
) -> None:
    servers = [opened()] if database_url.startswith("sqlite") else [opened(), opened()]
    body = {"name": NAME, "search_space": SPACE, "sampler": {"name": "random", "seed": 1}, **STUDIES[kind]}
    assert servers[0].post("/v1/studies", json=body).status_code == 201
    history = History(servers, clock, seed=sum(map(ord, kind)))
    for number in range(CALLS):
        history.step()
        if number % 50 == 49:
            check(everything(servers[0]), history)
    before = [everything(server) for server in servers]
    assert all(one == before[0] for one in before)
    check(before[0], history)
    opened.stop()
    again = opened()
    assert everything(again) == before[0]
    history.servers = [again]
    for _ in range(30):
        history.step()
    check(everything(again), history)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["limited", "rounds", "by_run"])
def test_after_many_histories_at_once_a_restarted_server_says_the_same(
    opened: Any, clock: Any, database_url: str, kind: str
) -> None:
    servers = [opened()] if database_url.startswith("sqlite") else [opened(), opened()]
    body = {"name": NAME, "search_space": SPACE, "sampler": {"name": "random", "seed": 1}, **STUDIES[kind]}
    assert servers[0].post("/v1/studies", json=body).status_code == 201
    histories = [History(servers, clock, seed, who=f"{seed}-") for seed in range(8)]

    def live(history: History) -> None:
        for _ in range(25):
            history.step()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(live, histories))
    before = [everything(server) for server in servers]
    assert all(one == before[0] for one in before)
    check(before[0], *histories)
    opened.stop()
    assert everything(opened()) == before[0]
