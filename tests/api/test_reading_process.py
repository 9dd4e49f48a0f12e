"""The process that reads for the server: what it answers, and what happens when it or the server dies."""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hpo_service.api.app import create_app
from hpo_service.reading import reading_process
from hpo_service.settings import Settings
from hpo_service.store import upgrade
from tests.api.conftest import Api
from tests.forked import Fork, Forked
from tests.patience import PATIENCE_SECONDS

SPACE: dict[str, dict[str, Any]] = {
    "x": {"type": "float", "low": 0.0, "high": 1.0},
    "layers": {"type": "int", "low": 1, "high": 9},
    "name": {"type": "categorical", "choices": ["=sum", "ä", None, 2]},
}
# Never done, and it never lets another thread of its process run.
ENDLESS = partial(functools.reduce, operator.is_, range(10**15))


def eventually(holds: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it has not come to hold"
        time.sleep(0.02)
    return found


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def api(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """A server with a reading process that is there."""
    monkeypatch.setattr(reading_process, "AGAIN_SECONDS", 1.0)
    app = create_app(Settings(database_url=database_url), with_reaper=False, with_keys=False, with_reading_process=True)
    with TestClient(app, raise_server_exceptions=False) as client:
        eventually(lambda: service(client).reading.is_up)
        yield Api(client, time.time)


def service(client: Any) -> Any:
    return client.app.state.service


def filled(api: Api, trials: int = 30, **fields: Any) -> str:
    """A study with finished trials, some of them with reports, and one that runs."""
    space = fields.setdefault("search_space", SPACE)
    fields.setdefault("lease_seconds", 86_400)  # between two readings no lease runs out, however slow the machine is
    name = api.create(**fields)
    names = SPACE["name"]["choices"]
    made: list[dict[str, Any]] = [
        {
            "params": {
                key: value
                for key, value in (("x", number % 50 / 50), ("layers", number % 9 + 1), ("name", names[number % 4]))
                if key in space
            },
            "state": "COMPLETE",
            "values": [number % 7 / 7] * len(fields.get("directions", [1])),
            "reports": [{"step": step, "value": step / 3} for step in range(number % 4)],
        }
        for number in range(trials)
    ]
    for start in range(0, trials, 500):
        assert api.post(f"/v1/studies/{name}/trials:import", {"trials": made[start : start + 500]}).status_code == 201
    api.ask(name)
    return name


PATHS = (
    "/v1/studies/{one}",
    "/v1/studies/{two}",
    "/v1/studies?page_size=1",
    "/v1/studies/{one}/trials",
    "/v1/studies/{one}/trials?page_size=7&order_by=value&state=COMPLETE",
    "/v1/studies/{one}/trials?page_size=1000",
    "/v1/studies/{two}/trials?order_by=value",
    "/v1/studies/{one}/trials/3",
    "/v1/studies/{one}/trials/99999",
    "/v1/studies/{one}/trials/30/attempts",
    "/v1/studies/{one}/importances",
    "/v1/studies/{empty}/importances",
    "/v1/studies/{one}/trials:export",
    "/v1/studies/{two}/trials:export?format=jsonl",
    "/v1/studies/{empty}/trials:export?format=jsonl",
    "/v1/studies/{one}/trials:export?format=parquet",
    "/v1/studies/nobody",
    "/v1/studies/nobody/trials:export",
    "/v1/studies/nobody/trials:export?format=parquet",
    "/dashboard",
    "/api/studies",
    "/api/studies/1",
    "/api/studies/99999",
    "/static/bundle.js",
    "/csv/1",
)


@pytest.mark.slow
def test_every_reading_is_byte_for_byte_what_the_server_itself_would_read(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the first is the dashboard's: it lists choices as a set gives them, in each process otherwise
    names = {
        "plain": filled(api, search_space={"x": SPACE["x"], "layers": SPACE["layers"]}),
        "one": filled(api),
        "two": filled(api, trials=1100, directions=["maximize", "minimize"]),
        "empty": api.create(),
    }
    database, reading = service(api.client).database, service(api.client).reading

    def answers() -> dict[str, tuple[int, dict[str, str], bytes]]:
        found = {path: api.client.get(path.format(**names)) for path in PATHS}
        changing = ("date", "x-request-id")
        return {
            path: (
                answer.status_code,
                {key: value for key, value in answer.headers.items() if key not in changing},
                answer.content,
            )
            for path, answer in found.items()
        }

    monkeypatch.setattr(database, "read", None)  # a reading in the server itself would fail
    apart = answers()
    monkeypatch.undo()
    reading.is_up = False
    here = answers()
    reading.is_up = True

    for path in PATHS:
        assert apart[path] == here[path], path
    assert {path for path in PATHS if here[path][0] >= 500} == set()
    assert here["/v1/studies/nobody"][0] == here["/v1/studies/nobody/trials:export?format=parquet"][0] == 404
    assert here["/v1/studies/{two}/trials?order_by=value"][0] == 422
    assert here["/v1/studies/{empty}/importances"][0] == 409
    assert len(here["/v1/studies/{two}/trials:export?format=jsonl"][2].splitlines()) == 1101


@pytest.mark.slow
def test_a_lease_that_has_run_out_is_taken_back_before_the_process_reads(api: Api) -> None:
    name = api.create(lease_seconds=2)
    api.ask(name)
    work = [f"/v1/studies/{name}/trials/0", f"/v1/studies/{name}", "/v1/studies"]
    assert api.get(work[0]).json()["state"] == "RUNNING"

    time.sleep(2.1)

    assert api.get(work[0]).json()["state"] == "WAITING"
    assert api.get(work[1]).json()["counts"]["RUNNING"] == 0


@pytest.mark.slow
def test_a_list_of_studies_takes_back_what_has_run_out_in_all_of_them(api: Api) -> None:
    names = [api.create(lease_seconds=2) for _ in range(2)]
    for name in names:
        api.ask(name)

    time.sleep(2.1)

    assert [study["counts"]["RUNNING"] for study in api.get("/v1/studies").json()["items"]] == [0, 0]


@pytest.mark.slow
def test_after_kill_9_readings_go_on_and_another_process_takes_them(api: Api) -> None:
    name = filled(api)
    reading = service(api.client).reading
    before = api.get(f"/v1/studies/{name}/trials").content
    first = reading.pid

    os.kill(first, signal.SIGKILL)
    assert api.get(f"/v1/studies/{name}/trials").content == before
    eventually(lambda: not is_alive(first))
    assert api.get(f"/v1/studies/{name}/trials").content == before

    eventually(lambda: reading.is_up and reading.pid != first)
    assert api.get(f"/v1/studies/{name}/trials").content == before


@pytest.mark.slow
def test_a_reading_under_way_when_the_process_dies_is_read_again_by_the_server(api: Api) -> None:
    name = filled(api, trials=4000)
    reading = service(api.client).reading
    lines: list[int] = []
    path = f"/v1/studies/{name}/trials:export?format=csv"
    reader = threading.Thread(target=lambda: lines.append(len(api.get(path).text.splitlines())))
    reader.start()
    for _ in range(3):
        time.sleep(0.05)
        if reading.pid is not None:
            os.kill(reading.pid, signal.SIGKILL)
    reader.join(PATIENCE_SECONDS)

    assert lines == [4002]


@pytest.mark.slow
def test_who_asks_is_answered_while_a_reading_holds_the_process(api: Api) -> None:
    name = filled(api)
    portal, reading = api.client.portal, service(api.client).reading
    assert portal is not None
    endless = portal.start_task_soon(reading.read, ENDLESS)
    time.sleep(0.5)

    for _ in range(20):
        api.finish(name, 0.5)
    assert not endless.done()

    os.kill(reading.pid, signal.SIGKILL)
    with pytest.raises(reading_process.ReadingProcessEnded):
        endless.result(10)


@pytest.mark.slow
def test_workers_go_on_while_a_study_is_exported_and_the_export_is_whole(api: Api) -> None:
    name = filled(api, trials=6000)
    exported: dict[str, bytes] = {}

    def export(format: str) -> None:
        exported[format] = api.get(f"/v1/studies/{name}/trials:export?format={format}").content

    readers = [threading.Thread(target=export, args=(format,)) for format in ("csv", "jsonl", "parquet")]
    for reader in readers:
        reader.start()
    told = 0
    while any(reader.is_alive() for reader in readers):
        api.finish(name, 0.5)
        told += 1
    assert told > 0

    numbers = [json.loads(line)["number"] for line in exported["jsonl"].splitlines()]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 6001
    assert len(exported["csv"].splitlines()) >= 6002
    assert exported["parquet"][:4] == exported["parquet"][-4:] == b"PAR1"


@pytest.mark.slow
def test_a_reading_that_nobody_waits_for_is_dropped_and_the_next_ones_are_answered(api: Api) -> None:
    name = filled(api, trials=3000)
    reading = service(api.client).reading
    path = f"/v1/studies/{name}/trials:export?format=parquet"

    async def given_up() -> None:
        items = service(api.client).reads.items_in_process(partial(reading_process_parquet, name))
        await anext(items)
        await items.aclose()

    assert api.client.portal is not None
    for _ in range(20):
        api.client.portal.call(given_up)

    assert reading._waiting == {}
    assert reading._parts == {}
    assert api.get(path).content[:4] == b"PAR1"


def reading_process_parquet(name: str, database: Any) -> Iterator[bytes]:
    from hpo_service.reading import parquet

    return parquet.pieces(name, database)


STARTS_AN_ENDLESS_READING = """
import asyncio, sys
from functools import partial, reduce
import operator
from hpo_service.reading.reading_process import ReadingProcess

async def main():
    reading = ReadingProcess(sys.argv[1])
    keeping = asyncio.create_task(reading.keep())
    while not reading.is_up:
        await asyncio.sleep(0.01)
    reads = asyncio.create_task(reading.read(partial(reduce, operator.is_, range(10**15))))
    await asyncio.sleep(0.5)
    print(reading.pid, flush=True)
    await reads

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends after the reading")
def test_when_the_server_is_killed_its_process_ends_though_it_reads(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/hpo.db"
    upgrade(url)
    with subprocess.Popen(
        [sys.executable, "-c", STARTS_AN_ENDLESS_READING, url], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        child = int(server.stdout.readline())
        assert is_alive(child)
        server.kill()

    eventually(lambda: not is_alive(child), 5.0)


@pytest.fixture
def serve(fork: Fork, tmp_path: Path) -> Iterator[Callable[..., Forked]]:
    servers: list[Forked] = []

    def start(**settings: str) -> Forked:
        settings = {"HPO_DATABASE_URL": f"sqlite:///{tmp_path}/hpo.db", **settings}
        server = fork("serve", "--no-auth", "--port", "0", "--json", errors=tmp_path / "log", **settings)
        servers.append(server)
        assert "url" in server.stdout.readline()
        return server

    yield start
    for server in servers:
        server.kill()
        server.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
@pytest.mark.skipif(sys.platform != "linux", reason="finds the process in /proc")
def test_hpo_serve_leaves_no_process_behind(serve: Any, tmp_path: Path, send: Any, how: signal.Signals) -> None:
    server = serve()
    (child,) = eventually(lambda: children(server.pid))
    eventually(lambda: niceness(child) > niceness(server.pid))

    send(server.pid, how)
    server.communicate()

    assert server.returncode == (-signal.SIGKILL if how is signal.SIGKILL else 0)
    assert {json.loads(line)["level"] for line in (tmp_path / "log").read_text().splitlines()} <= {"info"}
    eventually(lambda: not is_alive(child), 5.0)
    if how is not signal.SIGKILL:
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith("hpo.db-")] == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the process in /proc")
def test_a_server_can_do_without(serve: Any) -> None:
    server = serve(HPO_READING_PROCESS="false")
    time.sleep(0.2)

    assert children(server.pid) == []


def children(pid: int) -> list[int]:
    """Of all its threads."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            found += map(int, path.read_text().split())
    return found


def niceness(pid: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, pid)
