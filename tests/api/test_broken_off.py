"""What is read in pieces of a study that is deleted meanwhile breaks off where every reader sees it."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

from hpo_service.api import streams
from hpo_service.api.connections import ConnectionBounds
from hpo_service.api.streams import Stream, Unread
from hpo_service.client import BrokenOff, Client
from hpo_service.domain.errors import NotFound
from hpo_service.domain.study import StudySpec
from hpo_service.operations import export, studies, trials
from hpo_service.operations.calls import Import
from hpo_service.operations.service import Service
from hpo_service.reading.parquet import PAGE
from hpo_service.settings import Settings
from tests.forked import Fork
from tests.patience import PATIENCE_SECONDS

SPACE: dict[str, Any] = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
FORMATS = ("csv", "jsonl", "parquet")


async def with_trials(service: Service, count: int) -> None:
    await studies.create(service, StudySpec.model_validate({"name": "s", "search_space": SPACE}))
    for start in range(0, count, 1000):
        some = [{"params": {"x": 0.5}, "state": "COMPLETE", "values": [0.5]}] * min(1000, count - start)
        await trials.import_finished(service, "s", Import.model_validate({"trials": some}))


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("again", [False, True], ids=["deleted", "deleted and created anew"])
@pytest.mark.parametrize("count", [PAGE + 1, 3 * PAGE])
def test_an_export_of_a_study_that_is_deleted_ends_with_an_error(
    format: export.Format, again: bool, count: int, database_url: str
) -> None:
    async def run() -> list[bytes]:
        await with_trials(service, count)
        pieces = await export.pieces(service, "s", format)
        got = [await anext(pieces)]
        if format == "csv":
            got.append(await anext(pieces))  # behind the line of names
        await studies.delete(service, "s", force=True)
        if again:
            await with_trials(service, 3 * PAGE)
        with pytest.raises(NotFound, match="deleted meanwhile"):
            got += [piece async for piece in pieces]
        return got

    service = Service(database_url)
    try:
        assert b"".join(asyncio.run(run()))
    finally:
        service.close()


@pytest.mark.parametrize("order_by", ["number", "value"])
def test_a_page_token_does_not_go_on_in_another_study_of_that_name(order_by: str, either: Any) -> None:
    name = f"twice-{order_by}"
    body = {"name": name, "search_space": SPACE, "sampler": {"name": "random", "seed": 1}}
    path = f"/v1/studies/{name}/trials?page_size=2&order_by={order_by}"
    given = [{"params": {"x": 0.5}, "state": "COMPLETE", "values": [0.5]}] * 5

    def made() -> str:
        assert either.post("/v1/studies", body).status_code == 201
        either.imported(name, *given)
        token: str = either.get(path).json()["next_page_token"]
        assert len(either.get(f"{path}&page_token={token}").json()["items"]) == 2
        return token

    token = made()
    assert either.call("DELETE", f"/v1/studies/{name}").status_code == 204
    other = made()
    answer = either.get(f"{path}&page_token={token}")
    assert either.pointers(answer) == ["/page_token"]
    assert "deleted" in answer.json()["detail"]
    assert either.get(f"{path}&page_token={other}").status_code == 200
    assert either.call("DELETE", f"/v1/studies/{name}").status_code == 204


@pytest.mark.slow
def test_events_of_a_study_made_anew_do_not_wait_for_where_the_old_one_was(own_server: str) -> None:
    with Client(own_server) as client:
        client.create({"name": "s", "search_space": SPACE})
        client.import_trials("s", [{"params": {"x": 0.5}, "state": "COMPLETE", "values": [0.5]}] * 50)
        events = client.events("s", last_event_id="0")
        last = [next(events).id for _ in range(50)][-1]
        events.close()  # type: ignore[attr-defined]  # it is a generator
        client.delete("s")
        client.create({"name": "s", "search_space": SPACE})
        client.import_trials("s", [{"params": {"x": 0.5}, "state": "COMPLETE", "values": [0.5]}])
        assert int(next(client.events("s", last_event_id=last)).id) < int(last)


@pytest.fixture
def own_server(fork: Fork, tmp_path: Path) -> Iterator[str]:
    process = fork("serve", "--no-auth", "--port", "0", "--json", "--database", f"sqlite:///{tmp_path}/hpo.db")
    yield json.loads(process.stdout.readline())["url"]
    process.terminate()
    process.communicate()


@pytest.fixture
def breaking() -> Iterator[str]:
    """A server on our own connections whose stream fails half-way."""

    async def half() -> AsyncIterator[bytes]:
        yield b"number,state\r\n"
        yield b"0,COMPLETE\r\n"
        raise NotFound("study 's' was deleted meanwhile")

    yield from served(half)


def served(pieces: Callable[[], AsyncIterator[bytes]]) -> Iterator[str]:
    async def answer(_request: Any) -> Stream:
        return Stream(pieces(), media_type="text/csv")

    app = Starlette(routes=[Route("/v1/studies/s/trials:export", answer)])
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    bounds = ConnectionBounds.of(Settings(database_url="sqlite:///unused.db"))
    config = uvicorn.Config(app, http=bounds.protocol(None), lifespan="off", log_level="critical")  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def by_the_standard_library(url: str) -> bytes:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE_SECONDS)
    connection.request("GET", "/v1/studies/s/trials:export")
    return connection.getresponse().read()


def by_urllib3(url: str) -> bytes:
    return urllib3.request("GET", f"{url}/v1/studies/s/trials:export", retries=False).data


def by_http_1_0(url: str) -> bytes:
    """To which an answer is whole when its connection is closed."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(b"GET /v1/studies/s/trials:export HTTP/1.0\r\n\r\n")
        got = b""
        while piece := connection.recv(65_536):
            got += piece
        return got


