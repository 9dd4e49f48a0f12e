"""What a PostgreSQL has to be: text stays what it was, what does not fit is said in words, and poolers may be there."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from hpo_service.api import readiness
from hpo_service.api.app import create_app
from hpo_service.settings import Settings
from hpo_service.store import Database, upgrade
from hpo_service.store.engine import database_url
from hpo_service.store.postgres_server import UnfitDatabase
from hpo_service.store.record import Record
from tests.conftest import Postgres
from tests.patience import PATIENCE_SECONDS

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
STUDY = {
    "name": "s",
    "search_space": SPACE,
    "sampler": {"name": "random", "seed": 1},
    "limits": {"failures": None},  # what is told here is FAIL
}
TEXT = "Grüße, 雪, 🙂"
_requests = itertools.count()
_names = itertools.count()


@pytest.fixture(autouse=True)
def readiness_is_asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is good for a second otherwise."""
    monkeypatch.setattr(readiness, "GOOD_FOR_SECONDS", 0.0)


def opened(url: str) -> TestClient:
    app = create_app(Settings(database_url=url), with_reaper=False, with_keys=False)
    return TestClient(app, raise_server_exceptions=False)


def told(client: TestClient) -> list[tuple[int, str]]:
    """An ask, a report and a tell: what each was answered."""
    asked = client.post("/v1/studies/s/trials:ask", json={"worker_id": "w", "request_id": f"r{next(_requests)}"})
    answers = [asked]
    if asked.status_code == 200:
        path = f"/v1/studies/s/trials/{asked.json()['trials'][0]['number']}"
        reports = [{"step": 0, "value": 0.1, "metrics": {"note": TEXT}}]
        answers.append(client.post(f"{path}:report", json={"attempt": 1, "reports": reports}))
        answers.append(client.post(f"{path}:tell", json={"attempt": 1, "state": "FAIL", "reason": TEXT}))
    return [(answer.status_code, answer.json().get("detail", "")) for answer in answers]


def own_role(postgres: Postgres, url: str, *settings: str) -> str:
    """The URL of the same database for a role of its own, with these settings."""
    role = f"role_{next(_names)}_{os.getpid()}"
    postgres.execute(f"CREATE ROLE {role} LOGIN")
    for setting in settings:
        postgres.execute(f"ALTER ROLE {role} SET {setting}")
    return url.replace("postgres@", f"{role}@")


def given_all(postgres: Postgres, url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("GRANT ALL ON SCHEMA public TO PUBLIC")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["role", "PGCLIENTENCODING"])
def test_text_stays_what_it_was_whatever_encoding_clients_have_by_default(
    way: str, postgres: Postgres, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_all(postgres, postgres_url)
    if way == "role":
        url = own_role(postgres, postgres_url, "client_encoding = 'LATIN1'", "extra_float_digits = -15")
    else:
        url = postgres_url
        monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with opened(url) as client:
        body = {**STUDY, "metadata": {"note": TEXT, "number": 0.1 + 0.2}}
        assert client.post("/v1/studies", json=body).status_code == 201
        assert [status for status, _ in told(client)] == [200] * 3
    with opened(url) as client:
        assert client.get("/v1/studies/s").json()["metadata"] == body["metadata"]
        trial = client.get("/v1/studies/s/trials/0").json()
        assert (trial["reason"], trial["reports"][0]["metrics"]["note"]) == (TEXT, TEXT)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_cannot_hold_every_text_is_refused_in_words_everywhere(
    encoding: str, postgres: Postgres
) -> None:
    name = f"encoding_{next(_names)}"
    postgres.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    url = postgres.url(name)
    for use in (Database, upgrade):
        with pytest.raises(UnfitDatabase, match=f"has the encoding {encoding}.*ENCODING 'UTF8'"):
            use(url)
    for command in (["serve", "--port", "0", "--no-auth"], ["db", "upgrade"], ["doctor"], ["token", "list"]):
        done = hpo(*command, "--database", url)
        assert done.returncode == 1, command
        assert f"has the encoding {encoding}" in done.stdout + done.stderr, command
        assert "Traceback" not in done.stderr


def hpo(*command: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "hpo_service", *command]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("default_transaction_read_only = on", "default_transaction_read_only is on"),
        ("search_path = nowhere", "no schema of the search_path"),
    ],
)
def test_what_a_role_has_set_against_it_is_said_at_the_start(
    setting: str, words: str, postgres: Postgres, postgres_url: str
) -> None:
    given_all(postgres, postgres_url)
    with pytest.raises(UnfitDatabase, match=words):
        Database(own_role(postgres, postgres_url, setting))


