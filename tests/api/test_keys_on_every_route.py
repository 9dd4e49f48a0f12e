"""Every route × every kind of caller: a route that is not in the table below fails until somebody has classified it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from hpo_service.api import auth
from hpo_service.api.app import create_app
from hpo_service.api.dashboard import PATHS
from hpo_service.domain.key import Scope, draw
from hpo_service.operations import keys
from hpo_service.settings import Settings
from hpo_service.store import KeyTable
from tests.api.conftest import check_problem

OPEN, READ, WORK, ADMIN = "open", "read", "worker", "admin"

# The place of a route: under a study, across studies (showing only those of a bound key), or the whole service.
STUDY, ACROSS, WHOLE = "of one study", "across studies", "the whole service"

# (method, path): (what it takes, where it is)
TABLE: dict[tuple[str, str], tuple[str, str]] = {
    ("GET", "/version"): (OPEN, WHOLE),
    ("GET", "/healthz"): (OPEN, WHOLE),
    ("GET", "/readyz"): (OPEN, WHOLE),
    ("POST", "/v1/studies"): (ADMIN, ACROSS),
    ("GET", "/v1/studies"): (READ, ACROSS),
    ("GET", "/v1/studies/{study}"): (READ, STUDY),
    ("PATCH", "/v1/studies/{study}"): (ADMIN, STUDY),
    ("DELETE", "/v1/studies/{study}"): (ADMIN, STUDY),
    ("POST", "/v1/studies/{study}:pause"): (ADMIN, STUDY),
    ("POST", "/v1/studies/{study}:resume"): (ADMIN, STUDY),
    ("POST", "/v1/studies/{study}:stop"): (ADMIN, STUDY),
    ("POST", "/v1/studies/{study}:cancel"): (ADMIN, STUDY),
    ("POST", "/v1/studies/{study}:narrow"): (ADMIN, STUDY),
    ("POST", "/v1/studies/{study}:confirm"): (ADMIN, STUDY),
    ("GET", "/v1/studies/{study}/advice"): (READ, STUDY),
    ("POST", "/v1/studies/{study}:test"): (ADMIN, STUDY),
    ("POST", "/v1/studies/{study}/test:heartbeat"): (WORK, STUDY),
    ("POST", "/v1/studies/{study}/test:tell"): (WORK, STUDY),
    ("POST", "/v1/studies/{study}/test:release"): (WORK, STUDY),
    ("GET", "/v1/studies/{study}/importances"): (READ, STUDY),
    ("GET", "/v1/studies/{study}/events"): (READ, STUDY),
    ("GET", "/v1/studies/{study}/history"): (READ, STUDY),
    ("GET", "/v1/studies/{study}/curves"): (READ, STUDY),
    ("GET", "/v1/studies/{study}/failures"): (READ, STUDY),
    ("GET", "/v1/studies/{study}/workers"): (READ, STUDY),
    ("GET", "/v1/studies:overview"): (READ, ACROSS),
    ("GET", "/v1/studies/{study}/trials"): (READ, STUDY),
    ("GET", "/v1/studies/{study}/trials:export"): (READ, STUDY),
    ("GET", "/v1/studies/{study}/trials/{number}"): (READ, STUDY),
    ("GET", "/v1/studies/{study}/trials/{number}/attempts"): (READ, STUDY),
    ("GET", "/v1/studies/{study}/trials/{number}/artifacts"): (READ, STUDY),
    ("GET", "/v1/studies/{study}/trials/{number}/artifacts/{name}"): (READ, STUDY),
    ("PUT", "/v1/studies/{study}/trials/{number}/artifacts/{name}"): (WORK, STUDY),
    ("GET", "/v1/studies/{study}/test/artifacts"): (READ, STUDY),
    ("GET", "/v1/studies/{study}/test/artifacts/{name}"): (READ, STUDY),
    ("PUT", "/v1/studies/{study}/test/artifacts/{name}"): (WORK, STUDY),
    ("POST", "/v1/trials:ask"): (WORK, ACROSS),
    ("POST", "/v1/trials:batch"): (WORK, ACROSS),
    ("POST", "/v1/studies/{study}/trials:ask"): (WORK, STUDY),
    ("POST", "/v1/studies/{study}/trials/{number}:report"): (WORK, STUDY),
    ("POST", "/v1/studies/{study}/trials/{number}:heartbeat"): (WORK, STUDY),
    ("POST", "/v1/studies/{study}/trials/{number}:suggest"): (WORK, STUDY),
    ("POST", "/v1/studies/{study}/trials/{number}:tell"): (WORK, STUDY),
    ("POST", "/v1/studies/{study}/trials/{number}:release"): (WORK, STUDY),
    ("POST", "/v1/studies/{study}/trials:enqueue"): (ADMIN, STUDY),
    ("POST", "/v1/studies/{study}/trials:import"): (ADMIN, STUDY),
    ("POST", "/v1/studies/{study}/trials/{number}:stop"): (ADMIN, STUDY),
    ("GET", "/v1/workers"): (READ, ACROSS),
    ("POST", "/v1/workers/{worker_id}:drain"): (ADMIN, WHOLE),
    ("GET", "/metrics"): (READ, WHOLE),
    ("GET", "/v1/openapi.json"): (READ, ACROSS),
    ("HEAD", "/v1/openapi.json"): (READ, ACROSS),
    ("GET", "/docs"): (READ, ACROSS),
    ("GET", "/docs/openapi.json"): (READ, ACROSS),
    ("GET", "/docs/start.js"): (READ, ACROSS),
    ("GET", "/docs/{name}"): (READ, ACROSS),
    **{("GET", path): (READ, ACROSS) for path in PATHS},
    **{("POST", path): (ADMIN, ACROSS) for path in PATHS},
    ("GET", "/"): (READ, ACROSS),
    ("GET", "/studies/{study}"): (READ, STUDY),
    ("GET", "/page/{name}"): (OPEN, WHOLE),
    # no routes, and no less closed
    ("POST", "/"): (ADMIN, ACROSS),
    ("POST", "/page/{name}"): (ADMIN, WHOLE),
    ("GET", "/page"): (READ, WHOLE),
    ("GET", "/studies"): (READ, WHOLE),
    ("GET", "/v1"): (READ, WHOLE),
    ("GET", "/nothing/here"): (READ, WHOLE),
    ("POST", "/nothing/here"): (ADMIN, WHOLE),
    ("HEAD", "/healthz"): (READ, WHOLE),
    ("POST", "/healthz"): (ADMIN, WHOLE),
    ("GET", "/healthz/"): (READ, WHOLE),
    ("GET", "/metrics\n"): (READ, WHOLE),
    ("OPTIONS", "/v1/studies"): (READ, ACROSS),
    ("OPTIONS", "/metrics"): (READ, WHOLE),
    ("HEAD", "/v1/studies/{study}"): (READ, STUDY),
    ("PUT", "/v1/studies/{study}"): (ADMIN, STUDY),
    ("POST", "/v1/studies/{study}/"): (ADMIN, STUDY),
    ("POST", "/v1/trials:ask\n"): (ADMIN, WHOLE),
    ("DELETE", "/v1/trials:ask"): (ADMIN, ACROSS),
}

HTML = {("GET", "/"), ("GET", "/studies/{study}")}  # which tell a browser in its own language that it needs a key

STUDY_BODY = {
    "name": "mine",
    "search_space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
    "sampler": {"name": "random", "seed": 1},
    "objective": None,
}
ASK = {"worker_id": "w", "request_id": "r"}
BODIES: dict[str, Any] = {
    "/v1/studies": {**STUDY_BODY, "name": "new"},
    "/v1/trials:ask": ASK,
    "/v1/trials:batch": {"calls": [{"study": "mine", "number": 0, "call": "heartbeat", "attempt": 1}]},
    "/v1/studies/{study}": {"metadata": {"seen": True}},
    "/v1/studies/{study}:narrow": {},
    "/v1/studies/{study}:confirm": {},
    "/v1/studies/{study}:test": {},
    "/v1/studies/{study}/trials:ask": ASK,
    "/v1/studies/{study}/trials/{number}:report": {"attempt": 1, "reports": [{"step": 0, "value": 0.5}]},
    "/v1/studies/{study}/trials/{number}:heartbeat": {"attempt": 1},
    "/v1/studies/{study}/trials/{number}:suggest": {
        "attempt": 1,
        "parameters": {"x": {"type": "float", "low": 0, "high": 1}},
    },
    "/v1/studies/{study}/trials/{number}:tell": {"attempt": 1, "state": "COMPLETE", "values": [0.5]},
    "/v1/studies/{study}/trials/{number}:release": {"attempt": 1},
    "/v1/studies/{study}/trials:enqueue": {"trials": [{"params": {"x": 0.5}}]},
    "/v1/studies/{study}/trials:import": {"trials": [{"params": {"x": 0.5}, "state": "COMPLETE", "values": [0.5]}]},
}


def routes_of(app: FastAPI) -> set[tuple[str, str]]:
    """Every method and path that the app has."""
    found: set[tuple[str, str]] = set()
    route: Any
    for route in app.routes:
        assert route.methods, f"{route} takes no methods: how is it guarded?"
        path = route.path
        for convertor in (":segment", ":number", ":path"):
            path = path.replace(convertor + "}", "}")
        found |= {(method, path) for method in route.methods}
    return found


@pytest.mark.slow
def test_every_route_is_classified() -> None:
    app = create_app(Settings(database_url="sqlite:///never-opened.db"))
    routes = routes_of(app)
    described = {(method.upper(), path) for path, operations in app.openapi()["paths"].items() for method in operations}
    assert described - {("GET", "/metrics")} <= routes
    missing = routes - set(TABLE)
    assert not missing, f"not in the table of this test: {sorted(missing)}"


@pytest.mark.slow
def test_the_description_says_which_routes_need_a_key() -> None:
    app = create_app(Settings(database_url="sqlite:///never-opened.db"))
    document = app.openapi()
    assert document["security"] == [{"key": []}]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            needs_key = TABLE[method.upper(), path][0] != OPEN
            assert (operation.get("security") != []) is needs_key, (method, path)
            assert {"401", "403", "429"} <= set(operation["responses"]) or not needs_key, (method, path)


@dataclass
class Served:
    """The app behind its door, with a study `mine` that is as new before every call, and a key of each kind."""

    client: TestClient
    callers: dict[str, str]

    def as_new(self) -> None:
        self.call("admin", "DELETE", "/v1/studies/new?force=true")
        self.call("admin", "DELETE", "/v1/studies/mine?force=true")
        assert self.call("admin", "POST", "/v1/studies", STUDY_BODY).status_code == 201
        given = self.call("admin", "POST", "/v1/studies/mine/trials:ask", {**ASK, "request_id": "first"})
        assert len(given.json()["trials"]) == 1

    def call(self, caller: str, method: str, path: str, body: Any = None, headers: Any = None) -> Any:
        shown = {"Authorization": f"Bearer {self.callers[caller]}"} if caller in self.callers else {}
        sent = {"json": body} if body is not None else {}
        return self.client.request(method, path, headers={**shown, **(headers or {})}, **sent)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if request.param == "sqlite":
        path: Path = tmp_path_factory.mktemp("keys") / "hpo.db"
        shutil.copy(request.getfixturevalue("_sqlite_template"), path)
        url = f"sqlite:///{path}"
    else:
        url = request.getfixturevalue("migrated")()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auth, "WRONG_KEYS", 100_000)  # on a quick machine there are more of them here than are taken
        app = create_app(Settings(database_url=url))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Served(client, made_callers(url))


def made_callers(url: str) -> dict[str, str]:
    clock = [1_000_000.0]
    past, table = KeyTable(url, lambda: clock[0]), KeyTable(url)
    revoked = keys.create(table, Scope.ADMIN)
    keys.revoke(table, revoked.key.id)
    callers = {
        "unknown": draw(),
        "mistyped": draw()[:-1] + "!",
        "expired": keys.create(past, Scope.ADMIN, life_seconds=60).token,
        "revoked": revoked.token,
        "bound to another study": keys.create(table, Scope.ADMIN, ["other", "new-2"]).token,
        "read": keys.create(table, Scope.READ).token,
        "worker": keys.create(table, Scope.WORKER).token,
        "admin": keys.create(table, Scope.ADMIN).token,
        "bound to this study": keys.create(table, Scope.ADMIN, ["mine", "new"]).token,
    }
    past.close()
    table.close()
    return callers


CALLERS = (
    "nobody",
    "unknown",
    "mistyped",
    "expired",
    "revoked",
    "bound to another study",
    "read",
    "worker",
    "admin",
    "bound to this study",
)


def expected(caller: str, takes: str, place: str) -> str:
    """401, 403, 404, or past: through the door."""
    if takes == OPEN:
        return "past"
    if caller in ("nobody", "unknown", "mistyped", "expired", "revoked"):
        return "401"
    if caller in ("read", "worker"):
        return "past" if takes in (READ, caller) else "403"
    if caller == "admin":
        return "past"
    if place == WHOLE:
        return "403"
    return "404" if place == STUDY and caller == "bound to another study" else "past"


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), TABLE, ids=lambda part: str(part))
def test_each_caller_gets_as_far_as_its_key_goes(served: Served, method: str, path: str) -> None:
    takes, place = TABLE[method, path]
    concrete = path.replace("{study}", "mine").replace("{number}", "0")
    concrete = concrete.replace("{worker_id}", "never-seen").replace("{name}", "swagger-ui.css").replace("\n", "%0A")
    body = BODIES.get(path) if method in ("POST", "PATCH") else None
    # a stream would not end: a refused header shows as well that the caller got past the door
    headers = {"Last-Event-ID": "x"} if path.endswith("/events") else None
    served.as_new()
    for caller in CALLERS:
        if expected(caller, takes, place) == "past" and method != "GET":
            served.as_new()
        answer = served.call(caller, method, concrete, body, headers)
        wanted = expected(caller, takes, place)
        context = f"{method} {path} by {caller}: {answer.status_code} {answer.text[:200]}"
        assert answer.status_code < 500, context
        if wanted != "past":
            assert str(answer.status_code) == wanted, context
        elif (method, path) == ("POST", "/v1/studies") and caller == "bound to another study":
            assert answer.status_code == 403, context
            assert "'new'" in answer.json()["detail"]
        else:
            assert answer.status_code not in (401, 403, 429), context
            assert place != STUDY or "there is no study" not in answer.text, context
        if answer.status_code >= 400 and (method, path) in HTML:
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
        elif answer.status_code >= 400 and method != "HEAD" and not path.startswith(PATHS):
            check_problem(answer)
        assert not any(token in answer.text or token in str(answer.headers) for token in served.callers.values())
        if answer.status_code == 401:
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("path", [path for method, path in TABLE if (method, path[:4]) == ("POST", "/v1/")])
def test_a_browsers_password_changes_nothing(served: Served, path: str) -> None:
    """It is sent along by itself, whoever makes the browser call."""
    import base64

    basic = base64.b64encode(f"me:{served.callers['admin']}".encode()).decode()
    served.as_new()
    concrete = path.replace("{study}", "mine").replace("{number}", "0").replace("\n", "%0A")
    answer = served.call("nobody", "POST", concrete, BODIES.get(path, {}), {"Authorization": f"Basic {basic}"})
    assert answer.status_code == 401
