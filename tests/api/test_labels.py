"""What a study requires, what workers have, and what is known of those workers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hpo_service.api.app import create_app
from hpo_service.domain.key import Scope
from hpo_service.operations import keys
from hpo_service.settings import Settings
from tests.api.conftest import Api
from tests.patience import PATIENCE_SECONDS

A100 = {"gpu": "a100"}
OBJECTIVE = {"kind": "labelled"}


def given(own: Api, **fields: Any) -> list[str]:
    return [trial["study"] for trial in own.ask_any(**fields)["trials"]]


@pytest.mark.slow
def test_the_first_form_gives_only_what_the_labels_fit(own: Api) -> None:
    needs = own.create(objective=OBJECTIVE, requires=A100)
    assert given(own) == []
    assert given(own, labels={"gpu": "t4"}) == []
    assert given(own, labels={"GPU": "a100"}) == []
    assert given(own, labels={**A100, "zone": "b"}) == [needs]
    free = own.create(objective=OBJECTIVE)
    assert given(own) == [free]
    both = own.create(objective=OBJECTIVE, requires={**A100, "zone": "b"})
    assert {study for _ in range(6) for study in given(own, labels=A100)} == {needs, free}
    assert both in {study for _ in range(6) for study in given(own, labels={**A100, "zone": "b"})}


@pytest.mark.slow
def test_a_study_that_fits_is_found_behind_many_that_do_not(own: Api) -> None:
    for number in range(20):
        own.create(objective=OBJECTIVE, requires={"gpu": f"other-{number}"})
    last = own.create(objective=OBJECTIVE, requires=A100)
    assert given(own, labels=A100) == [last]


def test_the_second_form_says_both_sides(either: Api) -> None:
    name = either.create(requires={"gpu": "a100", "zone": "ä"})
    body = {"worker_id": "w", "request_id": "r", "labels": {"gpu": "t4"}}
    refused = either.post(f"/v1/studies/{name}/trials:ask", body)
    assert (refused.status_code, either.code(refused)) == (409, "study_state")
    assert '{"gpu": "a100", "zone": "ä"}' in refused.json()["detail"]
    assert '{"gpu": "t4"}' in refused.json()["detail"]
    assert either.study(name)["counts"]["RUNNING"] == 0

    (trial,) = either.ask(name, labels={"gpu": "a100", "zone": "ä"})
    told = either.work(name, trial["number"], "tell", state="COMPLETE", values=[1.0], next=body | {"labels": {}})
    assert told.status_code == 422  # as the contract has it: the next one needs no labels
    asked = {"worker_id": "w", "request_id": "next"}
    told = either.work(name, trial["number"], "tell", state="COMPLETE", values=[1.0], next=asked)
    assert len(told.json()["next"]["trials"]) == 1


def test_requirements_read_back_and_are_part_of_what_a_study_is(either: Api) -> None:
    name = either.create(requires=A100)
    assert either.study(name)["requires"] == A100
    assert either.study(either.create())["requires"] == {}
    spec = {"name": name, "search_space": {"x": {"type": "float", "low": 0.0, "high": 1.0}}}
    spec["sampler"] = {"name": "random", "seed": 1}
    assert either.post("/v1/studies", spec | {"requires": A100}).status_code == 200
    assert either.post("/v1/studies", spec).status_code == 409


@pytest.mark.parametrize(
    "labels",
    [
        {"": "x"},
        {"n" * 65: "x"},
        {"n": "x" * 129},
        {"n": 1},
        {"n": None},
        {"n": "a\0"},
        {f"n{number}": "x" for number in range(33)},
        [],
    ],
)
def test_labels_are_bounded_texts(api: Api, labels: Any) -> None:
    name = api.create()
    ask = {"worker_id": "w", "request_id": "r", "labels": labels}
    study = {"name": "other", "search_space": {"x": {"type": "float", "low": 0, "high": 1}}, "requires": labels}
    for path, body, field in (
        (f"/v1/studies/{name}/trials:ask", ask, "/labels"),
        ("/v1/trials:ask", ask, "/labels"),
        ("/v1/studies", study, "/requires"),
    ):
        assert all(pointer.startswith(field) for pointer in api.pointers(api.post(path, body)))


def test_the_largest_labels_are_taken(either: Api) -> None:
    most = {f"{'ü' * 62}{number:02}": "ä" * 128 for number in range(32)}
    name = either.create(requires=most, objective={"kind": "largest"})
    assert [trial["study"] for trial in either.ask_any(objectives=["largest"], labels=most)["trials"]] == [name]


def test_who_waits_is_woken_by_what_fits_and_only_then(database_url: str) -> None:
    with TestClient(create_app(Settings(database_url=database_url), with_keys=False)) as client:
        own = Api(client, None)
        answers: dict[str, list[str]] = {}

        def wait(worker: str, labels: dict[str, str]) -> None:
            answers[worker] = given(own, worker_id=worker, labels=labels, wait_seconds=20)

        waiting = [threading.Thread(target=wait, args=args) for args in (("a100", A100), ("none", {}))]
        for thread in waiting:
            thread.start()
        deadline = threading.Event()
        while client.app.state.service.long_polls < 2:  # type: ignore[attr-defined]
            assert not deadline.wait(0.01)
        needs = own.create(objective=OBJECTIVE, requires=A100, limits={"trials": 1})
        waiting[0].join(PATIENCE_SECONDS)
        assert answers == {"a100": [needs]}
        free = own.create(objective=OBJECTIVE)
        waiting[1].join(PATIENCE_SECONDS)
        assert answers["none"] == [free]


def test_workers_read_with_their_labels_and_what_they_have_told(own: Api) -> None:
    name = own.create(limits={"attempts": 2})
    ends: list[dict[str, Any]] = [
        {"state": "COMPLETE", "values": [1.0]},
        {"state": "COMPLETE", "values": ["NaN"]},
        {"state": "PRUNED"},
        {"state": "FAIL"},
        {"state": "FAIL", "retry": True},
    ]
    for number, end in enumerate(ends):
        own.ask(name, worker_id="a", labels=A100)
        assert own.work(name, number, "tell", **end).status_code == 200
        assert own.work(name, number, "tell", **end).status_code == 200  # again: counted once
    assert worker(own, "a") == {"labels": A100, "trials": 0, "told": 5, "failed": 3}

    (again,) = own.ask(name, worker_id="b")
    assert again["number"] == 4
    assert worker(own, "b") == {"labels": {}, "trials": 1, "told": 0, "failed": 0}
    assert worker(own, "a")["told"] == 5
    own.work(name, 4, "tell", attempt=2, state="FAIL", retry=True)  # the last attempt
    assert worker(own, "b") == {"labels": {}, "trials": 0, "told": 1, "failed": 1}
    assert worker(own, "a")["told"] == 5
    own.ask(name, worker_id="a")  # an ask without labels has none
    assert worker(own, "a") == {"labels": {}, "trials": 1, "told": 5, "failed": 3}


@pytest.mark.slow
def test_what_is_known_of_workers_is_there_after_a_restart(database_url: str) -> None:
    settings = Settings(database_url=database_url)
    with TestClient(create_app(settings, with_keys=False)) as client:
        own = Api(client, None)
        name = own.create()
        own.ask(name, worker_id="a", labels=A100)
        own.tell(name, 0, 1.0)
        before = worker(own, "a")
    with TestClient(create_app(settings, with_keys=False)) as client:
        assert worker(Api(client, None), "a") == before == {"labels": A100, "trials": 0, "told": 1, "failed": 0}


def worker(own: Api, worker_id: str) -> dict[str, Any]:
    (found,) = [item for item in own.get("/v1/workers").json()["items"] if item["worker_id"] == worker_id]
    return {name: found[name] for name in ("labels", "trials", "told", "failed")}


@pytest.mark.slow
def test_a_key_bound_to_studies_sees_those_who_train_them(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/hpo.db"
    with TestClient(create_app(Settings(database_url=url))) as client:
        table = client.app.state.keyring.table  # type: ignore[attr-defined]
        admin = keys.create(table, Scope.ADMIN, None, None, "", None).token
        bound = keys.create(table, Scope.READ, ["mine"], None, "", None).token
        client.headers["Authorization"] = f"Bearer {admin}"
        own = Api(client, None)
        mine, other = own.create(name="mine"), own.create(name="other")
        for name, worker_id in ((mine, "a"), (other, "a"), (other, "b")):
            number = own.ask(name, worker_id=worker_id)[0]["number"]
            own.tell(name, number, 1.0)
        listed = client.get("/v1/workers", headers={"Authorization": f"Bearer {bound}"}).json()["items"]
    assert [(item["worker_id"], item["told"]) for item in listed] == [("a", 1)]