def test_foreign_keys_that_a_role_has_switched_off_are_said(postgres: Postgres, postgres_url: str) -> None:
    role = own_role(postgres, postgres_url).split("//")[1].split("@")[0]
    postgres.execute(f"ALTER ROLE {role} SUPERUSER")
    postgres.execute(f"ALTER ROLE {role} SET session_replication_role = replica")
    with pytest.raises(UnfitDatabase, match="session_replication_role is replica"):
        Database(postgres_url.replace("postgres@", f"{role}@"))


@pytest.mark.slow
def test_settings_that_would_change_what_is_written_do_not_count(postgres: Postgres, postgres_url: str) -> None:
    given_all(postgres, postgres_url)
    against = (
        "standard_conforming_strings = off",
        "default_transaction_isolation = 'serializable'",
        "timezone = 'Asia/Tokyo'",
    )
    with opened(own_role(postgres, postgres_url, *against)) as client:
        assert client.post("/v1/studies", json={**STUDY, "metadata": {"note": "a\\b'c"}}).status_code == 201
        assert [status for status, _ in told(client)] == [200] * 3
        assert client.get("/v1/studies/s").json()["metadata"] == {"note": "a\\b'c"}


@pytest.mark.slow
def test_no_second_record_is_begun_in_another_schema(postgres: Postgres, postgres_url: str) -> None:
    upgrade(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA other")
    postgres.execute(f"ALTER DATABASE {postgres_url.rsplit('/', 1)[1]} SET search_path = other")
    with pytest.raises(UnfitDatabase, match="is in the schema public, which is not on the search_path"):
        Database(postgres_url)
    # Who may not write the one is free to begin the other.
    role = own_role(postgres, postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("GRANT ALL ON SCHEMA other TO PUBLIC")
    Database(role).close()


@pytest.mark.slow
def test_a_standby_is_refused_in_words(own_postgres: Postgres, tmp_path: Path) -> None:
    upgrade(own_postgres.url("postgres"))
    own_postgres.stop()
    (own_postgres.folder / "data" / "standby.signal").touch()
    own_postgres.start()
    with pytest.raises(UnfitDatabase, match="is a standby, which only reads"):
        Database(own_postgres.url("postgres"))
    assert "is a standby" in hpo("doctor", "--database", own_postgres.url("postgres")).stdout


# Each that a server's own work takes, but for the keys, which `hpo token` writes.
_TABLES = ("studies", "rounds", "trials", "attempts", "reports", "answers", "tests", "workers", "servers", "outages")
RIGHTS = [
    (right, f"hpo_{name}")
    for right in ("INSERT", "UPDATE", "DELETE")
    for name in _TABLES
    if (right, name) != ("UPDATE", "answers")  # which nobody changes
]


@pytest.mark.slow
def test_readiness_names_the_right_that_an_ask_would_miss(postgres: Postgres, postgres_url: str) -> None:
    upgrade(postgres_url)
    url = own_role(postgres, postgres_url)
    role = url.split("//")[1].split("@")[0]
    with ExitStack() as open_:
        connection = open_.enter_context(psycopg.connect(postgres_url, autocommit=True))
        connection.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
        client = open_.enter_context(opened(url))

        def detail() -> str:
            answer = client.get("/readyz")
            assert answer.status_code == 503
            return str(answer.json()["detail"])

        assert "permission denied for sequence hpo_studies_id_seq" in detail()
        assert f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}" in detail()
        connection.execute(f"GRANT USAGE ON SEQUENCE hpo_studies_id_seq TO {role}")
        assert "permission denied for sequence hpo_trials_id_seq" in detail()
        connection.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}")
        assert client.get("/readyz").status_code == 200
        for right, table in RIGHTS:
            connection.execute(f"REVOKE {right} ON {table} FROM {role}")
            assert f"permission denied for table {table}" in detail(), (right, table)
            connection.execute(f"GRANT {right} ON {table} TO {role}")
        assert client.get("/readyz").status_code == 200
        assert connection.execute("SELECT count(*) FROM hpo_studies").fetchone() == (0,)


