"""hpo db copy and hpo db backup: everything arrives, or nothing does, and what it says is in words."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hpo_service.api.app import create_app
from hpo_service.settings import Settings
from tests.cli.conftest import Ended
from tests.conftest import SPEC, Postgres
from tests.forked import Fork

Hpo = Callable[..., Ended]
_names = itertools.count()


@contextmanager
def serving(url: str) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(database_url=url), with_keys=False)) as client:
        yield client


@pytest.fixture
def empty(tmp_path: Path, postgres: Postgres) -> Callable[[str], str]:
    """The URL of a new database of a kind."""

    def make(kind: str) -> str:
        name = f"house_{next(_names)}"
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/{name}.db"
        postgres.execute(f"CREATE DATABASE {name}")
        return postgres.url(name)

    return make


def fill(client: TestClient) -> None:
    """Studies with trials of all kinds, one of them deleted, and what is remembered of callers."""
    client.post("/v1/studies", json=SPEC | {"name": "gone"})
    client.delete("/v1/studies/gone")
    client.post("/v1/studies", json=SPEC | {"metadata": {"text": "ä\t→ \\ '\"", "exact": 0.1}})
    given = _ask(client, "r1", count=4)
    ends: list[dict[str, Any]] = [{"state": "COMPLETE", "values": ["Infinity"]}, {"state": "PRUNED"}]
    for trial, end in zip(given, ends, strict=False):
        path = f"/v1/studies/mnist/trials/{trial['number']}"
        reports = [{"step": step, "value": 0.1 * step, "metrics": {"loss": 1 / 3}} for step in range(3)]
        client.post(f"{path}:report", json={"attempt": 1, "reports": [*reports, {"step": 3, "value": "NaN"}]})
        assert client.post(f"{path}:tell", json={"attempt": 1, **end}).status_code == 200
    client.post(f"/v1/studies/mnist/trials/{given[2]['number']}:release", json={"attempt": 1})
    client.post("/v1/studies/mnist/trials:enqueue", json={"trials": [{"params": {"learning_rate": 1e-5}}]})


def _ask(client: TestClient, request_id: str, **fields: Any) -> list[dict[str, Any]]:
    body = {"worker_id": "w", "request_id": request_id, **fields}
    trials: list[dict[str, Any]] = client.post("/v1/studies/mnist/trials:ask", json=body).json()["trials"]
    return trials


def record(client: TestClient) -> list[Any]:
    paths = ["/v1/studies/mnist", "/v1/studies/mnist/trials?page_size=1000"]
    paths += [f"/v1/studies/mnist/trials/{number}/attempts" for number in range(5)]
    return [client.get(path).json() for path in paths]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "target"), [("sqlite", "postgresql"), ("postgresql", "sqlite"), ("sqlite", "sqlite")]
)
def test_a_copy_reads_and_goes_on_as_the_original_would(
    empty: Callable[[str], str], hpo: Hpo, source: str, target: str
) -> None:
    here, there = empty(source), empty(target)
    with serving(here) as client:
        fill(client)
        before = record(client)
    assert hpo("token", "create", "--scope", "read", "--database", here).code == 0

    moved = hpo("db", "copy", here, there, "--json")

    assert moved.code == 0, moved.err
    assert hpo("token", "list", "--database", here).out == hpo("token", "list", "--database", there).out
    with serving(there) as client:
        assert record(client) == before
        assert [trial["number"] for trial in _ask(client, "r1", count=4)] == [0, 1, 2, 3]  # remembered
        assert _ask(client, "r2")[0]["attempt"] == 2
        last = client.post("/v1/studies", json=SPEC | {"name": "next"})
    with serving(here) as client:
        there_too = client.post("/v1/studies", json=SPEC | {"name": "next"})
    assert last.headers["ETag"] == there_too.headers["ETag"]  # the id of a deleted study does not come back


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_copy_goes_into_no_database_that_has_something(empty: Callable[[str], str], hpo: Hpo, kind: str) -> None:
    here, there = empty("sqlite"), empty(kind)
    for url in (here, there):
        assert hpo("token", "create", "--scope", "read", "--database", url).code == 0
    keys = hpo("token", "list", "--database", there).out

    refused = hpo("db", "copy", here, there)

    assert refused.code == 1
    assert "is not empty" in refused.err
    assert refused.err.count("\n") == 1
    assert hpo("token", "list", "--database", there).out == keys


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("place", [0, 1])
def test_no_copy_is_made_while_a_server_runs(
    empty: Callable[[str], str], hpo: Hpo, fork: Fork, kind: str, place: int
) -> None:
    served, other = empty(kind), empty("sqlite")
    assert hpo("db", "upgrade", "--database", other).code == 0
    server = fork("serve", "--no-auth", "--port", "0", "--json", "--database", served)
    try:
        assert server.stdout.readline()
        refused = hpo("db", "copy", *((served, other) if place == 0 else (other, served)))
    finally:
        server.terminate()
        server.communicate()

    assert refused.code == 1
    assert "server" in refused.err
    assert "running" in refused.err
    assert refused.err.count("\n") == 1


@pytest.mark.slow
def test_what_differs_after_the_copy_is_not_kept(empty: Callable[[str], str], hpo: Hpo, postgres: Postgres) -> None:
    import psycopg

    here, there = empty("sqlite"), empty("postgresql")
    assert hpo("token", "create", "--scope", "read", "--database", here).code == 0
    assert hpo("db", "upgrade", "--database", there).code == 0
    with psycopg.connect(there, autocommit=True) as connection:  # a database that does not keep what it is given
        connection.execute(
            "CREATE FUNCTION alter_it() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN NEW.label := 'other'; RETURN NEW; END $$"
        )
        connection.execute("CREATE TRIGGER t BEFORE INSERT ON hpo_keys FOR EACH ROW EXECUTE FUNCTION alter_it()")

    refused = hpo("db", "copy", here, there)

    assert refused.code == 1
    assert "hpo_keys" in refused.err
    with psycopg.connect(there) as connection:
        row = connection.execute("SELECT count(*) FROM hpo_keys").fetchone()
    assert row == (0,)


@pytest.mark.slow
def test_a_backup_of_a_file_that_is_written_is_served_as_it_was(
    empty: Callable[[str], str], hpo: Hpo, tmp_path: Path
) -> None:
    here, kept = empty("sqlite"), tmp_path / "kept.db"
    with serving(here) as client:
        fill(client)
        before = record(client)
        made = hpo("db", "backup", str(kept), "--database", here)
        assert len(_ask(client, "later", count=3)) == 3

    assert made.code == 0, made.err
    with serving(f"sqlite:///{kept}") as client:
        assert record(client) == before
    assert hpo("db", "backup", str(kept), "--database", here).code == 1  # never over another file


@pytest.mark.slow
def test_a_dump_is_restored_and_served_as_it_was(
    empty: Callable[[str], str], hpo: Hpo, tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{postgres.bin}:{os.environ['PATH']}")
    here, there, dump = empty("postgresql"), empty("postgresql"), tmp_path / "kept.dump"
    with serving(here) as client:
        fill(client)
        before = record(client)
        made = hpo("db", "backup", str(dump), "--database", here)
        _ask(client, "later", count=3)

    assert made.code == 0, made.err
    subprocess.run([postgres.bin / "pg_restore", "--exit-on-error", "-d", there, dump], check=True)
    with serving(there) as client:
        assert record(client) == before


@pytest.mark.slow
@pytest.mark.parametrize("why", ["no such folder", "no such database", "no such server"])
def test_a_backup_that_cannot_be_leaves_no_file(
    empty: Callable[[str], str], hpo: Hpo, tmp_path: Path, postgres: Postgres, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{postgres.bin}:{os.environ['PATH']}")
    here, file = empty("sqlite"), tmp_path / "backup"
    if why == "no such folder":
        assert hpo("db", "upgrade", "--database", here).code == 0
        file = tmp_path / "nowhere" / "backup"
    elif why == "no such server":
        here = "postgresql://postgres@127.0.0.1:1/none"

    refused = hpo("db", "backup", str(file), "--database", here)

    assert refused.code == 1
    assert refused.err.count("\n") == 1
    assert not any(path.name.startswith("backup") for path in tmp_path.rglob("*"))
