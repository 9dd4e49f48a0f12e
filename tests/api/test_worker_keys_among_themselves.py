"""What one worker key may do with the trials of another: what SECURITY.md says of it, and no more.

A lease is (trial, attempt) and no key's: so a key is replaced while its trials run, and several workers share one.
Who must not touch each other's trials get a study each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hpo_service.api.app import create_app
from hpo_service.domain.key import Scope
from hpo_service.operations import keyring, keys
from hpo_service.settings import Settings
from hpo_service.store import KeyTable

SPACE = {"learning_rate": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True}}
OBJECTIVE = {"kind": "neural_network", "dataset": "mnist", "samples": 50, "epochs": 1}
TOLD = {"attempt": 1, "state": "COMPLETE", "values": [0.5]}


class Keys:
    def __init__(self, client: TestClient, table: KeyTable) -> None:
        self.client, self.table = client, table
        self.admin = self.make(Scope.ADMIN)

    def make(self, scope: Scope, *studies: str) -> str:
        return keys.create(self.table, scope, studies or None).token

    def call(self, key: str, path: str, body: Any = None, method: str = "POST") -> Any:
        sent = {} if body is None else {"json": body}
        return self.client.request(method, path, headers={"Authorization": f"Bearer {key}"}, **sent)

    def ask(self, key: str, study: str, request_id: str = "r") -> Any:
        path = f"/v1/studies/{study}/trials:ask" if study else "/v1/trials:ask"
        answer = self.call(key, path, {"worker_id": "w", "request_id": request_id})
        return answer.json()["trials"] if answer.status_code == 200 else answer.status_code


@pytest.fixture
def made(database_url: str, clock: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keys]:
    monkeypatch.setattr(keyring, "VALID_SECONDS", 0.0)
    table = KeyTable(database_url, clock)
    app = create_app(Settings(database_url=database_url), clock, with_reaper=False)
    with TestClient(app, raise_server_exceptions=False) as client:
        opened = Keys(client, table)
        for name in ("ours", "theirs"):
            body = {"name": name, "search_space": SPACE, "objective": OBJECTIVE}
            assert opened.call(opened.admin, "/v1/studies", body).status_code == 201
        yield opened
    table.close()


@pytest.mark.slow
def test_within_a_study_any_worker_key_goes_on_with_any_trial(made: Keys) -> None:
    one, other = made.make(Scope.WORKER), made.make(Scope.WORKER)
    for number in range(4):
        assert made.ask(one, "ours", f"r{number}")[0]["number"] == number
    trials = "/v1/studies/ours/trials"
    reported = {"attempt": 1, "reports": [{"step": 1, "value": 0.1}]}
    assert made.call(other, f"{trials}/0:report", reported).status_code == 200
    assert made.call(other, f"{trials}/0:heartbeat", {"attempt": 1}).status_code == 200
    assert made.call(other, f"{trials}/0:tell", TOLD).json()["state"] == "COMPLETE"
    assert made.call(other, f"{trials}/1:release", {"attempt": 1}).json()["state"] == "WAITING"
    batch = {"calls": [{"study": "ours", "number": 2, "call": "tell", **TOLD}]}
    assert made.call(other, "/v1/trials:batch", batch).status_code == 200
    assert made.call(other, f"{trials}/3", method="GET").json()["attempt"] == 1  # what it takes is there to be read


@pytest.mark.slow
def test_the_job_of_a_sealed_test_is_any_worker_keys_too(made: Keys) -> None:
    one, other = made.make(Scope.WORKER, "ours"), made.make(Scope.WORKER, "ours")
    made.ask(one, "ours")
    assert made.call(one, "/v1/studies/ours/trials/0:tell", TOLD).status_code == 200
    assert made.call(made.admin, "/v1/studies/ours:stop").status_code == 200
    assert made.call(made.admin, "/v1/studies/ours:test").status_code == 202
    (job,) = made.ask(one, "", "job")
    assert job["purpose"] == "test"
    told = {"attempt": job["attempt"], "state": "COMPLETE", "test_accuracy": 0.9, "validation_accuracy": 0.9}
    told |= {"members": [], "dataset_sha256": "0" * 64}
    assert made.call(other, "/v1/studies/ours/test:tell", told).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("study", ["ours", ""])
def test_an_answer_is_given_again_to_whoever_knows_its_request_id_and_sees_its_studies(made: Keys, study: str) -> None:
    one, other = made.make(Scope.WORKER), made.make(Scope.WORKER)
    given = made.ask(one, study, "known")
    assert made.ask(other, study, "known") == given
    assert made.ask(other, study, "unknown") != given
    stranger = made.make(Scope.WORKER, "theirs" if given[0]["study"] == "ours" else "ours")
    assert made.ask(stranger, study, "known") == (404 if study else 422)


@pytest.mark.slow
def test_a_key_is_replaced_while_its_trials_run(made: Keys) -> None:
    old = keys.create(made.table, Scope.WORKER, ["ours"])
    (trial,) = made.ask(old.token, "ours")
    new = made.make(Scope.WORKER, "ours")
    keys.revoke(made.table, old.key.id)
    path = f"/v1/studies/ours/trials/{trial['number']}"
    assert made.call(old.token, f"{path}:heartbeat", {"attempt": 1}).status_code == 401
    assert made.call(new, f"{path}:heartbeat", {"attempt": 1}).status_code == 200
    assert made.call(new, f"{path}:tell", TOLD).status_code == 200


def test_what_is_finished_stays_and_what_is_for_admins_is_for_no_worker(made: Keys) -> None:
    one, other = made.make(Scope.WORKER), made.make(Scope.WORKER)
    made.ask(one, "ours")
    assert made.call(one, "/v1/studies/ours/trials/0:tell", TOLD).status_code == 200
    assert made.call(other, "/v1/studies/ours/trials/0:tell", {**TOLD, "values": [9.0]}).status_code == 409
    assert made.call(other, "/v1/studies/ours/trials/0:release", {"attempt": 1}).json()["values"] == [0.5]
    for path in ("/v1/studies/ours:pause", "/v1/studies/ours/trials/0:stop", "/v1/workers/w:drain"):
        assert made.call(other, path).status_code == 403


def test_a_study_each_keeps_strangers_apart(made: Keys) -> None:
    one, stranger = made.make(Scope.WORKER, "ours"), made.make(Scope.WORKER, "theirs")
    made.ask(one, "ours")
    trials = "/v1/studies/ours/trials"
    for call, body in (("tell", TOLD), ("release", {"attempt": 1}), ("heartbeat", {"attempt": 1})):
        assert made.call(stranger, f"{trials}/0:{call}", body).status_code == 404
    assert made.call(stranger, f"{trials}/0", method="GET").status_code == 404
    batch = {"calls": [{"study": "ours", "number": 0, "call": "release", "attempt": 1}]}
    assert made.call(stranger, "/v1/trials:batch", batch).json()["results"][0]["status"] == 404
    assert made.call(made.admin, f"{trials}/0", method="GET").json()["state"] == "RUNNING"
