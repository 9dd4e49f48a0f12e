"""Draws that take long: who asked waits for them, and nobody else; what cannot be drawn in time is refused."""

from __future__ import annotations

import asyncio
import copy
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hpo_service.api.app import create_app
from hpo_service.domain.study import Study, StudySpec, StudyState
from hpo_service.operations import drawings, long_draws, tuners
from hpo_service.operations.long_draws import LongDraws
from hpo_service.settings import Settings
from hpo_service.store.batch_runner import BatchRunner
from hpo_service.store.database import Database
from hpo_service.tuning.tuner import Tuner
from tests.patience import PATIENCE_SECONDS

_requests = itertools.count()
SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}, "y": {"type": "float", "low": 0.0, "high": 1.0}}
LONG = {"name": "cmaes", "seed": 5, "params": {"popsize": 4}}


class HeldDraws:
    """Draws that do not end before they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.error: Exception | None = None
        draw = Tuner.draw

        def held(tuner: Tuner, *arguments: Any) -> Any:
            self.begun.set()
            assert self.go_on.wait(PATIENCE_SECONDS)
            if self.error is not None:
                raise self.error
            return draw(tuner, *arguments)

        monkeypatch.setattr(Tuner, "draw", held)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldDraws]:
    draws = HeldDraws(monkeypatch)
    yield draws
    draws.go_on.set()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def body(**fields: Any) -> dict[str, Any]:
    return {"worker_id": "w", "request_id": f"long-{next(_requests)}", **fields}


def told(client: TestClient, name: str, number: int, **fields: Any) -> Any:
    result = {"attempt": 1, "state": "COMPLETE", "values": [0.25], **fields}
    answer = client.post(f"/v1/studies/{name}/trials/{number}:tell", json=result)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_while_a_draw_is_under_way_everybody_else_is_answered(client, create, ask, held, pool):
    create(name="quick", search_space=SPACE)
    create(name="slow", search_space=SPACE, sampler=LONG)
    held.go_on.set()
    ask("quick")
    ask("slow")
    held.begun.clear()
    held.go_on.clear()
    drawing = pool.submit(ask, "slow")
    assert held.begun.wait(PATIENCE_SECONDS)

    assert client.post("/v1/studies/quick/trials/0:heartbeat", json={"attempt": 1}).status_code == 200
    assert client.post("/v1/studies/slow/trials/0:heartbeat", json={"attempt": 1}).status_code == 200
    told(client, "slow", 0)
    told(client, "quick", 0)
    assert client.get("/v1/studies/slow").json()["counts"]["COMPLETE"] == 1
    assert not drawing.done()

    held.go_on.set()
    assert [trial["number"] for trial in drawing.result(timeout=PATIENCE_SECONDS)] == [1]


def test_several_that_ask_at_once_get_trials_of_their_own_and_so_does_one_that_asks_for_several(create, ask, pool):
    create(search_space=SPACE, sampler=LONG)
    asked = [pool.submit(ask, "mnist", count=count) for count in (1, 3, 1, 2)]
    given = [trial for one in asked for trial in one.result(timeout=PATIENCE_SECONDS)]
    assert sorted(trial["number"] for trial in given) == list(range(7))
    assert len({trial["params"]["x"] for trial in given}) == 7


def test_an_ask_that_finds_its_turn_free_is_looked_at_once_and_written_once(create, ask, monkeypatch):
    create(name="slow", search_space=SPACE, sampler=LONG)
    looked: list[str] = []
    run_one = BatchRunner._run_call

    def noted(self: BatchRunner, batch: Any, call: Any) -> Any:
        if call.request_id is not None:
            looked.append(call.request_id)
        return run_one(self, batch, call)

    monkeypatch.setattr(BatchRunner, "_run_call", noted)
    ask("slow", request_id="mine")
    assert looked == ["mine", "mine"]


def test_limits_are_kept_and_enqueued_params_are_taken(client, create, ask, pool):
    create(search_space=SPACE, sampler=LONG, limits={"trials": 5})
    queued = {"trials": [{"params": {"x": 0.125}}, {"params": {"x": 0.5, "y": 0.5}}]}
    assert client.post("/v1/studies/mnist/trials:enqueue", json=queued).status_code == 201
    asked = [pool.submit(ask, "mnist", count=2) for _ in range(4)]
    given = {trial["number"]: trial["params"] for one in asked for trial in one.result(timeout=PATIENCE_SECONDS)}
    assert len(given) == 5
    assert given[0]["x"] == 0.125
    assert given[1] == {"x": 0.5, "y": 0.5}


@pytest.mark.slow
def test_what_a_trial_draws_is_the_same_after_a_restart_and_as_drawn_by_the_sampler_itself(
    database_url: str, clock: Any
) -> None:
    def opened(work: Callable[[TestClient], Any]) -> Any:
        app = create_app(Settings(database_url=database_url), clock, with_reaper=False, with_keys=False)
        with TestClient(app) as client:
            return work(client)

    spec = {
        "name": "mine",
        "search_space": SPACE,
        "sampler": {"name": "nsgaii", "seed": 3, "params": {"population_size": 4}},
    }

    def search(client: TestClient) -> dict[int, Any]:
        client.post("/v1/studies", json=spec)
        found = {}
        for _ in range(7):
            (trial,) = client.post("/v1/studies/mine/trials:ask", json=body()).json()["trials"]
            found[trial["number"]] = trial["params"]
            told(client, "mine", trial["number"], values=[trial["params"]["x"]])
        return found

    drawn = {**opened(search), **opened(search)}
    assert sorted(drawn) == list(range(14))
    opened(lambda client: client.delete("/v1/studies/mine"))
    again = opened(lambda client: {**search(client), **search(client)})
    assert again == drawn


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [LONG, {"name": "tpe", "seed": 1}])
def test_a_draw_that_fails_is_said_and_takes_nothing_along(client, create, ask, held, sampler):
    create(search_space=SPACE, sampler=sampler)
    held.go_on.set()
    ask()
    held.error = MemoryError("no room")
    refused = client.post("/v1/studies/mnist/trials:ask", json=body())
    assert refused.status_code == 503
    assert refused.json()["code"] == "unavailable"
    assert "failed to draw trial 1 of study 'mnist'" in refused.json()["detail"]
    assert "Retry-After" in refused.headers

    answer = told(client, "mnist", 0, next=body())
    assert (answer["state"], answer["next"]) == ("COMPLETE", {"trials": [], "study_state": "ACTIVE"})
    held.error = None
    assert [trial["number"] for trial in ask()] == [1]


@pytest.mark.slow
def test_who_has_waited_too_long_for_a_draw_is_told_so_and_finds_it_when_he_asks_again(
    client, create, ask, held, pool, monkeypatch
):
    monkeypatch.setattr(long_draws, "PATIENCE_SECONDS", 0.3)
    create(search_space=SPACE, sampler=LONG)
    create(name="other", search_space=SPACE)
    began = time.monotonic()
    refused = client.post("/v1/studies/mnist/trials:ask", json=body())
    assert refused.status_code == 503
    assert "has not drawn within" in refused.json()["detail"]
    assert time.monotonic() - began < 20
    held.go_on.set()
    assert [trial["number"] for trial in ask("other")] == [0]
    for _ in range(100):
        answer = client.post("/v1/studies/mnist/trials:ask", json=body())
        if answer.status_code == 200:
            break
    assert [trial["number"] for trial in answer.json()["trials"]] == [0]


def test_a_tell_with_next_is_kept_though_the_draw_takes_too_long(client, create, ask, held, monkeypatch):
    create(search_space=SPACE, sampler=LONG)
    held.go_on.set()
    ask()
    monkeypatch.setattr("hpo_service.operations.service.PATIENCE_SECONDS", 0.3)
    held.go_on.clear()
    answer = told(client, "mnist", 0, next=body())
    assert (answer["state"], answer["next"]["trials"]) == ("COMPLETE", [])
    assert client.get("/v1/studies/mnist").json()["counts"]["COMPLETE"] == 1


def test_a_tell_with_next_gives_out_what_takes_long_to_draw(client, create, ask):
    create(search_space=SPACE, sampler=LONG, limits={"trials": 2})
    ask()
    following = body()
    answer = told(client, "mnist", 0, next=following)
    assert [trial["number"] for trial in answer["next"]["trials"]] == [1]
    assert told(client, "mnist", 0, next=following)["next"] == answer["next"]
    last = told(client, "mnist", 1, next=body())
    assert last["next"] == {"trials": [], "study_state": "COMPLETED"}


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "pruner"), [("tpe", "none"), ("tpe", "median"), ("cmaes", "median")])
def test_a_long_history_is_read_outside_of_the_writer_page_by_page(client, create, ask, monkeypatch, sampler, pruner):
    """As the first call after a restart finds it: the tuner knows nothing yet."""
    monkeypatch.setattr(tuners, "MOST_READ_HERE", 10)
    monkeypatch.setattr(drawings, "PAGE", 7)
    threads: set[str] = set()
    catch_up = drawings.KnownStudy.catch_up

    def noted(known: Any, database: Any) -> Any:
        threads.add(threading.current_thread().name)
        return catch_up(known, database)

    monkeypatch.setattr(drawings.KnownStudy, "catch_up", noted)
    create(search_space=SPACE, sampler={"name": sampler, "seed": 2}, pruner={"name": pruner})
    imported = [
        {
            "params": {"x": number / 40, "y": 0.5},
            "state": "COMPLETE",
            "values": [number / 40],
            "reports": [{"step": 1, "value": number / 40}],
        }
        for number in range(40)
    ]
    assert client.post("/v1/studies/mnist/trials:import", json={"trials": imported}).status_code == 201
    (trial,) = ask()
    reports = {"attempt": 1, "reports": [{"step": 1, "value": 0.0}]}
    answer = client.post(f"/v1/studies/mnist/trials/{trial['number']}:report", json=reports)
    assert answer.json()["should_stop"] is (pruner == "median")
    assert threads
    assert "writer" not in threads
    assert "MainThread" not in threads


def spec_of(sampler: dict[str, Any], parameters: int, choices: int = 0, directions: int = 1) -> dict[str, Any]:
    of_one = (
        {"type": "categorical", "choices": list(range(choices))}
        if choices
        else {"type": "float", "low": 0.0, "high": 1.0}
    )
    return {
        "name": "large",
        "directions": ["minimize"] * directions,
        "search_space": {f"p{n}": of_one for n in range(parameters)},
        "sampler": sampler,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "option", "said"),
    [
        (
            spec_of({"name": "tpe", "params": {"n_ei_candidates": 10_000, "group": True}}, 60, 1_000),
            "n_ei_candidates",
            "10,000 candidates × 60 parameters (of up to 1,000 choices)",
        ),
        (
            spec_of({"name": "tpe", "params": {"n_ei_candidates": 10_000}}, 60, 0, 3),
            "n_ei_candidates",
            "10,000 candidates × 60 parameters would",
        ),
        (
            spec_of({"name": "nsgaii", "params": {"population_size": 10_000}}, 3, 0, 3),
            "population_size",
            "a population of 10,000 in 3 direction(s)",
        ),
    ],
)
def test_what_cannot_be_drawn_in_time_is_refused_with_the_number_that_could_be(client, spec, option, said):
    spec = copy.deepcopy(spec)
    refused = client.post("/v1/studies", json=spec)
    assert refused.status_code == 422
    (fault,) = refused.json()["errors"]
    assert fault["pointer"] == f"/sampler/params/{option}"
    assert said in fault["detail"]
    most = int(fault["detail"].rpartition(" ")[2].replace(",", ""))
    spec["sampler"]["params"][option] = most
    assert client.post("/v1/studies", json=spec).status_code == 201


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "parameters", "choices", "directions"),
    [("tpe", 100, 1_000, 1), ("tpe", 100, 0, 10), ("tpe", 60, 1_000, 2), ("nsgaii", 100, 0, 10), ("cmaes", 100, 0, 1)],
)
def test_what_is_drawn_with_the_defaults_is_never_refused(client, sampler, parameters, choices, directions):
    spec = spec_of({"name": sampler}, parameters, choices, directions)
    assert client.post("/v1/studies", json=spec).status_code == 201
    assert StudySpec.model_validate(spec).sampler.name == sampler


def test_a_call_that_is_cancelled_when_its_turn_comes_leaves_it_to_the_next(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/hpo.db", None, lambda _: None)
    study = Study(1, StudySpec.model_validate({"name": "s", "search_space": SPACE}), StudyState.ACTIVE, 0.0)

    async def calls() -> None:
        draws = LongDraws(database, None)

        async def call() -> None:
            async with draws.draw_lock(study):
                await asyncio.sleep(PATIENCE_SECONDS)

        async with draws.draw_lock(study):
            cancelled = asyncio.create_task(call())
            await asyncio.sleep(0.01)  # it waits
        await asyncio.sleep(0)  # the lock is free, and it has been told
        cancelled.cancel()
        await asyncio.wait({cancelled}, timeout=PATIENCE_SECONDS / 2)
        assert cancelled.cancelled()
        async with asyncio.timeout(PATIENCE_SECONDS), draws.draw_lock(study):
            pass

    try:
        asyncio.run(calls())
    finally:
        database.close()
