"""What /metrics says: as docs/operating.md has it, true of the record, cheap, and there while the database is away."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hpo_service.api.app import create_app
from hpo_service.domain.key import Scope
from hpo_service.operations.keys import create
from hpo_service.reading import figures, reading_process
from hpo_service.settings import Settings
from hpo_service.store import KeyTable, batch_runner
from hpo_service.store.reader import Reader
from tests.api.conftest import Api
from tests.api.test_fast_path import Served, request, send
from tests.patience import PATIENCE_SECONDS

PAGE = Path(__file__).parents[2] / "docs" / "operating.md"
_ROW = re.compile(r"\| `(hpo_\w+)` \| (\w+) \|([^|]*)\| (record|server) \| .+ \|")
_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Exposed:
    """The text, read: types by name, and samples by name and labels."""

    def __init__(self, text: str) -> None:
        self.types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name, labels, value = _SAMPLE.fullmatch(line).groups()  # type: ignore[union-attr]
                self.samples[name, frozenset(_LABEL.findall(labels or ""))] = float(value)

    def __call__(self, name: str, **labels: str) -> float:
        return self.samples[name, frozenset(labels.items())]

    def labels(self, metric: str) -> set[str]:
        names = {metric, f"{metric}_bucket", f"{metric}_sum", f"{metric}_count"}
        return {label for name, labels in self.samples if name in names for label, _ in labels} - {"le"}


def exposed(client: Any, **how: Any) -> Exposed:
    answer = client.get("/metrics", **how)
    assert answer.status_code == 200, answer.text
    return Exposed(answer.text)


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the record is a new one."""
    monkeypatch.setattr(figures, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(figures, "REST", 0)


def eventually(holds: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it has not come to hold"
        time.sleep(0.02)
    return found


@pytest.mark.slow
def test_the_page_has_every_metric_with_its_type_and_labels_and_no_other(database_url, monkeypatch):
    monkeypatch.setattr(reading_process, "AGAIN_SECONDS", 1.0)
    app = create_app(Settings(database_url=database_url), with_keys=False, with_reading_process=True)
    with TestClient(app, raise_server_exceptions=False) as client:
        eventually(lambda: app.state.service.reading.is_up)
        Api(client, time.time).finish(Api(client, time.time).create(), 0.5)
        found = exposed(client)

    told = {
        name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in _ROW.findall(PAGE.read_text())
    }
    assert told == {name: (kind, found.labels(name)) for name, kind in found.types.items()}


def test_trials_and_studies_are_counted_by_state(own, anew):
    name = own.create()
    own.finish(name, 0.5, 0.25)
    own.ask(name)
    own.enqueue(name, {"x": 0.5}, {"x": 0.75})
    own.verb(own.create(), "pause")

    found = exposed(own.client)

    states = {state: found("hpo_trials", state=state) for state in ("WAITING", "RUNNING", "COMPLETE", "PRUNED", "FAIL")}
    assert states == {"WAITING": 2, "RUNNING": 1, "COMPLETE": 2, "PRUNED": 0, "FAIL": 0}
    assert found("hpo_studies", state="ACTIVE") == 1
    assert found("hpo_studies", state="PAUSED") == 1


def test_workers_are_wanted_for_what_runs_and_for_what_limits_leave(own, anew):
    def wanted() -> float:
        return exposed(own.client)("hpo_workers_wanted") - before

    before = 0.0
    before = wanted()
    name = own.create(limits={"trials": 10})
    assert wanted() == 10
    own.ask(name, 3)
    assert wanted() == 10
    own.tell(name, 0, 0.5)
    own.work(name, 1, "release")
    assert wanted() == 9
    own.limit(name, running=2)  # one runs
    assert wanted() == 2
    own.verb(name, "pause")
    assert wanted() == 1
    own.work(name, 2, "release")
    assert wanted() == 0
    own.create()  # without a limit
    assert wanted() == 1000


@pytest.mark.slow
def test_the_age_of_the_oldest_waiting_trial_counts_from_its_enqueueing_or_from_the_end_of_its_lease(own, anew, clock):
    def age() -> float:
        return exposed(own.client)("hpo_oldest_waiting_trial_seconds")

    name = own.create(lease_seconds=10)
    own.ask(name)
    assert age() == 0
    own.enqueue(name, {"x": 0.5})
    clock.turn(4)
    assert age() == 4
    own.ask(name)  # it has been given out
    assert age() == 0
    clock.turn(11)
    own.study(name)  # both leases are taken back
    clock.turn(3)
    assert age() == 3
    own.verb(name, "pause")
    assert age() == 0
    own.verb(name, "resume")
    own.ask(name, 2)
    assert age() == 0


def test_an_enqueued_trials_wait_is_no_attempt_of_it(own):
    name = own.create()
    own.enqueue(name, {"x": 0.5})
    assert own.get(f"/v1/studies/{name}/trials/0/attempts").json()["items"] == []
    own.ask(name)
    own.tell(name, 0, 0.5)
    (only,) = own.get(f"/v1/studies/{name}/trials/0/attempts").json()["items"]
    assert (only["attempt"], only["end"]) == (1, "told")


def test_leases_that_ran_out_and_that_were_handed_back_are_counted_once_each(own, clock):
    def ended() -> tuple[float, float]:
        found = exposed(own.client)
        return found("hpo_leases_expired_total"), found("hpo_leases_released_total")

    expired, released = ended()
    name = own.create(lease_seconds=10)
    own.ask(name, 3)
    own.work(name, 0, "release")
    own.work(name, 0, "release")  # again, without effect
    assert own.work(name, 1, "tell", attempt=7, state="COMPLETE", values=[1.0]).status_code == 409
    clock.turn(11)
    own.study(name)
    own.study(name)
    assert ended() == (expired + 2, released + 1)


def test_commits_draws_and_waits_are_timed_once_each(own):
    def counts() -> dict[str, float]:
        found = exposed(own.client)
        return {name: found(f"hpo_{name}_count") for name in ("commit_seconds", "draw_seconds", "call_wait_seconds")}

    name = own.create()
    own.ask(name)
    before = counts()
    own.ask(name, 3)  # one call, three draws
    after = counts()
    assert after["draw_seconds"] - before["draw_seconds"] == 3
    assert after["call_wait_seconds"] - before["call_wait_seconds"] == 1
    assert after["commit_seconds"] - before["commit_seconds"] == 1


@pytest.mark.slow
def test_a_long_poll_and_a_stream_are_seen_while_they_last(tmp_path):
    server = Served(f"sqlite:///{tmp_path}/hpo.db")
    try:
        name = server.create()
        send(server.connect(), request(f"/v1/studies/{name}:pause", {}))
        asking, streaming = server.connect(), server.connect()
        body = {"worker_id": "w", "request_id": "r", "wait_seconds": 30}
        asking.sendall(request(f"/v1/studies/{name}/trials:ask", body))
        streaming.sendall(f"GET /v1/studies/{name}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        eventually(lambda: (server.service.long_polls, server.service.streams) == (1, 1))
        found = Exposed(_get(server, "/metrics"))
        assert found("hpo_connections_open") >= 3
        asking.close()
        streaming.close()
        eventually(lambda: (server.service.long_polls, server.service.streams) == (0, 0))
    finally:
        server.stop()


def _get(server: Served, path: str) -> str:
    with server.connect() as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        read = b"".join(iter(lambda: connection.recv(65536), b""))
    return read.partition(b"\r\n\r\n")[2].decode()


@pytest.mark.slow
def test_calls_that_wait_for_a_locked_file_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_runner, "LOCKED_PATIENCE_SECONDS", 120.0)  # however slow the machine is
    # The reaper's calls would wait, too, if the lock was held until its next look.
    server = Served(f"sqlite:///{tmp_path}/hpo.db", with_reaper=False)
    try:
        name = server.create()
        other = sqlite3.connect(tmp_path / "hpo.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        calls = [server.connect() for _ in range(3)]
        for number, connection in enumerate(calls):
            body = {"worker_id": "w", "request_id": f"r{number}"}
            connection.sendall(request(f"/v1/studies/{name}/trials:ask", body))
        eventually(lambda: Exposed(_get(server, "/metrics"))("hpo_calls_waiting") == 3)
        other.execute("ROLLBACK")
        other.close()
        eventually(lambda: Exposed(_get(server, "/metrics"))("hpo_calls_waiting") == 0)
    finally:
        server.stop()


@pytest.mark.slow
def test_what_is_refused_at_the_gate_and_wrong_keys_are_counted(tmp_path):
    database = f"sqlite:///{tmp_path}/hpo.db"
    server = Served(database, with_keys=True, head_seconds=0.3)
    try:
        table = KeyTable(database)
        token = create(table, Scope.READ).token
        table.close()

        def refused(status: str) -> float:
            with server.connect() as connection:
                connection.sendall(
                    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer %s\r\n\r\n"
                    % token.encode()
                )
                read = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")[2].decode()
            found = Exposed(read)
            if status == "key":
                return found("hpo_wrong_keys_total")
            return found("hpo_connections_refused_total", status=status)

        before = {what: refused(what) for what in ("400", "408", "431", "key")}
        for sent in (b"NONSENSE\r\n\r\n", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000):
            with server.connect() as connection:
                connection.sendall(sent)
                assert connection.recv(65536).startswith(b"HTTP/1.1 4")
        with server.connect() as connection:
            connection.sendall(
                b"GET /v1/studies HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer hpo_wrong\r\n\r\n"
            )
            assert connection.recv(65536).startswith(b"HTTP/1.1 401")
        after = {what: refused(what) for what in before}
        assert after == {what: count + 1 for what, count in before.items()}
    finally:
        server.stop()


def test_it_answers_while_the_database_is_away_with_what_was_known(own, anew, monkeypatch):
    own.finish(own.create(), 0.5)
    assert exposed(own.client)("hpo_database_reachable") == 1

    def nobody_answers(*_: Any) -> None:
        raise OSError("no route to the database")

    read = Reader.read
    monkeypatch.setattr(Reader, "read", nobody_answers)
    found = exposed(own.client)
    assert found("hpo_database_reachable") == 0
    assert found("hpo_trials", state="COMPLETE") == 1
    monkeypatch.setattr(Reader, "read", read)
    eventually(lambda: exposed(own.client)("hpo_database_reachable") == 1)


def test_it_waits_no_longer_than_a_moment_for_a_database_that_hangs(own, anew, monkeypatch):
    hangs = threading.Event()
    read = Reader.read

    def slow(reader: Reader, work: Any) -> Any:
        hangs.wait(PATIENCE_SECONDS)
        return read(reader, work)

    monkeypatch.setattr(figures, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(Reader, "read", slow)
    assert exposed(own.client)("hpo_database_reachable") == 0
    assert not hangs.is_set()
    hangs.set()
    eventually(lambda: exposed(own.client)("hpo_database_reachable") == 1)


@pytest.mark.slow
def test_postgresql_that_is_stopped_and_comes_back_is_seen(own_postgres, anew):
    own_postgres.execute("CREATE DATABASE h")
    app = create_app(Settings(database_url=own_postgres.url("h")), with_reaper=False, with_keys=False)
    with TestClient(app, raise_server_exceptions=False) as client:
        Api(client, time.time).finish(Api(client, time.time).create(), 0.5)
        assert exposed(client)("hpo_database_reachable") == 1
        own_postgres.stop("immediate")
        found = exposed(client)
        assert found("hpo_database_reachable") == 0
        assert found("hpo_trials", state="COMPLETE") == 1
        own_postgres.start()
        eventually(lambda: exposed(client)("hpo_database_reachable") == 1)


@pytest.mark.slow
def test_many_scrapers_cost_the_database_one_look_and_no_commit(own, monkeypatch):
    looks = []
    read = Reader.read
    monkeypatch.setattr(figures, "FRESH_SECONDS", 60.0)
    monkeypatch.setattr(Reader, "read", lambda reader, work: looks.append(1) or read(reader, work))
    commits = exposed(own.client)("hpo_commit_seconds_count")
    for _ in range(20):
        found = exposed(own.client)
    assert len(looks) <= 1
    assert found("hpo_commit_seconds_count") == commits


@pytest.fixture
def two(database_url: str) -> Iterator[list[TestClient]]:
    if database_url.startswith("sqlite"):
        pytest.skip("SQLite takes one server at a time")
    apps = [create_app(Settings(database_url=database_url), with_reaper=False, with_keys=False) for _ in range(2)]
    with TestClient(apps[0]) as first, TestClient(apps[1]) as second:
        yield [first, second]


@pytest.mark.slow
def test_two_servers_say_the_same_of_the_record(two, anew):
    Api(two[0], time.time).finish(Api(two[0], time.time).create(), 0.5, 0.25)
    assert [exposed(client)("hpo_trials", state="COMPLETE") for client in two] == [2, 2]


def test_no_label_holds_what_a_caller_has_chosen(own):
    name = own.create(name="a-name-like-no-other")
    own.ask(name, worker_id="worker-like-no-other")
    own.get("/a/path/like/no/other?with=a-query-like-no-other")
    own.client.request("BREW", "/v1/studies")
    text = own.client.get("/metrics").text
    assert "like-no-other" not in text
    assert "like/no/other" not in text
    assert "BREW" not in text
    assert 'method="other"' in text
