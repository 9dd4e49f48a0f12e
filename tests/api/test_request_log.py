"""Every answer has an id, every failure a line of that id, and no line holds up a call."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi.testclient import TestClient

from hpo_service import log_format, logged_state
from hpo_service.api import request_log
from hpo_service.api.app import create_app
from hpo_service.domain.errors import Unavailable
from hpo_service.domain.key import Scope
from hpo_service.logged_state import LoggedState
from hpo_service.operations import export, studies
from hpo_service.operations.keys import create
from hpo_service.settings import Settings
from hpo_service.store import KeyTable, batch_runner
from tests.api.test_fast_path import Answer, Served, ask, request, send
from tests.patience import PATIENCE_SECONDS

MADE = re.compile(r"[0-9a-f]{16}-[0-9a-f]+")
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """The lines of the log since the last time."""
    monkeypatch.setattr(log_format, "limited", log_format.Limited())
    monkeypatch.setattr(request_log, "limited", log_format.limited)
    monkeypatch.setattr(logged_state, "limited", log_format.limited)
    return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]


@pytest.fixture
def served(tmp_path: Path, lines: Any) -> Iterator[Served]:
    started = Served(f"sqlite:///{tmp_path}/hpo.db", access_log=False)
    yield started
    started.stop()


def get(server: Served, path: str, *headers: str) -> Answer:
    with server.connect() as connection:
        return send(connection, "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode())


# -- ids --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_answer_has_an_id_of_its_own_whichever_way_it_takes(served):
    connection = served.connect()
    path = f"/v1/studies/{served.create(connection)}/trials:ask"
    send(connection, request(path, ask()))  # w is known from here on
    answers = [
        send(connection, request(path, ask())),
        send(connection, request(path, ask()), long=True),
        send(connection, request(path, {"nonsense": 1})),
        get(served, "/v1/studies/nowhere"),
        get(served, "/nowhere"),
        get(served, "/healthz"),
        send(served.connect(), b"NONSENSE\r\n\r\n"),
    ]
    assert [answer.status for answer in answers] == [200, 200, 422, 404, 404, 200, 400]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    assert all(MADE.fullmatch(given) for given in ids)


@pytest.mark.slow
@pytest.mark.parametrize("given", ["mine", "a" * 128, "with spaces, and ~ signs", "9f86d081-884c-4d63"])
def test_the_callers_own_id_is_taken(served, given):
    connection = served.connect()
    path = f"/v1/studies/{served.create(connection)}/trials:ask"
    send(connection, request(path, ask()))
    for long in (False, True):
        answer = send(connection, request(path, ask(), f"X-Request-Id: {given}"), long=long)
        assert answer.headers["x-request-id"] == given
    assert get(served, "/nowhere", f"X-Request-Id: {given}").headers["x-request-id"] == given


@pytest.mark.slow
@pytest.mark.parametrize("given", ["", "a" * 129, "caf\u00e9", "a\tb", "\u009b31m"])
def test_what_is_no_id_is_replaced(served, given):
    answer = get(served, "/nowhere", f"X-Request-Id: {given}".encode().decode("latin-1"))
    assert MADE.fullmatch(answer.headers["x-request-id"])


@pytest.mark.parametrize(
    ("given", "known"),
    [
        (TRACE, True),
        (TRACE.replace("00-", "cc-", 1) + "-what-the-future-adds", True),
        (TRACE + "-more", False),
        (TRACE.replace("00-", "ff-", 1), False),
        (TRACE.upper(), False),
        ("00-" + "0" * 32 + "-00f067aa0ba902b7-01", False),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01", False),
        ("nonsense", False),
    ],
)
def test_a_traceparent_is_read_where_it_is_valid(given, known):
    found = request_log.trace_of([(b"traceparent", given.encode())])
    assert found == ({"trace_id": TRACE[3:35], "span_id": TRACE[36:52]} if known else {})


# -- failures ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("long", [False, True], ids=["hot", "ordinary"])
def test_each_503_has_a_line_with_what_is_needed_to_find_its_cause(served, lines, tmp_path, monkeypatch, long):
    monkeypatch.setattr(batch_runner, "LOCKED_PATIENCE_SECONDS", 0.2)
    connection = served.connect()
    path = f"/v1/studies/{served.create(connection)}/trials:ask"
    send(connection, request(path, ask()))
    other = sqlite3.connect(tmp_path / "hpo.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    lines()

    sent = request(
        path, ask(), "X-Request-Id: quoted by a user", f"traceparent: {TRACE}", "Authorization: Bearer hpo_x"
    )
    assert send(connection, sent, long=long).status == 503
    other.execute("ROLLBACK")
    other.close()
    assert send(connection, request(path, ask())).status == 200

    found = lines()
    (failed,) = [line for line in found if line["event"] == "a request failed"]
    assert failed.pop("seconds") >= 0.2
    assert failed.pop("client").startswith("127.0.0.1:")
    failed.pop("timestamp")
    assert failed == {
        "event": "a request failed",
        "level": "warning",
        "status": 503,
        "code": "unavailable",
        "route": "/v1/studies/{study:segment}/trials:ask",
        "method": "POST",
        "request_id": "quoted by a user",
        "trace_id": TRACE[3:35],
        "span_id": TRACE[36:52],
        "detail": "the database cannot take the call now: database is locked",
    }
    outage = [line["event"] for line in found if "database takes" in line["event"] or "not take" in line["event"]]
    assert outage == ["the database does not take writes", "the database takes writes again"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"NONSENSE\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\nX-Request-Id: mine\r\nX", 408, "request_timeout"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000, 431, "too_large"),
    ],
)
def test_each_refusal_at_the_gate_has_a_line(tmp_path, lines, sent, status, code):
    server = Served(f"sqlite:///{tmp_path}/hpo.db", head_seconds=0.3)
    try:
        answer = send_raw(server, sent)
    finally:
        server.stop()
    (refused,) = [line for line in lines() if line["event"] == "a connection was refused"]
    assert (refused["status"], refused["code"], refused["level"]) == (status, code, "warning")
    assert (
        refused["request_id"] == answer.headers["x-request-id"] == ("mine" if status == 408 else refused["request_id"])
    )
    assert refused["client"].startswith("127.0.0.1:")
    assert refused["detail"] == answer.json["detail"]


def send_raw(server: Served, sent: bytes) -> Answer:
    with server.connect() as connection:
        connection.sendall(sent)
        return Answer(connection)


def test_too_many_connections_and_too_large_a_body_have_a_line(tmp_path, lines):
    server = Served(f"sqlite:///{tmp_path}/hpo.db", connections=1)
    try:
        first = server.connect()
        send(first, request(f"/v1/studies/{server.create(first)}/trials:ask", ask()))  # a worker keeps its place
        with server.connect() as second:
            assert Answer(second).status == 503
        answer = send(first, b"POST /v1/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n")
        assert answer.status == 413
    finally:
        server.stop()
    found = {(line["event"], line["status"]): line for line in lines() if "status" in line}
    assert found["a connection was refused", 503]["detail"].startswith("there are too many connections")
    assert found["a request failed", 413]["request_id"] == answer.headers["x-request-id"]


def test_a_fault_of_the_server_has_one_line_with_its_traceback_and_one_answer_with_its_id(own, lines, monkeypatch):
    async def broken(*_: Any) -> None:
        raise ZeroDivisionError("in the middle of it")

    monkeypatch.setattr(studies, "read", broken)
    answer = own.client.get(f"/v1/studies/{own.create()}")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "internal"
    (line,) = lines()
    assert (line["level"], line["status"], line["request_id"]) == ("error", 500, answer.headers["x-request-id"])
    assert "ZeroDivisionError: in the middle of it" in line["exception"]
    assert 'status="500"' in own.client.get("/metrics").text


def test_a_stream_that_breaks_off_has_a_line_and_is_not_ended_as_if_it_were_whole(served, lines, monkeypatch):
    async def broken(*_: Any) -> Any:
        async def pieces() -> Any:
            yield b"the beginning"
            raise OSError("the disk has gone")

        return pieces()

    monkeypatch.setattr(export, "pieces", broken)
    name = served.create()
    with served.connect() as connection:
        connection.sendall(f"GET /v1/studies/{name}/trials:export HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        read = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"the beginning" in read
    assert not read.endswith(b"0\r\n\r\n")
    (line,) = [line for line in lines() if line["level"] == "error"]
    assert line["event"] == "an answer broke off"
    assert line["request_id"] in read.decode()
    assert "the disk has gone" in line["exception"]


@pytest.mark.slow
def test_a_caller_that_hangs_up_is_no_fault_of_the_server(served, lines):
    with served.connect() as connection:
        connection.sendall(b"POST /v1/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.1)
    assert get(served, "/healthz").status == 200
    assert [line for line in lines() if line["level"] != "info"] == []


@pytest.mark.slow
def test_who_was_told_what_has_a_line_with_the_key(tmp_path, lines):
    database = f"sqlite:///{tmp_path}/hpo.db"
    app = create_app(Settings(database_url=database))
    with TestClient(app) as client:
        table = KeyTable(database)
        drawn = create(table, Scope.ADMIN)
        table.close()
        headers = {"Authorization": f"Bearer {drawn.token}"}
        space = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
        client.post("/v1/studies", json={"name": "mine", "search_space": space}, headers=headers)
        for _ in range(2):  # the second time nothing happens
            client.post("/v1/studies/mine:pause", headers={**headers, "X-Request-Id": "r"})
    (line,) = [line for line in lines() if line["event"] == "a study was told to change its state"]
    assert {key: line[key] for key in ("study", "verb", "state", "key", "request_id")} == {
        "study": "mine",
        "verb": "pause",
        "state": "PAUSED",
        "key": drawn.key.id,
        "request_id": "r",
    }


def test_what_lasts_has_a_line_when_it_begins_and_one_when_it_ends(lines):
    outage = LoggedState("it does not work", "it works again")
    outage.worked()
    for _ in range(5):
        outage.failed(error="because")
    outage.worked()
    outage.worked()
    begins, ends = lines()
    assert (begins["event"], begins["error"]) == ("it does not work", "because")
    assert (ends["event"], ends["times"]) == ("it works again", 5)


@pytest.mark.slow
def test_leases_that_run_out_have_a_line_that_counts_them_and_the_reaper_is_not_late(tmp_path, lines):
    app = create_app(Settings(database_url=f"sqlite:///{tmp_path}/hpo.db"), with_keys=False)
    with TestClient(app) as client:
        space = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
        client.post("/v1/studies", json={"name": "mine", "search_space": space, "lease_seconds": 1})
        client.post("/v1/studies/mine/trials:ask", json={"worker_id": "w", "request_id": "r", "count": 3})
        found: list[Any] = []
        deadline = time.monotonic() + PATIENCE_SECONDS
        while sum(line["leases"] for line in found) < 3 and time.monotonic() < deadline:
            found += [line for line in lines() if line["event"] == "leases have run out"]
            time.sleep(0.1)
        reaped = client.app.state.service.reaped_at  # type: ignore[attr-defined]
        while client.app.state.service.reaped_at == reaped and time.monotonic() < deadline:  # type: ignore[attr-defined]
            time.sleep(0.1)
        assert client.app.state.service.reaped_at > reaped  # type: ignore[attr-defined]
    assert sum(line["leases"] for line in found) == 3


def test_of_a_flood_ten_lines_a_second_are_written_and_the_others_counted(lines):
    for number in range(1000):
        request_log.refused(("192.0.2.1", number), None, 400, "malformed_request", "no HTTP")
    request_log.refused(("192.0.2.1", 1), None, 431, "too_large", "another kind")
    log_format.limited.tell()
    written = lines()
    kinds = [line["event"] for line in written]
    assert kinds.count("a connection was refused") <= 2 * log_format.LINES_A_SECOND + 1  # a second may end meanwhile
    assert any(line.get("status") == 431 for line in written)
    (more,) = [line for line in written if line["event"].startswith("more lines")]
    assert more["lines"] + kinds.count("a connection was refused") == 1001


@pytest.mark.slow
def test_no_key_body_or_query_is_in_any_line(tmp_path, lines, monkeypatch):
    server = Served(f"sqlite:///{tmp_path}/hpo.db", access_log=True)

    async def away(*_: Any) -> None:
        raise Unavailable("the database is away")

    monkeypatch.setattr(studies, "create", away)
    try:
        body = {"name": "a-secret-body", "search_space": {"x": {"type": "float", "low": 0.0, "high": 1.0}}}
        path = "/v1/studies?token=a-secret-query"
        assert send(server.connect(), request(path, body, "Authorization: Bearer a-secret-key")).status == 503
    finally:
        server.stop()
    assert "a-secret" not in json.dumps(lines())


# -- the access log ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_access_log_has_a_line_for_every_request_whichever_way_it_takes(tmp_path, lines):
    database = f"sqlite:///{tmp_path}/hpo.db"
    server = Served(database, access_log=True)
    try:
        connection = server.connect()
        path = f"/v1/studies/{server.create(connection)}/trials:ask"
        send(connection, request(path, ask()))
        lines()
        hot = send(connection, request(path, ask()))
        ordinary = send(connection, request(path, ask()), long=True)
        missing = get(server, "/no%1Bwhere?a=b")
    finally:
        server.stop()
    found = [line for line in lines() if line["event"] == "access"]
    assert [line["path"] for line in found] == [path, path, "/no%1Bwhere"]
    assert [line["status"] for line in found] == [200, 200, 404]
    for line, answer in zip(found, (hot, ordinary, missing), strict=True):
        assert line["request_id"] == answer.headers["x-request-id"]
        assert line["bytes"] == int(answer.headers["content-length"])
        assert line["client"].startswith("127.0.0.1:")
        assert 0 < line["seconds"] < 60


@pytest.mark.slow
def test_the_access_log_names_the_key_by_its_id(tmp_path, lines):
    database = f"sqlite:///{tmp_path}/hpo.db"
    server = Served(database, with_keys=True, access_log=True)
    try:
        table = KeyTable(database)
        drawn = create(table, Scope.ADMIN)
        table.close()
        get(server, "/v1/studies", f"Authorization: Bearer {drawn.token}")
        get(server, "/v1/studies")
    finally:
        server.stop()
    found = [line for line in lines() if line["event"] == "access"]
    assert [(line["status"], line["key"]) for line in found] == [(200, drawn.key.id), (401, None)]


@pytest.mark.slow
def test_without_being_asked_for_there_is_none(served, lines):
    get(served, "/healthz")
    assert [line for line in lines() if line["event"] == "access"] == []


# -- a log that nobody reads ------------------------------------------------------------------------------


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    servers: list[subprocess.Popen[bytes]] = []

    def start(errors: Any, **variables: str) -> subprocess.Popen[bytes]:
        server = subprocess.Popen(
            [sys.executable, "-m", "hpo_service", "serve", "--no-auth", "--port", "0", "--json"],
            env={**os.environ, "HPO_DATABASE_URL": f"sqlite:///{tmp_path}/hpo.db", **variables},
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.kill()
        server.communicate()


def url_of(server: subprocess.Popen[bytes]) -> str:
    assert server.stdout is not None
    return str(json.loads(server.stdout.readline())["url"])


@pytest.mark.slow
def test_a_pipe_that_nobody_reads_holds_up_no_call_and_no_end(serve, tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 2**16)
    os.set_blocking(writing, True)  # as a server's pipe is: whoever writes now waits for ever
    server = serve(writing, HPO_ACCESS_LOG="true")
    with Caller(url_of(server)) as client:
        for _ in range(200):
            assert client.get("/healthz") == 200
        assert client.get("/nowhere") == 404
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=PATIENCE_SECONDS) == 0
    os.close(reading)
    os.close(writing)


@pytest.mark.slow
def test_a_pipe_that_is_read_again_says_how_many_lines_were_lost(serve):
    reading, writing = os.pipe()
    server = serve(writing, HPO_ACCESS_LOG="true")
    os.close(writing)
    with Caller(url_of(server)) as client:
        for _ in range(log_format.MOST_LINES + 1000):  # 64 KiB of the pipe's are a few hundred lines
            client.get("/healthz")
        read = ""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while "lines of this log were lost" not in read and time.monotonic() < deadline:
            read += os.read(reading, 2**20).decode()
            client.get("/healthz")
    assert "lines of this log were lost" in read
    os.close(reading)


class Caller:
    """Calls on one connection."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_SECONDS)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, path: str) -> int:
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        answer.read()
        return answer.status


@pytest.mark.slow
def test_the_log_says_how_the_server_begins_and_ends(serve, tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as errors:
        server = serve(errors)
        url = url_of(server)
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=PATIENCE_SECONDS) == 0
    begun, *_, ended = [json.loads(line) for line in log.read_text().splitlines()]
    assert begun["event"] == "serving"
    assert begun["address"] == url
    assert begun["version"]
    assert re.fullmatch(r"\d{4}.*", begun["schema"])
    assert begun["database"].startswith("sqlite:///")
    assert ended["event"] == "the server has ended"
