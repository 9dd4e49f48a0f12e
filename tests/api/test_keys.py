"""Keys: what one that is bound to studies sees of the rest, how long it opens the door, and how often."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hpo_service.api import auth
from hpo_service.api.app import create_app
from hpo_service.api.auth import WRONG_KEYS
from hpo_service.api.rate_limits import MOST_BUCKETS, TokenBuckets, neighbourhood
from hpo_service.domain.errors import Unavailable
from hpo_service.domain.key import Scope, draw, hash_of
from hpo_service.operations import keyring, keys
from hpo_service.settings import Settings
from hpo_service.store import KeyTable
from tests.api.conftest import check_problem

_numbers = itertools.count()
SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
OBJECTIVE = {"kind": "neural_network", "dataset": "mnist", "samples": 50, "epochs": 1}
NETWORK_SPACE = {"learning_rate": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True}}


class Guarded:
    """The app behind its door, called with one key or another."""

    def __init__(self, client: TestClient, table: KeyTable) -> None:
        self.client, self.table = client, table
        self.admin = self.key(Scope.ADMIN)

    def key(self, scope: Scope, *studies: str, life_seconds: float | None = None) -> str:
        return keys.create(self.table, scope, studies or None, life_seconds).token

    def call(self, key: str | None, method: str, path: str, body: Any = None, **headers: str) -> Any:
        shown = {} if key is None else {"Authorization": f"Bearer {key}"}
        sent = {} if body is None else {"json": body}
        answer = self.client.request(method, path, headers={**shown, **headers}, **sent)
        assert answer.status_code != 500, answer.text
        if answer.status_code >= 400:
            check_problem(answer)
        return answer

    def create(self, name: str, **fields: Any) -> None:
        body = {"name": name, "search_space": SPACE, "sampler": {"name": "random", "seed": 1}, **fields}
        assert self.call(self.admin, "POST", "/v1/studies", body).status_code == 201

    def ask_any(self, key: str, request_id: str | None = None, content_type: str = "application/json") -> Any:
        """As a worker does, or in a form that the shorter way past the framework leaves to the application."""
        body = {"worker_id": "w", "request_id": request_id or f"request-{next(_numbers)}", "count": 1}
        return self.call(key, "POST", "/v1/trials:ask", body, **{"Content-Type": content_type})


@pytest.fixture
def guarded(database_url: str, clock: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    """Keys are read again at each call: these tests do not wait."""
    monkeypatch.setattr(keyring, "VALID_SECONDS", 0.0)
    table = KeyTable(database_url, clock)
    app = create_app(Settings(database_url=database_url), clock, with_reaper=False)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Guarded(client, table)
    table.close()


# -- bound to studies -------------------------------------------------------------------------------------


def test_lists_show_only_the_studies_of_the_key_page_by_page(guarded: Guarded) -> None:
    for name in ("a", "b", "c", "d"):
        guarded.create(name)
    bound = guarded.key(Scope.READ, "b", "d", "not-there-yet")
    first = guarded.call(bound, "GET", "/v1/studies?page_size=1").json()
    second = guarded.call(bound, "GET", f"/v1/studies?page_size=1&page_token={first['next_page_token']}").json()
    assert [study["name"] for page in (first, second) for study in page["items"]] == ["b", "d"]
    assert second["next_page_token"] is None


def test_another_study_is_answered_like_one_that_does_not_exist(guarded: Guarded) -> None:
    guarded.create("theirs")
    bound = guarded.key(Scope.ADMIN, "mine")
    hidden, missing = (guarded.call(bound, "GET", f"/v1/studies/{name}") for name in ("theirs", "absent"))
    assert (hidden.status_code, missing.status_code) == (404, 404)
    assert hidden.text.replace("theirs", "absent") == missing.text
    assert guarded.call(bound, "GET", "/v1/studies/mine").text == missing.text.replace("absent", "mine")


def test_a_bound_key_creates_only_what_it_is_bound_to(guarded: Guarded) -> None:
    bound = guarded.key(Scope.ADMIN, "mine")
    spec = {"search_space": SPACE}
    assert guarded.call(bound, "POST", "/v1/studies", {"name": "mine", **spec}).status_code == 201
    refused = guarded.call(bound, "POST", "/v1/studies", {"name": "other", **spec})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert "'other'" in refused.json()["detail"]
    assert guarded.call(guarded.admin, "GET", "/v1/studies/other").status_code == 404


@pytest.mark.slow
@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
def test_asking_any_study_gives_trials_of_the_keys_studies_only(guarded: Guarded, content_type: str) -> None:
    for name in ("theirs", "mine"):
        guarded.create(name, search_space=NETWORK_SPACE, objective=OBJECTIVE, limits={"trials": 2})
    bound = guarded.key(Scope.WORKER, "mine")
    given = [guarded.ask_any(bound, content_type=content_type).json()["trials"] for _ in range(3)]
    assert [[trial["study"] for trial in trials] for trials in given] == [["mine"], ["mine"], []]


@pytest.mark.slow
@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
def test_a_remembered_answer_is_not_given_to_a_key_that_may_not_see_it(guarded: Guarded, content_type: str) -> None:
    guarded.create("theirs", search_space=NETWORK_SPACE, objective=OBJECTIVE)
    theirs, mine = guarded.key(Scope.WORKER, "theirs"), guarded.key(Scope.WORKER, "mine")
    answered = guarded.ask_any(theirs, "same", content_type)
    assert guarded.ask_any(theirs, "same", content_type).json() == answered.json()
    refused = guarded.ask_any(mine, "same", content_type)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/request_id"
    assert "theirs" not in refused.text


def test_in_a_batch_the_calls_on_other_studies_are_not_found_each_by_itself(guarded: Guarded) -> None:
    for name in ("theirs", "mine"):
        guarded.create(name)
        asked = {"worker_id": "w", "request_id": name}
        assert guarded.call(guarded.admin, "POST", f"/v1/studies/{name}/trials:ask", asked).json()["trials"]
    bound = guarded.key(Scope.WORKER, "mine")
    told = {"number": 0, "call": "tell", "attempt": 1, "state": "COMPLETE", "values": [0.5]}
    calls = [{"study": "theirs", **told}, {"study": "mine", **told}, {"study": "absent", **told}]
    answer = guarded.call(bound, "POST", "/v1/trials:batch", {"calls": calls})
    assert answer.status_code == 207
    results = answer.json()["results"]
    assert [result["status"] for result in results] == [404, 200, 404]
    assert results[0]["body"]["detail"].replace("theirs", "absent") == results[2]["body"]["detail"]
    assert guarded.call(guarded.admin, "GET", "/v1/studies/theirs/trials/0").json()["state"] == "RUNNING"


@pytest.mark.slow
def test_a_bound_worker_key_does_the_sealed_test_of_its_study(guarded: Guarded) -> None:
    for name in ("theirs", "mine"):
        guarded.create(name, search_space=NETWORK_SPACE, objective=OBJECTIVE, limits={"trials": 1})
        worker = guarded.key(Scope.WORKER, name)
        (given,) = guarded.ask_any(worker).json()["trials"]
        told = {"attempt": given["attempt"], "state": "COMPLETE", "values": [0.5]}
        assert guarded.call(worker, "POST", f"/v1/studies/{name}/trials/0:tell", told).status_code == 200
        assert guarded.call(guarded.admin, "POST", f"/v1/studies/{name}:test").status_code == 202
    worker = guarded.key(Scope.WORKER, "mine")
    (job,) = guarded.ask_any(worker).json()["trials"]
    assert (job["study"], job["purpose"]) == ("mine", "test")
    assert guarded.ask_any(worker).json()["trials"] == []
    kept = guarded.call(worker, "POST", "/v1/studies/mine/test:heartbeat", {"attempt": job["attempt"]})
    assert kept.status_code == 200
    assert guarded.call(worker, "POST", "/v1/studies/theirs/test:heartbeat", {"attempt": 1}).status_code == 404


# -- how long ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_key_opens_the_door_until_it_expires_by_the_databases_clock(guarded: Guarded, clock: Any) -> None:
    key = guarded.key(Scope.READ, life_seconds=60)
    clock.turn(59)
    assert guarded.call(key, "GET", "/v1/studies").status_code == 200
    clock.turn(1)
    refused = guarded.call(key, "GET", "/v1/studies")
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")


def test_a_revoked_key_stays_revoked_and_keeps_the_time_of_its_first_end(guarded: Guarded, clock: Any) -> None:
    drawn = keys.create(guarded.table, Scope.READ)
    ended = keys.revoke(guarded.table, drawn.key.id)
    clock.turn(60)
    assert keys.revoke(guarded.table, drawn.key.id)["revoked_at"] == ended["revoked_at"]
    assert guarded.call(drawn.token, "GET", "/v1/studies").status_code == 401


def test_calls_ask_the_database_for_keys_once_a_while_and_not_each(
    database_url: str, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = KeyTable(database_url, clock)
    key = keys.create(table, Scope.READ).token
    monkeypatch.setattr(keyring, "VALID_SECONDS", 3600.0)
    monkeypatch.setattr(keyring, "FRESH_SECONDS", 3600.0)
    reads = []
    live = KeyTable.live
    monkeypatch.setattr(KeyTable, "live", lambda self: reads.append(1) or live(self))
    with TestClient(create_app(Settings(database_url=database_url), clock, with_reaper=False)) as client:
        for shown in (key, draw(), "nonsense") * 10:
            client.get("/v1/studies", headers={"Authorization": f"Bearer {shown}"})
    table.close()
    assert len(reads) == 1


def test_while_the_keys_cannot_be_read_calls_are_unavailable_and_then_go_on(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_table: KeyTable) -> Any:
        raise Unavailable("the database cannot take the call now: it is away")

    with monkeypatch.context() as broken:
        broken.setattr(KeyTable, "live", away)
        refused = guarded.call(guarded.admin, "GET", "/v1/studies")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert guarded.call(None, "GET", "/healthz").status_code == 200
    assert guarded.call(guarded.admin, "GET", "/v1/studies").status_code == 200


def test_a_private_key_is_in_no_record_and_opens_its_own_server_only(database_url: str, clock: Any) -> None:
    private = draw()
    settings = Settings(database_url=database_url, private_key_hash=hash_of(private))
    bearer = {"Authorization": f"Bearer {private}"}
    with TestClient(create_app(settings, clock, with_reaper=False)) as own:
        assert own.post("/v1/studies", json={"name": "a", "search_space": SPACE}, headers=bearer).status_code == 201
    with TestClient(create_app(Settings(database_url=database_url), clock, with_reaper=False)) as other:
        assert other.get("/v1/studies", headers=bearer).status_code == 401
    table = KeyTable(database_url, clock)
    assert keys.listed(table) == []
    table.close()


def test_the_record_holds_no_key_but_its_hash(guarded: Guarded) -> None:
    token = guarded.key(Scope.READ)
    (recorded,) = [key for key in guarded.table.live() if key.hash == hash_of(token)]
    assert token not in repr(recorded)
    assert token[4:] not in repr(recorded)
    assert token not in repr(keys.listed(guarded.table))
    assert hash_of(token) not in repr(keys.listed(guarded.table))


def test_the_first_key_is_drawn_once(database_url: str) -> None:
    one, two = KeyTable(database_url), KeyTable(database_url)
    first = keys.create_first(one)
    assert first is not None
    assert first.key.scope is Scope.ADMIN
    assert keys.create_first(two) is None
    keys.revoke(one, first.key.id)
    assert keys.create_first(two) is None  # a record whose keys are all ended is no new record
    one.close()
    two.close()


# -- how a key is shown -----------------------------------------------------------------------------------


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/dashboard", "/docs", "/v1/openapi.json", "/api/studies"])
def test_pages_ask_a_browser_for_the_key_as_a_password(guarded: Guarded, path: str) -> None:
    asked = guarded.call(None, "GET", path)
    assert asked.status_code == 401
    assert asked.headers["WWW-Authenticate"] == 'Bearer realm="hpo", Basic realm="hpo", charset="UTF-8"'
    read = guarded.key(Scope.READ)
    assert guarded.call(None, "GET", path, **basic("anybody", read)).status_code == 200
    assert guarded.call(None, "GET", path, **basic(read, "")).status_code == 401
    assert guarded.call(None, "GET", path, Authorization="Basic %%%").status_code == 401


@pytest.mark.slow
@pytest.mark.parametrize(
    ("told", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://testserver:1"}, 403),
        ({"Origin": "http://testserver"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
    ],
)
def test_a_page_of_another_site_may_not_use_a_password_that_the_browser_keeps(
    guarded: Guarded, told: dict[str, str], status: int
) -> None:
    answer = guarded.call(None, "GET", "/v1/openapi.json", **basic("me", guarded.admin), **told)
    assert answer.status_code == status
    assert guarded.call(guarded.admin, "GET", "/v1/openapi.json", **told).status_code == 200


def test_a_password_is_for_pages_only(guarded: Guarded) -> None:
    asked = guarded.call(None, "GET", "/v1/studies", **basic("me", guarded.admin))
    assert (asked.status_code, asked.headers["WWW-Authenticate"]) == (401, 'Bearer realm="hpo"')
    written = guarded.call(None, "POST", "/api/studies", {}, **basic("me", guarded.admin))
    assert written.status_code == 401


@pytest.mark.slow
@pytest.mark.parametrize(
    "shown",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic",
        "Bearer hpo_x",
        "Token x",
        "Bearer  ",
        "Bearer \xe9" * 3,
        "Digest a=b",
        "Bearer " + "x" * 9000,
    ],
)
def test_whatever_else_is_shown_is_no_key(guarded: Guarded, shown: str) -> None:
    answer = guarded.client.get("/v1/studies", headers=[(b"Authorization", shown.encode("latin-1"))])
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


def test_a_key_in_the_url_is_no_key(guarded: Guarded) -> None:
    for name in ("token", "access_token", "key", "api_key"):
        assert guarded.call(None, "GET", f"/v1/studies?{name}={guarded.admin}").status_code == 401


def test_the_kind_of_authorization_is_written_as_one_likes_and_shown_once(guarded: Guarded) -> None:
    for kind in ("Bearer", "bearer", "BEARER"):
        assert guarded.call(None, "GET", "/v1/studies", Authorization=f"{kind} {guarded.admin}").status_code == 200
    twice = [(b"Authorization", f"Bearer {guarded.admin}".encode())] * 2
    assert guarded.client.get("/v1/studies", headers=twice).status_code == 401


def test_no_key_is_in_the_metrics(guarded: Guarded) -> None:
    guarded.call(guarded.admin, "GET", "/v1/studies")
    guarded.call(draw(), "GET", "/v1/studies")
    assert "hpo_requests_total" in (text := guarded.call(guarded.admin, "GET", "/metrics").text)
    assert guarded.admin[4:] not in text
    assert hash_of(guarded.admin) not in text


# -- how often --------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the calls take, no wrong key is let through again meanwhile."""
    monkeypatch.setattr(auth, "WRONG_KEYS_PER_SECOND", 1e-6)


