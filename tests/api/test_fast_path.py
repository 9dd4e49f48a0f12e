"""Calls that a connection answers itself are answered as the application would, and everything else by it.

A request whose type is plain `application/json` may take the short way; one that also names a character set never does.
So each is sent both ways.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Send
from starlette.types import Scope as Connection

from hpo_service.api.app import create_app
from hpo_service.api.connections import ConnectionBounds
from hpo_service.api.fast_path import FastPath
from hpo_service.domain.key import Scope
from hpo_service.instruments import group_calls
from hpo_service.operations.keys import create, revoke
from hpo_service.settings import Settings
from hpo_service.store import KeyTable
from tests.patience import PATIENCE_SECONDS

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
_numbers = itertools.count()


class Answer:
    def __init__(self, connection: socket.socket, read: Any = None) -> None:
        """read: the file of a connection on which several answers come."""
        read = read or connection.makefile("rb")
        self.status = int(read.readline().split(b" ")[1])
        lines = iter(read.readline, b"\r\n")
        self.headers = dict(line.decode().strip().split(": ", 1) for line in lines)
        self.json = json.loads(read.read(int(self.headers["content-length"])))

    @property
    def code(self) -> Any:
        return self.json.get("code", self.status)


class Served:
    """The server on a real socket. application_saw: paths of the requests that went to the application."""

    def __init__(self, database: str, *, with_keys: bool = False, with_reaper: bool = True, **settings: Any) -> None:
        self.settings = Settings(database_url=database, **settings)
        self.with_keys = with_keys
        self.with_reaper = with_reaper
        self.application_saw: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(PATIENCE_SECONDS)

    async def _serve(self) -> None:
        application = create_app(self.settings, with_reaper=self.with_reaper, with_keys=self.with_keys)

        async def seen(scope: Connection, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                self.application_saw.append(scope["path"])
            await application(scope, receive, send)

        async with application.router.lifespan_context(application):
            self.service = application.state.service
            protocol = ConnectionBounds.of(self.settings).protocol(FastPath(application))
            config = uvicorn.Config(seen, log_level="critical", lifespan="off", ws="none", http=protocol)  # type: ignore[arg-type]
            self.server = uvicorn.Server(config)
            self.server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
            self._ready.set()
            await self.server.serve([self._listener])

    def connect(self) -> socket.socket:
        return socket.create_connection(self._listener.getsockname(), timeout=PATIENCE_SECONDS)

    def stop(self) -> None:
        self.service.begin_shutdown()
        self.server.should_exit = True
        self._thread.join()

    def create(self, connection: socket.socket | None = None, **fields: Any) -> str:
        name = f"study-{next(_numbers)}"
        body = {"name": name, "search_space": SPACE, "sampler": {"name": "random", "seed": 1}, **fields}
        answer = send(connection or self.connect(), request("/v1/studies", body))
        assert answer.status == 201, answer.json
        return name

    def reached(self, path: str) -> bool:
        return path in self.application_saw


def request(path: str, body: Any, *headers: str, version: str = "1.1", kind: str = "application/json") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    if not any(header.startswith("Host:") for header in headers):
        headers = ("Host: localhost", *headers)
    lines = [f"POST {path} HTTP/{version}", f"Content-Type: {kind}", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + content


def send(connection: socket.socket, sent: bytes, *, long: bool = False) -> Answer:
    """long: by the way of the application."""
    if long:
        sent = sent.replace(b"Content-Type: application/json\r\n", b"Content-Type: application/json; charset=utf-8\r\n")
    connection.sendall(sent)
    return Answer(connection)


def send_in_pieces(connection: socket.socket, sent: bytes, *cuts: int) -> Answer:
    """Send it as several pieces: up to each of these places after its head, and then the rest."""
    head = sent.index(b"\r\n\r\n") + 4
    for start, end in itertools.pairwise([0, *(head + cut for cut in cuts), len(sent)]):
        connection.sendall(sent[start:end])
        time.sleep(0.05)
    return Answer(connection)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    started = Served(f"sqlite:///{tmp_path_factory.mktemp('hot')}/hpo.db")
    introduce = started.create()
    send(started.connect(), request(f"/v1/studies/{introduce}/trials:ask", ask()))  # w is known from here on
    yield started
    started.stop()


def ask(**fields: Any) -> dict[str, Any]:
    return {"worker_id": "w", "request_id": f"r{next(_numbers)}", **fields}


def calls_of(name: str) -> list[tuple[str, Any]]:
    """A trial's life, and what is refused in it."""
    trial = f"/v1/studies/{name}/trials/0"
    asked = {"worker_id": "w", "request_id": f"the ask of {name}"}
    told = {"attempt": 1, "state": "COMPLETE", "values": [0.5], "metrics": {"loss": 1.0}}
    next_ask = {"worker_id": "w", "request_id": f"the next ask of {name}"}
    return [
        (f"/v1/studies/{name}/trials:ask", asked),
        (f"/v1/studies/{name}/trials:ask", asked),
        (f"{trial}:report", {"attempt": 1, "reports": [{"step": 0, "value": 0.25}]}),
        (f"{trial}:report", {"attempt": 2, "reports": []}),
        (f"{trial}:heartbeat", {"attempt": 1}),
        (f"{trial}:suggest", {"attempt": 1, "parameters": SPACE}),
        (f"{trial}:suggest", {"attempt": 1, "parameters": {"y": SPACE["x"]}}),
        (f"{trial}:tell", {"attempt": 1, "state": "COMPLETE", "values": [0.5, 0.5]}),
        (f"{trial}:tell", told),
        (f"{trial}:tell", told),
        (f"{trial}:tell", {**told, "values": [0.75]}),
        (f"{trial}:report", {"attempt": 1, "reports": []}),
        (f"/v1/studies/{name}/trials/7:tell", told),
        (f"{trial}:tell", {**told, "next": next_ask}),
        (f"{trial}:tell", {**told, "next": next_ask}),
        (f"{trial}:tell", {**told, "values": [0.75], "next": ask()}),
        (f"/v1/studies/{name}/trials:ask", ask()),
    ]


