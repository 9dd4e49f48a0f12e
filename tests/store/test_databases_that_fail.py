"""A database that is away or full: a clear answer meanwhile, and everything as before afterwards."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from hpo_service.domain.errors import Unavailable
from hpo_service.store import Database
from hpo_service.store.inode_lock import DatabaseInUse
from hpo_service.store.schema import current_revision
from tests.forked import Fork
from tests.patience import PATIENCE_SECONDS

Answer = tuple[int, dict[str, Any]]


class Server:
    """`hpo serve` in a process of its own."""

    def __init__(self, fork: Fork, log: Path, database_url: str) -> None:
        self.database_url = database_url
        self.process = fork("serve", "--no-auth", "--port", "0", "--json", "--database", database_url, errors=log)
        line = self.process.stdout.readline()
        if not line:
            self.process.communicate()
            raise RuntimeError(f"exit code {self.process.returncode}: {log.read_text()}")
        self.url = json.loads(line)["url"]
        self._http = urllib3.PoolManager(retries=False, timeout=PATIENCE_SECONDS)

    def call(self, method: str, path: str, body: Any = None) -> Answer:
        answer = self._http.request(method, self.url + path, json=body)
        return answer.status, answer.json() if answer.data else {}

    def stop(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.communicate()


@pytest.fixture
def serve(fork: Fork, tmp_path: Path) -> Iterator[Callable[[str], Server]]:
    servers: list[Server] = []

    def start(database_url: str) -> Server:
        servers.append(Server(fork, tmp_path / f"log-{len(servers)}", database_url))
        return servers[-1]

    yield start
    for server in servers:
        server.stop(signal.SIGKILL)


STUDY = {
    "name": "s",
    "search_space": {"lr": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True}},
    "sampler": {"name": "random", "seed": 1},
}


def ask(request: str) -> tuple[str, str, dict[str, Any]]:
    return "POST", "/v1/studies/s/trials:ask", {"worker_id": "w", "request_id": request}


def until(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


@pytest.mark.slow
def test_postgresql_that_goes_away_and_comes_back_needs_no_restart_of_the_server(
    own_postgres: Any, serve: Callable[[str], Server]
) -> None:
    postgres = own_postgres  # not the one that other tests use
    server = serve(postgres.url("postgres"))
    assert server.call("POST", "/v1/studies", STUDY)[0] == 201
    first = server.call(*ask("1"))
    postgres.stop("immediate")
    try:
        status, problem = server.call(*ask("2"))
        assert (status, problem["code"], problem["retryable"]) == (503, "unavailable", True)
        assert server.call("GET", "/readyz")[0] == 503
        assert server.call("GET", "/healthz")[0] == 200
    finally:
        postgres.start()
    until(lambda: server.call("GET", "/readyz")[0] == 200)
    assert server.call(*ask("1")) == first
    assert server.call(*ask("2"))[1]["trials"][0]["number"] == 1


@pytest.mark.slow
def test_a_full_disk_is_said_and_forgotten_once_there_is_room(tmp_path: Path, serve: Callable[[str], Server]) -> None:
    server = serve(f"sqlite:///{tmp_path}/hpo.db")
    assert server.call("POST", "/v1/studies", STUDY)[0] == 201
    first = server.call(*ask("1"))
    # No file of the server may grow beyond what the log already holds: what a full disk looks like from inside.
    full = (tmp_path / "hpo.db-wal").stat().st_size
    unlimited = resource.RLIM_INFINITY
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (full, unlimited))
    try:
        status, problem = server.call(*ask("2"))
        assert (status, problem["code"]) == (503, "unavailable")
        assert server.call("GET", "/readyz")[0] == 503
        assert server.call("GET", "/healthz")[0] == 200
        assert server.call("GET", "/v1/studies/s")[1]["counts"]["RUNNING"] == 1
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
    until(lambda: server.call("GET", "/readyz")[0] == 200)
    assert server.call(*ask("1")) == first
    assert server.call(*ask("2"))[1]["trials"][0]["number"] == 1


@pytest.mark.slow
def test_a_second_server_on_one_sqlite_file_is_refused_in_one_line(
    tmp_path: Path, serve: Callable[[str], Server]
) -> None:
    url = f"sqlite:///{tmp_path}/hpo.db"
    serve(url)
    with pytest.raises(RuntimeError) as refusal:
        serve(url)
    message = str(refusal.value).strip()
    assert message.startswith("exit code 1:")
    assert "another server" in message
    assert "Traceback" not in message


@pytest.mark.slow
def test_a_server_killed_with_9_can_be_started_again_at_once(tmp_path: Path, serve: Callable[[str], Server]) -> None:
    url = f"sqlite:///{tmp_path}/hpo.db"
    server = serve(url)
    server.call("POST", "/v1/studies", STUDY)
    first = server.call(*ask("1"))
    server.stop(signal.SIGKILL)
    again = serve(url)
    assert again.call(*ask("1")) == first
    # What a seeded sampler has drawn is not drawn again.
    second = again.call(*ask("2"))[1]["trials"][0]
    assert second["number"] == 1
    assert second["params"] != first[1]["trials"][0]["params"]


_OPEN = """
import sys
from hpo_service.store import Database
sys.stdin.readline()
Database(sys.argv[1]).close()
"""


@pytest.mark.slow
def test_eight_servers_started_at_once_on_an_empty_database_all_come_up(postgres_url: str) -> None:
    starting = [
        subprocess.Popen([sys.executable, "-c", _OPEN, postgres_url], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(8)
    ]
    for process in starting:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    outcomes = [(process.communicate(timeout=PATIENCE_SECONDS)[1], process.returncode) for process in starting]
    assert [code for _, code in outcomes] == [0] * 8, outcomes


@pytest.mark.slow
def test_of_eight_servers_started_at_once_on_a_sqlite_file_those_that_lose_say_so(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/hpo.db"
    database = Database(url)
    for _ in range(3):
        with pytest.raises(DatabaseInUse):
            Database(url)
    database.close()
    Database(url).close()


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y", "nonsense", "postgresql+asyncpg://x/y"]
)
def test_a_url_that_cannot_work_is_refused_with_what_would(url: str) -> None:
    with pytest.raises((ValueError, Unavailable)):
        Database(url)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(Unavailable):
            Database(f"sqlite:///{tmp_path}/no/hpo.db")
    with pytest.raises(Unavailable):
        Database("sqlite:////proc/no/hpo.db")


def test_a_database_from_a_later_version_is_left_alone(database_url: str) -> None:
    import sqlalchemy as sa

    database = Database(database_url)
    with database._write_engine.begin() as connection:
        assert current_revision(connection) is not None
        connection.execute(sa.text("UPDATE hpo_alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(Unavailable, match="9999"):
        Database(database_url)