@pytest.mark.slow
def test_too_many_wrong_keys_are_429_and_a_right_one_goes_on(nothing_forgiven: None, guarded: Guarded) -> None:
    statuses = [guarded.call(draw(), "GET", "/v1/studies").status_code for _ in range(WRONG_KEYS)]
    assert set(statuses) == {401}
    refused = [guarded.call(draw(), "GET", "/v1/studies") for _ in range(30)]
    limited = [answer for answer in refused if answer.status_code == 429]
    assert limited
    assert {answer.json()["code"] for answer in limited} == {"rate_limited"}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in limited)
    assert guarded.call(guarded.admin, "GET", "/v1/studies").status_code == 200
    assert guarded.call(None, "GET", "/v1/studies").status_code == 401
    assert guarded.call(None, "GET", "/healthz").status_code == 200


@pytest.mark.slow
def test_a_rate_limit_holds_for_each_key_and_for_nobody_by_default(database_url: str, clock: Any) -> None:
    table = KeyTable(database_url, clock)
    one, two = (keys.create(table, Scope.READ).token for _ in range(2))

    def statuses(client: TestClient, key: str, calls: int, path: str = "/v1/workers") -> list[int]:
        answers = [client.get(path, headers={"Authorization": f"Bearer {key}"}) for _ in range(calls)]
        assert all("Retry-After" in answer.headers for answer in answers if answer.status_code == 429)
        return [answer.status_code for answer in answers]

    limited = Settings(database_url=database_url, rate_limit=0.01)
    with TestClient(create_app(limited, clock, with_reaper=False)) as client:
        assert statuses(client, one, 3) == [200, 429, 429]
        assert statuses(client, two, 2) == [200, 429]
        assert set(statuses(client, one, 20, "/healthz")) == {200}
    with TestClient(create_app(Settings(database_url=database_url), clock, with_reaper=False)) as client:
        assert set(statuses(client, one, 100)) == {200}
    table.close()