def without_times(answer: Answer, name: str) -> Any:
    text = json.dumps(answer.json).replace(name, "it")
    return json.loads(re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "some time", text))


@pytest.mark.slow
def test_a_trials_life_is_answered_the_same_either_way(served: Served) -> None:
    connection = served.connect()
    short, long = served.create(connection), served.create(connection)
    served.application_saw.clear()
    statuses = []
    for (path, body), (other_path, other_body) in zip(calls_of(short), calls_of(long), strict=True):
        one = send(connection, request(path, body))
        assert not served.reached(path), (path, body)
        other = send(connection, request(other_path, other_body), long=True)
        assert served.reached(other_path)
        assert without_times(one, short) == without_times(other, long)
        assert one.status == other.status
        compared = [{**answer.headers, "date": "", "content-length": "", "x-request-id": ""} for answer in (one, other)]
        assert compared[0] == compared[1]
        statuses.append(one.status)
    assert statuses == [200, 200, 200, 409, 200, 200, 422, 422, 200, 200, 409, 409, 404, 200, 200, 409, 200]


@pytest.mark.parametrize("cuts", [(0,), (5,), (0, 10), (1, 2, 3)])
def test_a_body_that_comes_after_its_head_takes_the_short_way_too(served: Served, cuts: tuple[int, ...]) -> None:
    connection = served.connect()
    path = f"/v1/studies/{served.create(connection)}/trials:ask"
    for number in range(2):  # the connection goes on as if all had come at once
        answer = send_in_pieces(connection, request(path, ask()), *cuts)
        assert (answer.status, answer.json["trials"][0]["number"]) == (200, number)
    assert not served.reached(path)
    assert send_in_pieces(connection, request(path, {"worker_id": "w"}), *cuts).status == 422
    assert send(connection, request(path, ask())).status == 200


def test_a_large_body_that_comes_in_pieces_is_the_applications(served: Served) -> None:
    path = f"/v1/studies/{served.create()}/trials:ask"
    connection = served.connect()
    answer = send_in_pieces(connection, request(path, b" " * 200_000 + json.dumps(ask()).encode()), 0, 100_000)
    assert answer.status == 200
    assert served.reached(path)
    assert send(connection, request(path, ask())).status == 200