def by_the_sdk(url: str) -> bytes:
    with Client(url) as client:
        return b"".join(client.export("s"))


@pytest.mark.parametrize(
    "read", [by_the_standard_library, by_urllib3, by_http_1_0, by_the_sdk], ids=lambda function: function.__name__
)
def test_no_client_takes_an_answer_that_was_broken_off_for_all_of_it(
    read: Callable[[str], bytes], breaking: str
) -> None:
    with pytest.raises((OSError, http.client.HTTPException, urllib3.exceptions.HTTPError, BrokenOff)):
        read(breaking)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["a file", "stdout"])
def test_the_command_says_so_ends_with_1_and_leaves_no_file(to: str, breaking: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hpo_service", "study", "export", "s", "--server", breaking]
    if to == "a file":
        command += ["-o", str(tmp_path / "s.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 1, done.stderr
    assert "broke off before its end" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


LARGE_PIECE = 8 * 2**20  # more than a connection and its reader's kernel hold


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server whose streams are three large pieces; two that wait to be read are too much."""

    async def three() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * LARGE_PIECE

    monkeypatch.setattr(streams, "unread", Unread(LARGE_PIECE * 3 // 2))
    yield from served(three)


def reader_of(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS)
    connection.sendall(b"GET /v1/studies/s/trials:export HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert connection.recv(12) == b"HTTP/1.1 200"
    return connection


def read_on(connection: socket.socket) -> int:
    size = 0
    while part := connection.recv(2**20):
        size += len(part)
    return size


@pytest.mark.slow
def test_when_too_much_waits_to_be_read_the_slowest_reader_gives_way_and_the_others_read_all(large: str) -> None:
    slowest = reader_of(large)
    time.sleep(0.2)  # its piece waits
    another = reader_of(large)
    assert read_on(another) > 3 * LARGE_PIECE
    with pytest.raises(ConnectionResetError):
        read_on(slowest)
    assert read_on(reader_of(large)) > 3 * LARGE_PIECE, "what gave way is counted no more"
