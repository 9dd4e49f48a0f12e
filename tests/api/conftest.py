"""One server for many tests: each test works on studies of its own, so that none waits for a new database."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hpo_service.api.app import create_app
from hpo_service.settings import Settings

_numbers = itertools.count()

SPACE: dict[str, Any] = {"x": {"type": "float", "low": 0.0, "high": 1.0}}


class Api:
    """Calls by their names; every answer is one that the contract documents."""

    def __init__(self, client: TestClient, clock: Any) -> None:
        self.client = client
        self.clock = clock

    def call(self, method: str, path: str, **how: Any) -> Any:
        answer = self.client.request(method, path, **how)
        assert answer.status_code < 500, f"{method} {path}: {answer.text}"
        if answer.status_code >= 400:
            check_problem(answer)
        return answer

    def get(self, path: str, **how: Any) -> Any:
        return self.call("GET", path, **how)

    def post(self, path: str, json: Any = None, **how: Any) -> Any:
        return self.call("POST", path, json=json, **how) if json is not None else self.call("POST", path, **how)

    def patch(self, path: str, json: Any, **how: Any) -> Any:
        return self.call("PATCH", path, json=json, **how)

    def create(self, **fields: Any) -> str:
        """A random search on x in [0, 1] under a new name, with these fields instead."""
        name = f"study-{next(_numbers)}"
        body = {"name": name, "search_space": SPACE, "sampler": {"name": "random", "seed": 1}, **fields}
        answer = self.post("/v1/studies", body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["name"])

    @staticmethod
    def code(answer: Any) -> str:
        """The problem's word, or 200 for any success."""
        return "200" if answer.status_code < 400 else str(answer.json()["code"])

    @staticmethod
    def pointers(answer: Any) -> list[str]:
        assert answer.status_code == 422, answer.text
        return [error["pointer"] for error in answer.json()["errors"]]

    def study(self, name: str) -> Any:
        answer = self.get(f"/v1/studies/{name}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def state(self, name: str) -> str:
        return str(self.study(name)["state"])

    def verb(self, name: str, verb: str) -> Any:
        return self.post(f"/v1/studies/{name}:{verb}")

    def limit(self, name: str, **limits: Any) -> Any:
        return self.patch(f"/v1/studies/{name}", {"limits": limits})

    def asked(self, name: str, **fields: Any) -> Any:
        body = {"worker_id": "w", "request_id": f"request-{next(_numbers)}", **fields}
        answer = self.post(f"/v1/studies/{name}/trials:ask", body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def ask(self, name: str, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        trials: list[dict[str, Any]] = self.asked(name, count=count, **fields)["trials"]
        return trials

    def ask_any(self, **fields: Any) -> Any:
        body = {"worker_id": "w", "request_id": f"request-{next(_numbers)}", **fields}
        answer = self.post("/v1/trials:ask", body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def trial(self, name: str, number: int) -> Any:
        return self.get(f"/v1/studies/{name}/trials/{number}").json()

    def work(self, name: str, number: int, call: str, **body: Any) -> Any:
        return self.post(f"/v1/studies/{name}/trials/{number}:{call}", {"attempt": 1, **body})

    def tell(self, name: str, number: int, *values: Any, attempt: int = 1) -> Any:
        answer = self.work(name, number, "tell", attempt=attempt, state="COMPLETE", values=list(values))
        assert answer.status_code == 200, answer.text
        return answer.json()

    def finish(self, name: str, *values: Any) -> None:
        """Ask for one trial after the other and tell it this value."""
        for value in values:
            (given,) = self.ask(name)
            self.tell(name, given["number"], value, attempt=given["attempt"])

    def enqueue(self, name: str, *params: dict[str, Any], **fields: Any) -> Any:
        answer = self.post(
            f"/v1/studies/{name}/trials:enqueue", {"trials": [{"params": given} for given in params], **fields}
        )
        assert answer.status_code == 201, answer.text
        return answer.json()["trials"]

    def imported(self, name: str, *trials: dict[str, Any], **fields: Any) -> Any:
        answer = self.post(f"/v1/studies/{name}/trials:import", {"trials": list(trials), **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()["trials"]


def check_problem(answer: Any) -> None:
    """RFC 9457, with the members that the contract adds."""
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    for member in ("type", "title", "detail", "code"):
        assert body[member], body
        assert isinstance(body[member], str)
    assert not any(word in answer.text for word in ("discriminator", "pydantic", "Input tag", "extract fields"))
    assert body["status"] == answer.status_code
    assert body["retryable"] is (answer.status_code in (429, 503))
    if answer.status_code == 422:
        assert body["errors"], body
        assert all(set(error) == {"pointer", "detail"} for error in body["errors"])


class _Clock:
    """Seconds since 1970; only ever turned forward, since many tests share it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def turn(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(scope="session")
def _sqlite_api(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    path = tmp_path_factory.mktemp("shared") / "hpo.db"
    shutil.copy(_sqlite_template, path)
    yield from _opened(f"sqlite:///{path}")


@pytest.fixture(scope="session")
def _postgres_api(migrated: Callable[[], str]) -> Iterator[Api]:
    yield from _opened(migrated())


def _opened(url: str) -> Iterator[Api]:
    clock = _Clock()
    app = create_app(Settings(database_url=url), clock, with_reaper=False, with_keys=False)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Api(client, clock)


@pytest.fixture
def api(_sqlite_api: Api) -> Api:
    """Where the kind of database makes no difference."""
    return _sqlite_api


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest) -> Api:
    """Where the kind of database may make a difference."""
    name = "_sqlite_api" if request.param == "sqlite" else "_postgres_api"
    shared: Api = request.getfixturevalue(name)
    return shared


@pytest.fixture
def own(client: TestClient, clock: Any) -> Api:
    """A database of its own, for what reads across studies."""
    return Api(client, clock)
