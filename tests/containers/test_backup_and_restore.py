"""deploy/backup.sh and deploy/restore.sh, run for real: a dump of a record at work, put back and served again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from hpo_service import store
from hpo_service.client import Client
from tests.forked import Fork
from tests.patience import PATIENCE_SECONDS

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


class Installation:
    """A database as docker-compose.yml sets it up, with a role that reads, and a folder for dumps."""

    def __init__(self, cluster: Any, folder: Path) -> None:
        self.cluster, self.folder, self.name = cluster, folder, f"kept_{time.monotonic_ns()}"
        cluster.execute(f"CREATE DATABASE {self.name}")
        if not self.ask("SELECT 1 FROM pg_roles WHERE rolname = 'hpo_reader'"):
            cluster.execute("CREATE ROLE hpo_reader LOGIN")
        cluster.execute("ALTER ROLE hpo_reader SET default_transaction_read_only = on")
        store.upgrade(self.url)
        # as the service "migrate" does
        for kind in ("TABLES", "SEQUENCES"):
            self.ask(f"GRANT SELECT ON ALL {kind} IN SCHEMA public TO hpo_reader")

    @property
    def url(self) -> str:
        return str(self.cluster.url(self.name))

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            answer = connection.execute(statement.encode())
            return list(answer.fetchall()) if answer.description else []

    def around(self, user: str, **more: str) -> Mapping[str, str]:
        binaries = f"{self.cluster.bin}:{os.environ['PATH']}"
        connection = {"PGHOST": "127.0.0.1", "PGPORT": str(self.cluster.port), "PGUSER": user, "PGDATABASE": self.name}
        return {**os.environ, **connection, "PATH": binaries, "BACKUPS": str(self.folder), **more}

    def run(
        self, script: str, *arguments: str, user: str = "hpo_reader", **more: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", DEPLOY / script, *arguments],
            env=self.around(user, **more),
            capture_output=True,
            text=True,
            check=False,
        )

    def restore(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("restore.sh", *arguments, user="postgres")

    def dumps(self) -> list[str]:
        return sorted(file.name for file in self.folder.iterdir())


@pytest.fixture
def installation(postgres: Any, tmp_path: Path) -> Iterator[Installation]:
    made = Installation(postgres, tmp_path)
    yield made
    for (name,) in made.ask(f"SELECT datname FROM pg_database WHERE datname LIKE '{made.name}%'"):
        postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


class Serving:
    def __init__(self, fork: Fork, url: str) -> None:
        self.process = fork("serve", "--no-auth", "--port", "0", "--json", "--database", url)
        self.address = json.loads(self.process.stdout.readline())["url"]

    def __enter__(self) -> Client:
        return Client(self.address)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate()


COUNTED = ("hpo_studies", "hpo_trials", "hpo_reports", "hpo_attempts", "hpo_keys")


def counts(installation: Installation) -> list[int]:
    return [installation.ask(f"SELECT count(*) FROM {table}")[0][0] for table in COUNTED]


def train(client: Client, stop: threading.Event, told: list[int]) -> None:
    study = client.create_study("s", search_space={"x": {"type": "float", "low": 0, "high": 1}})
    while not stop.is_set():
        for trial in study.ask(count=5):
            trial.report(1, 1)
            trial.tell(float(str(trial.params["x"])))
            told.append(trial.number)


@pytest.mark.slow
def test_a_dump_of_a_record_at_work_is_put_back_and_a_server_goes_on_with_it(
    fork: Fork, installation: Installation
) -> None:
    stop, told = threading.Event(), list[int]()
    with Serving(fork, installation.url) as client:
        worker = threading.Thread(target=train, args=(client, stop, told))
        worker.start()
        while len(told) < 30 and worker.is_alive():
            time.sleep(0.02)
        at_least = len(told)
        made = installation.run("backup.sh", "once")
        assert made.returncode == 0, made.stderr
        stop.set()
        worker.join()
    (dump,) = installation.dumps()
    before = counts(installation)
    assert before[1] > at_least, "it was written to meanwhile"

    installation.ask("DELETE FROM hpo_trials")  # the accident
    put_back = installation.restore(dump)
    assert put_back.returncode == 0, put_back.stderr
    assert f"{installation.name}_before_" in put_back.stdout
    restored = counts(installation)
    assert restored[0] == 1
    assert at_least <= restored[1] <= before[1]
    with Serving(fork, installation.url) as client:
        study = client.study("s")
        assert study["counts"]["COMPLETE"] >= at_least
        trials = list(client.trials("s", page_size=1000))
        assert [trial["number"] for trial in trials] == list(range(len(trials)))
        assert sum(trial["state"] == "COMPLETE" for trial in trials) == study["counts"]["COMPLETE"]
        (next_one,) = client.open_study("s").ask()
        next_one.tell(0.5)
        assert client.trial("s", next_one.number)["state"] == "COMPLETE"
    # the role that reads reads the restored database, too, so the next dump succeeds
    assert installation.run("backup.sh", "once").returncode == 0


@pytest.mark.slow
def test_a_record_at_rest_comes_back_row_by_row(fork: Fork, installation: Installation) -> None:
    with Serving(fork, installation.url) as client:
        study = client.create_study("s", search_space={"x": {"type": "float", "low": 0, "high": 1}})
        for trial in study.ask(count=20):
            trial.tell(float(str(trial.params["x"])))

    def rows() -> list[Any]:
        return [installation.ask(f"SELECT * FROM {table} ORDER BY 1, 2") for table in COUNTED]

    before = rows()
    assert len(before[1]) == 20
    assert installation.run("backup.sh", "once").returncode == 0
    assert installation.restore().returncode == 0, "the newest when none is named"
    assert rows() == before


@pytest.mark.slow
def test_the_newest_dumps_are_kept_and_half_a_one_never_has_a_name(installation: Installation) -> None:
    for day in range(1, 6):
        (installation.folder / f"hpo-2026010{day}T000000Z.dump").write_text("old")
    (installation.folder / "hpo-20260106T000000Z.dump.part").write_text("half")
    (installation.folder / "notes.txt").write_text("mine")
    made = installation.run("backup.sh", "once", BACKUPS_KEPT="3")
    assert made.returncode == 0, made.stderr
    *old, newest, mine = installation.dumps()
    assert old == ["hpo-20260104T000000Z.dump", "hpo-20260105T000000Z.dump"]
    assert newest > "hpo-20260105T000000Z.dump"
    assert mine == "notes.txt"
    assert (installation.folder / newest).stat().st_mode & 0o077 == 0


def test_a_dump_that_fails_leaves_those_from_before(installation: Installation) -> None:
    (installation.folder / "hpo-20260101T000000Z.dump").write_text("old")
    failed = installation.run("backup.sh", "once", BACKUPS_KEPT="1", PGDATABASE="nowhere")
    assert failed.returncode != 0
    assert "nowhere" in failed.stderr
    assert "hpo-20260101T000000Z.dump" in installation.dumps()
    assert not [name for name in installation.dumps()[1:] if name.endswith(".dump")]


@pytest.mark.slow
def test_on_a_schedule_it_dumps_again_and_ends_when_told(installation: Installation) -> None:
    process = subprocess.Popen(
        ["sh", DEPLOY / "backup.sh"], env=installation.around("hpo_reader", BACKUP_SECONDS="1"), stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len([name for name in installation.dumps() if name.endswith(".dump")]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0


@pytest.mark.slow
def test_what_cannot_be_restored_changes_nothing(installation: Installation) -> None:
    assert installation.run("backup.sh", "once").returncode == 0
    (dump,) = installation.dumps()
    whole = (installation.folder / dump).read_bytes()
    (installation.folder / "torn.dump").write_bytes(whole[: len(whole) // 2])
    databases = "SELECT count(*) FROM pg_database"
    before = installation.ask(databases)
    assert installation.restore("torn.dump").returncode != 0
    assert "cannot be read" in installation.restore("absent.dump").stderr
    with psycopg.connect(installation.url):
        refused = installation.restore(dump)
        assert "stop the services first" in refused.stderr
        assert refused.returncode == 1
    assert installation.ask(databases) == before
    assert counts(installation)[0] == 0


@pytest.mark.slow
def test_the_role_for_backups_cannot_write(installation: Installation) -> None:
    with psycopg.connect(installation.url.replace("postgres@", "hpo_reader@")) as connection:
        connection.execute("SET TRANSACTION READ WRITE")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM hpo_trials")