@pytest.mark.slow
def test_readiness_leaves_nothing_behind(database_url: str) -> None:
    with opened(database_url) as client:
        assert client.post("/v1/studies", json=STUDY).status_code == 201
        for _ in range(3):
            assert client.get("/readyz").status_code == 200
        assert [study["name"] for study in client.get("/v1/studies").json()["items"]] == ["s"]
        assert client.get("/v1/workers").json()["items"] == []
        assert [status for status, _ in told(client)] == [200] * 3


class Pooler:
    """PgBouncer before that cluster, with two sessions for all."""

    def __init__(self, postgres: Postgres, mode: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "users.txt").write_text('"postgres" ""\n')
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={postgres.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\nauth_type = trust\nauth_file = {folder}/users.txt\npool_mode = {mode}\n"
            f"default_pool_size = {3 if mode == 'transaction' else 40}\nunix_socket_dir =\n"
            "ignore_startup_parameters = options,extra_float_digits\n"
        )
        prefix: list[str] = []
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres" if any(p.pw_name == "postgres" for p in pwd.getpwall()) else "nobody")
            for path in (folder, folder / "users.txt", folder / "pgbouncer.ini"):
                os.chown(path, user.pw_uid, user.pw_gid)
            prefix = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program is not None
        self._process = subprocess.Popen([*prefix, program, "-q", str(folder / "pgbouncer.ini")], cwd="/")

    def url(self, url: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{url.rsplit('/', 1)[1]}"

    def wait(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            with socket.socket() as look:
                if look.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("pgbouncer does not listen")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=PATIENCE_SECONDS)


Pool = Callable[[str], Pooler]


@pytest.fixture
def pool(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    if shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("pgbouncer is not installed: apt-get install pgbouncer")
    with ExitStack() as open_:

        def start(mode: str) -> Pooler:
            folder = Path(open_.enter_context(_short_folder()))
            pooler = Pooler(postgres, mode, folder)
            open_.callback(pooler.stop)
            pooler.wait()
            return pooler

        yield start


def _short_folder() -> Any:
    folder = tempfile.TemporaryDirectory(prefix="hpo-pool-")
    os.chmod(folder.name, 0o755)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_two_servers_behind_a_pooler_answer_every_call(mode: str, pool: Pool, postgres_url: str) -> None:
    url = pool(mode).url(postgres_url)
    with opened(url) as one, opened(url) as other:
        assert one.post("/v1/studies", json=STUDY).status_code == 201

        def work(worker: int) -> list[tuple[int, str]]:
            return [answer for turn in range(15) for answer in told((one, other)[(worker + turn) % 2])]

        with ThreadPoolExecutor(4) as workers:
            answers = [answer for found in workers.map(work, range(4)) for answer in found]
        assert {answer for answer in answers if answer[0] != 200} == set()
        assert len(answers) == 4 * 15 * 3
        assert one.get("/readyz").status_code == 200
        assert other.get("/v1/studies/s").json()["counts"]["FAIL"] == 60


@pytest.mark.slow
def test_servers_that_start_at_once_behind_a_pooler_all_come_up(pool: Pool, postgres_url: str) -> None:
    url = pool("transaction").url(postgres_url)
    program = f"from hpo_service.store import Database; Database({url!r}).close()"
    starting = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(3)]
    assert [(process.communicate(timeout=120)[1], process.returncode)[1] for process in starting] == [0] * 3
    Database(url).close()  # and none has kept the lock


@pytest.mark.slow
def test_a_session_that_has_lost_what_was_prepared_costs_no_call(postgres_url: str) -> None:
    """What a pooler does to a server that needs none of it to be installed."""
    with opened(postgres_url) as client:
        assert client.post("/v1/studies", json=STUDY).status_code == 201
        assert [status for status, _ in told(client)] == [200] * 3
        database = client.app.state.service.database  # type: ignore[attr-defined]
        for _ in range(2):
            database.write(lambda record: record._batch.connection.exec_driver_sql("DEALLOCATE ALL")).result(
                timeout=PATIENCE_SECONDS
            )
            assert [status for status, _ in told(client)] == [200] * 3
        assert client.get("/v1/studies/s").json()["counts"]["FAIL"] == 3


@pytest.mark.slow
def test_servers_that_check_whether_they_are_ready_do_not_wait_for_each_other(postgres_url: str) -> None:
    upgrade(postgres_url)
    engine = sa.create_engine(database_url(postgres_url))
    with engine.connect() as one, engine.connect() as other:
        for connection in (one, other):
            connection.execute(sa.text("SET lock_timeout = '1s'"))
            Record(connection, 1.0).check_writable()  # and the transaction goes on
    engine.dispose()