def test_what_comes_after_a_refusal_is_dropped_without_fault(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """Though the last call of the connection was on the fast path, which knows no method."""
    connection = served.connect()
    path = f"/v1/studies/{served.create(connection)}/trials:ask"
    assert send(connection, request(path, ask())).status == 200
    connection.sendall(b"rubbish\r\n\r\n")
    assert Answer(connection).status == 400
    end = connection.getsockname()
    connection.sendall(b"more of it")
    connection.shutdown(socket.SHUT_WR)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(each.client == end for each in served.server.server_state.connections):  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_a_study_that_does_not_exist_is_404_either_way(served: Served) -> None:
    path = "/v1/studies/nowhere/trials:ask"
    one, other = (send(served.connect(), request(path, ask()), long=long) for long in (False, True))
    assert (one.status, one.json) == (other.status, other.json)
    assert one.code == "not_found"


REFUSED = [
    b"{",
    b"[]",
    b"null",
    b'"w"',
    b"\xff",
    b'{"worker_id": "w", "request_id": "nan", "wait_seconds": NaN}',
    b'{"worker_id": "w", "request_id": "large", "wait_seconds": 1e400}',
    b'{"worker_id": "w", "request_id": "\\ud800"}',
    b'{"worker_id": "w", "request_id": "nul", "objectives": ["\\u0000"]}',
    {"worker_id": "w"},
    {"worker_id": "w", "request_id": "r", "count": 101},
    {"worker_id": "w", "request_id": "r", "count": "two"},
    {"worker_id": "w", "request_id": "r", "extra": 1},
    {"worker_id": "w", "request_id": "r", "objectives": ["a" * 65, 7, None]},
    {str(number): number for number in range(20)},
]


@pytest.mark.parametrize("body", REFUSED)
@pytest.mark.parametrize("call", ["studies/{}/trials:ask", "studies/{}/trials/0:tell", "trials:ask", "trials:batch"])
def test_a_body_that_breaks_the_rules_is_refused_in_the_same_words_either_way(
    served: Served, call: str, body: Any
) -> None:
    path = "/v1/" + call.format(served.create())
    one = send(served.connect(), request(path, body))
    assert not served.reached(path) or "studies" not in path
    other = send(served.connect(), request(path, body), long=True)
    assert one.status in (400, 422)
    assert (one.status, one.json) == (other.status, other.json)


MALFORMED_BATCH = {"calls": [{"study": "s", "number": 0, "call": "tell", "attempt": 1}, {"call": "nothing"}, {}]}
BATCH = {
    "calls": [
        {"study": "nowhere", "number": 0, "call": "heartbeat", "attempt": 1},
        {"study": "nowhere", "number": 0, "call": "tell", "attempt": 1, "state": "COMPLETE", "values": [0.5]},
    ]
}


@pytest.mark.parametrize(("body", "status"), [(MALFORMED_BATCH, 422), (BATCH, 207), ({"calls": []}, 200)])
def test_a_batch_is_answered_the_same_either_way(served: Served, body: Any, status: int) -> None:
    served.application_saw.clear()
    one = send(served.connect(), request("/v1/trials:batch", body))
    assert not served.reached("/v1/trials:batch")
    other = send(served.connect(), request("/v1/trials:batch", body), long=True)
    assert (one.status, one.json) == (other.status, other.json)
    assert one.status == status


@pytest.mark.parametrize(
    ("body", "how", "status"),
    [
        (b"", {}, 422),
        ({"worker_id": "w", "request_id": "r"}, {"kind": "text/plain"}, 422),
        ({"worker_id": "w", "request_id": "typed"}, {"kind": "application/json; charset=utf-8"}, 200),
        ({"worker_id": "w", "request_id": "old"}, {"version": "1.0"}, 200),
        (b" " * (2**20 + 1), {}, 413),
    ],
)
def test_whatever_is_out_of_the_ordinary_is_the_applications(
    served: Served, body: Any, how: dict[str, str], status: int
) -> None:
    name = served.create()
    path = f"/v1/studies/{name}/trials:ask"
    answer = send(served.connect(), request(path, body, **how))
    assert answer.status == status, answer.json
    assert served.reached(path)


def test_a_worker_not_heard_of_before_is_known_when_it_has_its_answer(served: Served) -> None:
    path = f"/v1/studies/{served.create()}/trials:ask"
    new = f"new-{next(_numbers)}"
    assert send(served.connect(), request(path, {**ask(), "worker_id": new})).status == 200
    assert not served.reached(path)
    connection = served.connect()
    connection.sendall(b"GET /v1/workers?page_size=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert new in [worker["worker_id"] for worker in Answer(connection).json["items"]]


@pytest.mark.parametrize("header", ["Connection: close", "Expect: 100-continue"])
def test_a_request_with_wishes_of_its_own_is_the_applications(served: Served, header: str) -> None:
    path = f"/v1/studies/{served.create()}/trials:ask"
    connection = served.connect()
    connection.sendall(request(path, ask(), header))
    if "100" in header:
        connection.recv(len(b"HTTP/1.1 100 Continue\r\n\r\n"))
    assert Answer(connection).status == 200
    assert served.reached(path)


def test_requests_sent_one_behind_the_other_are_answered_in_their_order(served: Served) -> None:
    connection = served.connect()
    name = served.create(connection)
    for _ in range(4):
        send(connection, request(f"/v1/studies/{name}/trials:ask", ask()))
    told = {"attempt": 1, "state": "COMPLETE", "values": [0.5]}
    connection.sendall(b"".join(request(f"/v1/studies/{name}/trials/{number}:tell", told) for number in range(4)))
    read = connection.makefile("rb")
    numbers = [Answer(connection, read).json["number"] for _ in range(4)]
    assert numbers == [0, 1, 2, 3]


def test_an_ask_that_finds_nothing_waits_where_it_came_and_looks_no_more_than_once(served: Served) -> None:
    connection, other = served.connect(), served.connect()
    name = served.create(connection)
    assert send(connection, request(f"/v1/studies/{name}:pause", {})).status == 200
    path = f"/v1/studies/{name}/trials:ask"
    nothing = send(connection, request(path, ask()))
    assert (nothing.json["trials"], nothing.json["study_state"]) == ([], "PAUSED")
    assert not served.reached(path)
    looked = group_calls.count
    connection.sendall(request(path, ask(wait_seconds=20)))
    while not served.service.long_polls:
        time.sleep(0.01)
    assert group_calls.count <= looked + 1
    assert send(other, request(f"/v1/studies/{name}:resume", {})).status == 200
    assert len(Answer(connection).json["trials"]) == 1
    assert not served.reached(path)


@pytest.mark.slow
def test_who_hangs_up_while_waiting_on_the_fast_path_is_given_nothing(served: Served) -> None:
    connection, other = served.connect(), served.connect()
    name = served.create(connection, limits={"trials": 1})
    assert send(connection, request(f"/v1/studies/{name}:pause", {})).status == 200
    path = f"/v1/studies/{name}/trials:ask"
    connection.sendall(request(path, ask(wait_seconds=20)))
    while not served.service.long_polls:
        time.sleep(0.01)
    connection.close()
    while served.service.long_polls:
        time.sleep(0.01)
    assert send(other, request(f"/v1/studies/{name}:resume", {})).status == 200
    assert len(send(other, request(path, ask())).json["trials"]) == 1


def test_whoever_hangs_up_before_the_answer_disturbs_nobody(served: Served) -> None:
    connection = served.connect()
    name = served.create(connection)
    for _ in range(20):
        leaving = served.connect()
        leaving.sendall(request(f"/v1/studies/{name}/trials:ask", ask()))
        leaving.close()
    assert send(connection, request(f"/v1/studies/{name}/trials:ask", ask())).status == 200


@pytest.mark.slow
def test_calls_on_the_fast_path_are_counted_by_their_route(served: Served) -> None:
    def count() -> float:
        connection = served.connect()
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        route = re.escape("/v1/studies/{study:segment}/trials:ask")
        found = re.search(rf'hpo_requests_total{{method="POST",route="{route}",status="200"}} (\S+)', text)
        return float(found[1]) if found else 0.0

    name, before = served.create(), count()
    for _ in range(3):
        send(served.connect(), request(f"/v1/studies/{name}/trials:ask", ask()))
    assert count() == before + 3


FOREIGN = [
    ["Host: evil.example"],
    ["Host: evil.example:8000"],
    ["Host: localhost.evil.example"],
    ["Host: 127.0.0.1.evil.example"],
    ["Host: 0.0.0.0"],
    ["Host: 10.0.0.1"],
    ["Host: evil.example", "X-Forwarded-Host: localhost"],
    ["Host:"],
    ["Origin: https://evil.example"],
    ["Origin: null"],
    ["Origin: http://localhost:3000"],
    ["Host: localhost:8000", "Origin: http://localhost:3000"],
    ["Host: localhost:8000", "Origin: http://127.0.0.1:8000"],
    ["Origin: http://localhost", "Origin: http://evil.example"],
    ["Sec-Fetch-Site: cross-site"],
    ["Sec-Fetch-Site: same-site"],
    ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"],
]
OWN = [
    [],
    ["Host: LOCALHOST:8000"],
    ["Host: localhost."],
    ["Host: 127.0.0.1:1"],
    ["Host: 127.0.0.2"],
    ["Host: [::1]:8000"],
    ["Host: [::1%25lo]:8000"],
    ["Host: [::ffff:127.0.0.1]"],
    ["Host: localhost:8000", "Origin: http://LOCALHOST:8000", "Sec-Fetch-Site: same-origin"],
    ["Host: localhost:80", "Origin: http://localhost"],
    ["Host: localhost", "Origin: https://localhost:443"],
    ["Sec-Fetch-Site: none"],
    ["X-Forwarded-Host: evil.example"],
]


@pytest.mark.slow
@pytest.mark.parametrize("long", [False, True])
def test_without_keys_a_page_of_another_site_may_call_nothing_either_way(served: Served, long: bool) -> None:
    connection = served.connect()
    name = served.create(connection)
    path = f"/v1/studies/{name}/trials:ask"
    for headers in FOREIGN:
        for verb in (path, f"/v1/studies/{name}:cancel"):
            answer = send(connection, request(verb, ask(), *headers), long=long)
            assert (answer.status, answer.code) == (403, "forbidden"), headers
            assert "--no-auth" in answer.json["detail"]
    for headers in OWN:
        served.application_saw.clear()
        answer = send(connection, request(path, ask(), *headers), long=long)
        assert answer.status == 200, (headers, answer.json)
        assert served.reached(path) is long
    assert served.service.database.remembered(name).state == "ACTIVE"


@pytest.mark.parametrize(
    ("line", "headers", "status"),
    [
        ("GET /v1/studies HTTP/1.1", ["Host: evil.example"], 403),
        ("GET http://evil.example/v1/studies HTTP/1.1", ["Host: localhost"], 403),
        ("GET http://localhost/v1/studies HTTP/1.1", ["Host: evil.example"], 200),
        ("GET /v1/studies HTTP/1.0", [], 200),
        ("GET /v1/studies HTTP/1.1", ["Host: localhost", "Origin: http://evil.example"], 403),
        ("GET /v1/studies HTTP/1.1", ["Host: localhost", "Sec-Fetch-Site: cross-site"], 403),
        ("GET /v1/studies HTTP/1.1", ["Host: localhost", "Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: cors"], 403),
        (
            "GET /v1/studies HTTP/1.1",
            ["Host: localhost", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"],
            200,
        ),
        ("GET /v1/studies HTTP/1.1", ["Host: localhost", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors"], 200),
        ("OPTIONS /v1/studies HTTP/1.1", ["Host: localhost", "Origin: http://evil.example"], 403),
    ],
)
def test_without_keys_a_page_of_another_site_reads_nothing(
    served: Served, line: str, headers: list[str], status: int
) -> None:
    connection = served.connect()
    connection.sendall("\r\n".join([line, *headers, "Connection: close", "", ""]).encode())
    assert Answer(connection).status == status


def test_every_answer_tells_the_browser_not_to_guess_and_not_to_frame(served: Served) -> None:
    path = f"/v1/studies/{served.create()}/trials:ask"
    refused = served.connect()
    refused.sendall(b"rubbish\r\n\r\n")
    answers = [
        send(served.connect(), request(path, ask())),
        send(served.connect(), request(path, ask()), long=True),
        send(served.connect(), request(path, {})),
        send(served.connect(), request(path, ask(), "Host: evil.example")),
        send(served.connect(), request("/nowhere", {})),
        Answer(refused),
    ]
    assert [answer.status for answer in answers] == [200, 200, 422, 403, 404, 400]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"


class Guarded:
    """The server behind its door, with a study."""

    def __init__(self, database: str, **settings: Any) -> None:
        self.served = Served(database, with_keys=True, **settings)
        self.table = KeyTable(database)
        self.admin = self.key(Scope.ADMIN)
        self.path = "/v1/studies/mine/trials:ask"
        for name in ("mine", "theirs"):
            body = {"name": name, "search_space": SPACE, "sampler": {"name": "random", "seed": 1}}
            assert self.send(self.admin, "/v1/studies", body).status == 201
        assert self.ask(self.admin).status == 200  # w is known from here on

    def key(self, scope: Scope, *studies: str) -> str:
        return create(self.table, scope, studies or None).token

    def send(self, token: str | None, path: str, body: Any) -> Answer:
        shown = [] if token is None else [f"Authorization: Bearer {token}"]
        return send(self.served.connect(), request(path, body, *shown))

    def ask(self, token: str | None, **fields: Any) -> Answer:
        return self.send(token, self.path, ask(**fields))

    def stop(self) -> None:
        self.served.stop()
        self.table.close()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    started = Guarded(f"sqlite:///{tmp_path}/hpo.db")
    yield started
    started.stop()


@pytest.mark.slow
def test_the_short_way_is_for_keys_that_open_it(guarded: Guarded) -> None:
    worker, bound = guarded.key(Scope.WORKER), guarded.key(Scope.WORKER, "mine")
    time.sleep(1.1)  # the keys are read again
    assert guarded.ask(worker).status == 200  # this one may wait for them
    guarded.served.application_saw.clear()
    assert [guarded.ask(token).status for token in (worker, bound, guarded.admin)] == [200] * 3
    assert not guarded.served.application_saw
    refused = [None, "hpo_" + "0" * 36, guarded.key(Scope.READ), guarded.key(Scope.WORKER, "theirs")]
    time.sleep(1.1)
    assert [guarded.ask(token).status for token in refused] == [401, 401, 403, 404]
    assert guarded.served.application_saw == [guarded.path] * len(refused)


@pytest.mark.slow
def test_a_revoked_key_takes_the_short_way_no_longer_than_a_second(guarded: Guarded) -> None:
    token = guarded.key(Scope.WORKER)
    time.sleep(1.1)
    assert guarded.ask(token).status == 200
    revoke(guarded.table, token_id(guarded.table, Scope.WORKER))
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        guarded.ask(guarded.admin)  # others go on meanwhile
    assert guarded.ask(token).status == 401


def test_with_keys_a_trailer_opens_nothing(guarded: Guarded) -> None:
    connection = guarded.served.connect()
    chunked = request(guarded.path, b"", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
    content = json.dumps(ask()).encode()
    trailer = b"Authorization: Bearer " + guarded.admin.encode()
    connection.sendall(chunked + b"%x\r\n%s\r\n0\r\n%s\r\n\r\n" % (len(content), content, trailer))
    assert Answer(connection).status == 401


@pytest.mark.slow
def test_with_keys_any_host_and_page_may_call_since_a_page_has_no_key(guarded: Guarded) -> None:
    shown = f"Authorization: Bearer {guarded.admin}"
    for header in ("Host: hpo.example.org", "Origin: https://evil.example", "Sec-Fetch-Site: cross-site"):
        answer = send(guarded.served.connect(), request(guarded.path, ask(), shown, header))
        assert answer.status == 200


def token_id(table: KeyTable, scope: Scope) -> str:
    return next(key.id for key in table.live() if key.scope is scope)


@pytest.mark.slow
def test_the_short_way_is_charged_to_the_keys_rate_once(tmp_path: Path) -> None:
    guarded = Guarded(f"sqlite:///{tmp_path}/hpo.db", rate_limit=5)
    try:
        token = guarded.key(Scope.WORKER)
        time.sleep(1.1)
        statuses = [guarded.ask(token).status for _ in range(40)]  # more than a slow machine gains meanwhile
        assert statuses[:5] == [200] * 5
        assert 429 in statuses[5:]
        time.sleep(1.1)
        # nothing to give: the application takes over, and does not charge a second time
        assert guarded.send(guarded.admin, "/v1/studies/mine:pause", {}).status == 200
        assert [guarded.ask(token, wait_seconds=0.01).status for _ in range(2)] == [200] * 2
    finally:
        guarded.stop()
