"""Two servers on one PostgreSQL database: whoever is asked, there is one truth."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hpo_service.api.app import create_app
from hpo_service.settings import Settings

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
NETWORK: dict[str, Any] = {
    "search_space": {"learning_rate": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True}},
    "objective": {"kind": "neural_network"},
}
_numbers = itertools.count()


class Pair:
    """Calls go to one server and the other in turn."""

    def __init__(self, one: TestClient, two: TestClient) -> None:
        self.servers = (one, two)

    def post(self, server: int, path: str, json: Any) -> Any:
        answer = self.servers[server % 2].post(path, json=json)
        assert answer.status_code < 500, answer.text
        return answer

    def create(self, **fields: Any) -> str:
        name = f"shared-{next(_numbers)}"
        body = {"name": name, "search_space": SPACE, "sampler": {"name": "random", "seed": 1}, **fields}
        assert self.post(0, "/v1/studies", body).status_code == 201
        return name

    def ask(self, server: int, name: str, **fields: Any) -> Any:
        body = {"worker_id": f"w{server}", "request_id": f"r{next(_numbers)}", **fields}
        answer = self.post(server, f"/v1/studies/{name}/trials:ask", body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def study(self, name: str) -> Any:
        one, two = (server.get(f"/v1/studies/{name}").json() for server in self.servers)
        assert one == two
        return one

    def at_once(self, count: int, call: Callable[[int], Any]) -> list[Any]:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(call, range(count)))


@pytest.fixture(scope="module")
def pair(migrated: Callable[[], str]) -> Iterator[Pair]:
    settings = Settings(database_url=migrated())
    with (
        TestClient(create_app(settings, with_reaper=False, with_keys=False), raise_server_exceptions=False) as one,
        TestClient(create_app(settings, with_reaper=False, with_keys=False), raise_server_exceptions=False) as two,
    ):
        yield Pair(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_sixteen_askers_of_two_servers_get_exactly_as_many_trials_as_the_limit(pair: Pair, sampler: str) -> None:
    name = pair.create(limits={"trials": 40}, sampler={"name": sampler, "seed": 1})

    def asker(number: int) -> list[tuple[int, int]]:
        held: list[tuple[int, int]] = []
        while True:
            answer = pair.ask(number, name, count=1 + number % 2)
            if not answer["trials"] and answer["study_state"] != "ACTIVE":
                return held
            for given in answer["trials"]:
                held.append((given["number"], given["attempt"]))
                body = {"attempt": given["attempt"], "state": "COMPLETE", "values": [given["params"]["x"]]}
                answer = pair.post(number + 1, f"/v1/studies/{name}/trials/{given['number']}:tell", body)
                assert answer.status_code == 200, "the other server takes it too"

    grants = [grant for held in pair.at_once(16, asker) for grant in held]
    assert sorted(grants) == [(number, 1) for number in range(40)]
    study = pair.study(name)
    assert (study["state"], study["counts"]["COMPLETE"]) == ("COMPLETED", 40)


@pytest.mark.slow
def test_one_request_at_both_servers_gives_out_one_trial(pair: Pair) -> None:
    name = pair.create()
    for round_ in range(5):
        answers = pair.at_once(8, partial(pair.ask, name=name, request_id=f"same-{name}-{round_}"))
        assert all(answer["trials"] == answers[0]["trials"] for answer in answers)
    assert pair.study(name)["counts"]["RUNNING"] == 5


@pytest.mark.slow
def test_one_request_to_any_study_at_both_servers_gives_out_one_trial(pair: Pair) -> None:
    kind = f"kind-{next(_numbers)}"
    names = [pair.create(objective={"kind": kind}) for _ in range(3)]
    for round_ in range(5):
        body = {"worker_id": "w", "request_id": f"any-{kind}-{round_}", "objectives": [kind]}
        answers = pair.at_once(8, partial(pair.post, path="/v1/trials:ask", json=body))
        assert all(answer.json() == answers[0].json() for answer in answers)
    assert sum(pair.study(name)["counts"]["RUNNING"] for name in names) == 5


@pytest.mark.slow
def test_one_name_at_both_servers_is_one_study(pair: Pair) -> None:
    for _ in range(3):
        name = f"race-{next(_numbers)}"
        body = {"name": name, "search_space": SPACE}
        answers = pair.at_once(8, partial(pair.post, path="/v1/studies", json=body))
        assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
        assert len({answer.json()["sampler"]["seed"] for answer in answers}) == 1

        def create_another(n: int, body: dict[str, Any] = body) -> Any:
            return pair.post(n, "/v1/studies", {**body, "metadata": {"n": n}})

        others = pair.at_once(8, create_another)
        assert {answer.status_code for answer in others} == {409}


def test_different_bodies_at_both_servers_leave_one_winner(pair: Pair) -> None:
    name = f"race-{next(_numbers)}"
    bodies = [{"name": name, "search_space": SPACE, "metadata": {"n": n}} for n in range(8)]
    answers = pair.at_once(8, lambda n: pair.post(n, "/v1/studies", bodies[n]))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    winner = next(n for n, answer in enumerate(answers) if answer.status_code == 201)
    assert pair.study(name)["metadata"] == {"n": winner}


def test_two_results_told_at_both_servers_are_one_result(pair: Pair) -> None:
    name = pair.create()
    pair.ask(0, name, count=5)
    for number in range(5):
        path = f"/v1/studies/{name}/trials/{number}:tell"

        def tell(n: int, path: str = path) -> Any:
            return pair.post(n, path, {"attempt": 1, "state": "COMPLETE", "values": [n / 10]})

        answers = pair.at_once(8, tell)
        taken = [n for n, answer in enumerate(answers) if answer.status_code == 200]
        assert len(taken) == 1
        assert {answers[n].json()["code"] for n in range(8) if n not in taken} == {"result_conflict"}
        assert pair.servers[0].get(f"/v1/studies/{name}/trials/{number}").json()["values"] == [taken[0] / 10]


def test_what_was_enqueued_is_given_to_one_of_them(pair: Pair) -> None:
    name = pair.create()
    body = {"request_id": "once", "trials": [{"params": {"x": n / 20}} for n in range(20)]}
    answers = pair.at_once(6, lambda n: pair.post(n, f"/v1/studies/{name}/trials:enqueue", body))
    assert {answer.status_code for answer in answers} == {201}
    assert all(answer.json() == answers[0].json() for answer in answers)
    given = [
        trial["number"]
        for answer in pair.at_once(10, lambda n: pair.ask(n, name, count=2))
        for trial in answer["trials"]
    ]
    assert sorted(given) == list(range(20))
    assert pair.study(name)["counts"] == {"WAITING": 0, "RUNNING": 20, "COMPLETE": 0, "PRUNED": 0, "FAIL": 0}


def test_only_one_next_round_begins(pair: Pair) -> None:
    name = pair.create(narrowing={"rounds": 3, "trials_per_round": 8})
    for round_ in range(3):
        given = pair.ask(round_, name, count=8)["trials"]
        assert len(given) == 8

        def tell(n: int, given: Any = given) -> Any:
            body = {"attempt": 1, "state": "COMPLETE", "values": [n]}
            return pair.post(n, f"/v1/studies/{name}/trials/{given[n]['number']}:tell", body).status_code

        assert set(pair.at_once(8, tell)) == {200}
    study = pair.study(name)
    assert (study["state"], [round_["trials"] for round_ in study["rounds"]]) == ("COMPLETED", [8, 8, 8])


def test_one_test_is_sealed_and_given_to_one_worker(pair: Pair) -> None:
    name = pair.create(**NETWORK, limits={"trials": 1})
    pair.ask(0, name)
    pair.post(0, f"/v1/studies/{name}/trials/0:tell", {"attempt": 1, "state": "COMPLETE", "values": [0.5]})
    answers = pair.at_once(8, lambda n: pair.post(n, f"/v1/studies/{name}:test", {"ensemble": 1}).status_code)
    assert sorted(answers) == [200] * 7 + [202]

    def ask(n: int) -> Any:
        body = {"worker_id": f"w{n}", "request_id": f"t{next(_numbers)}", "objectives": ["neural_network"]}
        return pair.post(n, "/v1/trials:ask", body).json()["trials"]

    jobs = [given for trials in pair.at_once(8, ask) for given in trials if given["study"] == name]
    assert [job["purpose"] for job in jobs] == ["test"]


@pytest.mark.slow
def test_new_workers_at_both_servers_do_not_wait_for_each_other_in_a_circle(pair: Pair) -> None:
    names = [pair.create(), pair.create()]
    for round_ in range(5):
        workers = [f"new-{round_}-{n}" for n in range(16)]

        def ask(n: int, workers: Any = workers) -> int:
            # The same workers are new to both servers, which hear of them in opposite orders.
            server, worker = n % 2, workers[n // 2] if n % 2 else workers[-1 - n // 2]
            body = {"worker_id": worker, "request_id": f"r{next(_numbers)}"}
            return int(pair.servers[server].post(f"/v1/studies/{names[server]}/trials:ask", json=body).status_code)

        assert set(pair.at_once(32, ask)) == {200}


def test_pausing_at_one_server_holds_at_the_other(pair: Pair) -> None:
    name = pair.create(limits={"trials": 100})
    assert pair.post(0, f"/v1/studies/{name}:pause", {}).status_code == 200
    assert pair.ask(1, name) == {"trials": [], "study_state": "PAUSED"}
    assert pair.post(1, f"/v1/studies/{name}:resume", {}).status_code == 200
    assert len(pair.ask(0, name)["trials"]) == 1
    assert pair.servers[1].delete(f"/v1/studies/{name}?force=true").status_code == 204
    assert pair.post(0, f"/v1/studies/{name}/trials/0:heartbeat", {"attempt": 1}).status_code == 404


def test_a_limit_changed_at_one_server_holds_at_the_other(pair: Pair) -> None:
    name = pair.create(limits={"trials": 10})
    path = f"/v1/studies/{name}"
    for server in (0, 1):
        assert len(pair.ask(server, name)["trials"]) == 1
    assert pair.servers[0].patch(path, json={"limits": {"trials": 3}}).status_code == 200
    assert [len(pair.ask(server, name, count=5)["trials"]) for server in (1, 0)] == [1, 0]
    assert pair.servers[1].patch(path, json={"limits": {"trials": 4}, "metadata": {"a": 1}}).status_code == 200
    assert [len(pair.ask(server, name, count=5)["trials"]) for server in (0, 1)] == [1, 0]
    study = pair.study(name)
    assert (study["limits"]["trials"], study["metadata"], study["counts"]["RUNNING"]) == (4, {"a": 1}, 4)


def test_failures_told_at_both_servers_count_together_and_pause_the_study_at_both(pair: Pair) -> None:
    name = pair.create(limits={"failures": 4})
    told = {"attempt": 1, "state": "FAIL", "reason": "no"}
    for number in range(4):
        assert pair.ask(number % 2, name)["trials"][0]["number"] == number
        assert pair.post(number % 2, f"/v1/studies/{name}/trials/{number}:tell", told).status_code == 200
    for server in (0, 1):
        study = pair.servers[server].get(f"/v1/studies/{name}").json()
        assert (study["state"], "4 trials" in study["state_reason"]) == ("PAUSED", True)
        assert pair.ask(server, name)["study_state"] == "PAUSED"
    assert pair.post(1, f"/v1/studies/{name}:resume", {}).status_code == 200
    assert pair.post(0, f"/v1/studies/{name}/trials/{pair.ask(0, name)['trials'][0]['number']}:tell", told)
    assert pair.study(name)["state"] == "ACTIVE"


def test_a_stop_at_one_server_is_learnt_from_the_other(pair: Pair) -> None:
    name = pair.create()
    pair.ask(0, name, count=2)
    pair.post(1, f"/v1/studies/{name}/trials/0:stop", {})
    kept = pair.post(0, f"/v1/studies/{name}/trials/0:report", {"attempt": 1, "reports": [{"step": 1, "value": 1}]})
    assert kept.json()["reason"] == "stopped"
    pair.post(1, f"/v1/studies/{name}:cancel", {})
    assert pair.post(0, f"/v1/studies/{name}/trials/1:heartbeat", {"attempt": 1}).json()["reason"] == "study_cancelled"
    assert pair.ask(0, name) == {"trials": [], "study_state": "CANCELLED"}


def test_a_waiting_ask_at_one_server_is_woken_by_the_other(pair: Pair) -> None:
    name = pair.create()
    pair.post(0, f"/v1/studies/{name}:pause", {})
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(pair.ask, 0, name, wait_seconds=10)
        pair.post(1, f"/v1/studies/{name}:resume", {})
        assert len(waiting.result(15)["trials"]) == 1


@pytest.mark.slow
def test_replicates_of_one_study_are_given_out_by_both_servers_once_each_and_known_to_both(pair: Pair) -> None:
    name = pair.create(limits={"trials": 6, "running": 6}, sampler={"name": "tpe", "seed": 1})
    path = f"/v1/studies/{name}/trials"

    def tell(server: int, given: Any, value: float) -> None:
        body = {"attempt": 1, "state": "COMPLETE", "values": [value]}
        assert pair.post(server, f"{path}/{given['number']}:tell", body).status_code == 200

    for given in pair.ask(0, name, count=6)["trials"]:
        tell(given["number"], given, given["number"] / 10)
    best = pair.study(name)["best"]
    asked = pair.at_once(8, lambda k: pair.post(k, f"/v1/studies/{name}:confirm", {"top": 3, "seeds": 4}).status_code)
    assert sorted(asked) == [200] * 7 + [202]
    given = [trial for answer in pair.at_once(8, partial(pair.ask, name=name, count=2)) for trial in answer["trials"]]
    assert sorted(trial["number"] for trial in given) == list(range(6, 18))
    seeds = {trial["number"]: trial["seed"] for trial in given}
    assert [len({seeds[number + k] for k in range(3)}) for number in range(6, 18, 3)] == [1, 1, 1, 1]
    pair.at_once(12, lambda k: tell(k, given[k], 5.0 + given[k]["number"] % 3))
    study = pair.study(name)
    assert (study["state"], study["best"]) == ("COMPLETED", best)
    assert [each["mean"] for each in study["confirmation"]["ranking"]] == [7.0, 6.0, 5.0]
    for server in (0, 1):
        assert pair.servers[server].patch(f"/v1/studies/{name}", json={"limits": {"trials": 8 + server}}).is_success
        assert pair.ask(server, name)["trials"][0]["number"] == 18 + server


def _by_run(pair: Pair, sampler: str) -> str:
    return pair.create(search_space={}, define_by_run=True, sampler={"name": sampler, "seed": 5}, direction="minimize")


def _trained(pair: Pair, name: str, server: Callable[[int], int], trials: int = 14) -> list[Any]:
    """The params of trials whose calls go to the servers that `server` names, call by call."""
    calls = itertools.count()
    trained = []
    for _ in range(trials):
        (given,) = pair.ask(server(next(calls)), name)["trials"]
        path = f"/v1/studies/{name}/trials/{given['number']}"
        params: dict[str, Any] = {}
        for parameter in ("x", "y", "late") if given["number"] > 6 else ("x", "y"):
            body = {"attempt": given["attempt"], "parameters": {parameter: SPACE["x"]}}
            params |= pair.post(server(next(calls)), f"{path}:suggest", body).json()["params"]
        told = {"attempt": given["attempt"], "state": "COMPLETE", "values": [params["x"] + params["y"]]}
        pair.post(server(next(calls)), f"{path}:tell", told)
        trained.append(params)
    return trained


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random"])
def test_a_space_grows_on_both_servers_and_draws_as_on_one(pair: Pair, sampler: str) -> None:
    in_turn, alone = _by_run(pair, sampler), _by_run(pair, sampler)
    assert _trained(pair, in_turn, lambda call: call) == _trained(pair, alone, lambda call: 0)
    assert list(pair.study(in_turn)["search_space"]) == ["x", "y", "late"]


def test_whoever_suggests_a_name_first_defines_it_for_both(pair: Pair) -> None:
    name = _by_run(pair, "random")
    given = [pair.ask(server, name)["trials"][0] for server in range(8)]
    ranges = [{"type": "float", "low": 0.0, "high": 1.0 + server % 2} for server in range(8)]

    def suggest(server: int) -> int:
        path = f"/v1/studies/{name}/trials/{given[server]['number']}:suggest"
        return int(pair.post(server, path, {"attempt": 1, "parameters": {"x": ranges[server]}}).status_code)

    answers = pair.at_once(8, suggest)
    assert sorted(answers) == [200] * 4 + [422] * 4
    high = pair.study(name)["search_space"]["x"]["high"]
    assert [status == 200 for status in answers] == [each["high"] == high for each in ranges]