def test_a_bucket_gives_its_size_at_once_and_then_its_rate() -> None:
    now = [0.0]
    buckets = TokenBuckets(3, 2.0, lambda: now[0])
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 0]
    assert buckets.take("a") == pytest.approx(0.5)
    assert buckets.take("b") == 0
    now[0] = 0.5
    assert buckets.take("a") == 0
    assert buckets.take("a") > 0
    now[0] = 1e6
    assert [buckets.take("a") > 0 for _ in range(4)] == [False, False, False, True]


def test_buckets_of_many_addresses_take_bounded_memory() -> None:
    buckets = TokenBuckets(3, 2.0)
    for number in range(MOST_BUCKETS + 100):
        buckets.take(str(number))
    assert len(buckets._levels) == MOST_BUCKETS


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("::1", "::/64"),
        ("127.0.0.1", "127.0.0.0/8"),
        ("127.3.2.1", "127.0.0.0/8"),
        ("::ffff:127.3.2.1", "127.0.0.0/8"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_one_caller_is_one_address_or_the_network_that_he_commands(address: str, network: str) -> None:
    assert neighbourhood(address) == network


# -- what the page reads ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("told", [{"Sec-Fetch-Site": "same-origin"}, {"X-HPO-Page": "1"}])
@pytest.mark.parametrize("path", ["/v1/studies", "/v1/studies:overview", "/v1/openapi.json"])
def test_the_browsers_password_opens_what_our_own_page_reads(guarded: Guarded, path: str, told: dict[str, str]) -> None:
    read = guarded.key(Scope.READ)
    assert guarded.call(None, "GET", path, **basic("me", read), **told).status_code == 200
    asked = guarded.call(None, "GET", path, **told)
    assert (asked.status_code, "Basic" in asked.headers["WWW-Authenticate"]) == (401, True)
    # who shows a wrong Bearer key is not asked for a password as well
    wrong = guarded.call(read[:-1] + "!", "GET", path, **told)
    assert wrong.status_code == 401
    assert ("Basic" in wrong.headers["WWW-Authenticate"]) is (path == "/v1/openapi.json")


@pytest.mark.parametrize("told", [{"Sec-Fetch-Site": "same-origin"}, {"X-HPO-Page": "1"}])
def test_and_changes_nothing_for_it(guarded: Guarded, told: dict[str, str]) -> None:
    for method, path in (("POST", "/v1/studies"), ("POST", "/v1/trials:ask"), ("DELETE", "/v1/studies/x")):
        assert guarded.call(None, method, path, {}, **basic("me", guarded.admin), **told).status_code == 401


def test_a_page_of_another_site_is_not_ours_whatever_it_sends(guarded: Guarded) -> None:
    told = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "X-HPO-Page": "1"}
    assert guarded.call(None, "GET", "/v1/studies", **basic("me", guarded.admin), **told).status_code == 403


def test_without_a_key_the_page_is_401_in_html_and_asks_for_a_password(guarded: Guarded) -> None:
    for path in ("/", "/studies/any"):
        asked = guarded.client.get(path)
        assert (asked.status_code, asked.headers["content-type"]) == (401, "text/html; charset=utf-8")
        assert asked.headers["WWW-Authenticate"] == 'Bearer realm="hpo", Basic realm="hpo", charset="UTF-8"'
    assert guarded.call(None, "GET", "/", **basic("me", guarded.admin)).status_code == 200
    assert guarded.client.get("/", headers={"Accept": "application/json"}).json()["code"] == "unauthenticated"
