"""Slow, silent, greedy and broken connections on a real socket: each is closed in time, and none harms another."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from hpo_service.api.connections import LARGEST_HEAD, Bounds
from hpo_service.settings import Settings

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers the length of the body; /endless with more than any buffer holds."""
    if scope["path"] == "/slow":
        await asyncio.sleep(1.5)
    size, more = 0, scope["path"] != "/early"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(2000 if scope["path"] == "/endless" else 0):
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    await send({"type": "http.response.body", "body": b"%d" % size})


class Served:
    def __init__(self, bounds: Bounds) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            echo,
            log_level="critical",
            lifespan="off",
            ws="none",
            http=bounds.protocol(),  # type: ignore[arg-type]
            timeout_keep_alive=int(bounds.idle_seconds),
        )
        self.server = uvicorn.Server(config)
        self.server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve([self.listener])))
        self.thread.start()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.listener.getsockname(), timeout=10)

    def connected(self) -> int:
        return len(self.server.server_state.connections)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    with ExitStack() as started:

        def start(**bounds: float) -> Served:
            usual: dict[str, Any] = {
                "head_seconds": 0.3,
                "body_seconds": 0.3,
                "idle_seconds": 60,
                "stall_seconds": 60,
                "connections": 100,
            }
            served = Served(Bounds(**{**usual, **bounds}))
            started.callback(served.stop)
            return served

        yield start


def read_one(connection: socket.socket) -> bytes:
    """One whole answer."""
    read = b""
    while not read.endswith(b"0\r\n\r\n"):
        part = connection.recv(65536)
        assert part, read
        read += part
    return read


def answer_of(connection: socket.socket) -> int:
    """The status of one whole answer."""
    return status(read_one(connection))


def read_to_the_end(connection: socket.socket) -> bytes:
    read = b""
    while part := connection.recv(65536):
        read += part
    return read


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize("sent", [b"G", b"\r\n", GET[:-2], b"GET / HTTP/1.1\r\nX: " + b"x" * 5000])
def test_a_head_that_does_not_end_is_408(serve: Any, sent: bytes) -> None:
    connection = serve().connect()
    connection.sendall(sent)
    answer = read_to_the_end(connection)
    assert status(answer) == 408
    assert b"application/problem+json" in answer
    assert b'"code":"request_timeout","retryable":true' in answer


def test_a_dribbled_head_gains_no_time(serve: Any) -> None:
    connection = serve().connect()
    began = time.monotonic()
    connection.sendall(GET[:-2] + b"X: ")
    while time.monotonic() < began + 5:
        try:
            connection.sendall(b"a")
        except OSError:
            break
        time.sleep(0.05)
    assert time.monotonic() - began < 4


def test_a_body_that_does_not_end_is_408(serve: Any) -> None:
    connection = serve().connect()
    connection.sendall(POST + b"12345")
    answer = read_to_the_end(connection)
    assert (status(answer), b"body did not arrive" in answer) == (408, True)


def test_who_says_nothing_is_closed_without_a_word(serve: Any) -> None:
    assert read_to_the_end(serve().connect()) == b""


def test_a_half_closed_connection_does_not_stay(serve: Any) -> None:
    served = serve()
    connection = served.connect()
    connection.sendall(b"GET / HT")
    connection.shutdown(socket.SHUT_WR)
    assert status(read_to_the_end(connection) or b"HTTP/1.1 408") == 408
    wait_for(lambda: served.connected() == 0)


def test_an_idle_connection_outlives_the_deadline_of_a_head_and_the_next_request_has_one_again(serve: Any) -> None:
    connection = serve(head_seconds=0.3, idle_seconds=60).connect()
    for _ in range(2):
        connection.sendall(GET)
        assert answer_of(connection) == 200
        time.sleep(1.2)
    connection.sendall(b"GET /")
    assert b" 408 " in read_to_the_end(connection)


def test_a_request_in_pieces_is_answered_and_its_connection_may_be_idle(serve: Any) -> None:
    connection = serve().connect()
    for piece in (POST[:20], POST[20:] + b"12345", b"67890"):
        connection.sendall(piece)
        time.sleep(0.1)
    assert answer_of(connection) == 200
    time.sleep(1.2)
    connection.sendall(GET)
    assert answer_of(connection) == 200


def test_an_answer_is_not_cut_off_by_what_comes_early(serve: Any) -> None:
    connection = serve(head_seconds=0.3).connect()
    connection.sendall(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n")
    time.sleep(0.1)
    connection.sendall(b"\r\n")
    assert answer_of(connection) == 200


def test_a_body_that_comes_after_its_answer_has_a_deadline_too(serve: Any) -> None:
    connection = serve(body_seconds=0.5).connect()
    connection.sendall(POST.replace(b"POST /", b"POST /early") + b"12345")
    assert answer_of(connection) == 200
    assert read_to_the_end(connection) == b""


def test_requests_in_one_packet_are_all_answered_and_the_last_half_one_runs_out(serve: Any) -> None:
    connection = serve().connect()
    connection.sendall(GET * 20 + b"GET /")
    answers = read_to_the_end(connection)
    assert (answers.count(b" 200 "), answers.count(b" 408 ")) == (20, 1)


def test_a_head_of_any_size_is_refused_above_its_limit(serve: Any) -> None:
    served = serve(head_seconds=60)
    connection = served.connect()
    connection.sendall(GET[:-2] + b"X: " + b"x" * LARGEST_HEAD)
    assert status(connection.recv(65536)) == 431
    body = b"x" * (3 * LARGEST_HEAD)
    connection = served.connect()
    connection.sendall(
        b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    answer = read_to_the_end(connection)
    assert status(answer) == 200
    assert answer.endswith(b"%d\r\n0\r\n\r\n" % len(body))


@pytest.mark.parametrize("sent", [b"rubbish\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\nHost: h\r\n\r\n", b"\x16\x03\x01\x00"])
def test_what_is_not_http_is_400_as_a_problem(serve: Any, sent: bytes) -> None:
    connection = serve().connect()
    connection.sendall(sent)
    answer = read_to_the_end(connection)
    assert status(answer) == 400
    assert b'"code":"malformed_request"' in answer


def test_an_offer_of_another_protocol_is_answered_in_this_one(serve: Any) -> None:
    connection = serve().connect()
    connection.sendall(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert status(connection.recv(65536)) == 200


OFFER = b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: HTTP2-Settings, Upgrade"
FIVE = b"Content-Length: 5\r\n\r\nfive!"
FIVE_IN_CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n2\r\nfi\r\n3\r\nve!\r\n0\r\n\r\n"


@pytest.mark.parametrize("framed", [FIVE, FIVE_IN_CHUNKS])
@pytest.mark.parametrize("pieces", [1, 2, 40])
def test_the_body_of_a_request_with_such_an_offer_is_read(serve: Any, framed: bytes, pieces: int) -> None:
    connection = serve(head_seconds=60, body_seconds=60).connect()
    for rest, ends in ((b"\r\n", False), (b", close\r\n", True)):
        sent = b"POST / HTTP/1.1\r\nHost: h\r\n" + OFFER + rest + framed
        for start in range(0, len(sent), size := -(-len(sent) // pieces)):
            connection.sendall(sent[start : start + size])
            time.sleep(0.005)
        answer = read_to_the_end(connection) if ends else read_one(connection)
        assert status(answer) == 200
        assert answer.endswith(b"\r\n1\r\n5\r\n0\r\n\r\n")


def test_many_such_offers_at_once_are_answered_one_after_the_other(serve: Any) -> None:
    connection = serve(head_seconds=60, body_seconds=60).connect()
    offered = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    connection.sendall(offered * 2000 + GET[:-2] + b"Connection: close\r\n\r\n")
    assert read_to_the_end(connection).count(b"HTTP/1.1 200 OK") == 2001


def test_a_body_that_does_not_arrive_after_such_an_offer_is_408(serve: Any) -> None:
    connection = serve(head_seconds=60).connect()
    connection.sendall(b"POST / HTTP/1.1\r\nHost: h\r\n" + OFFER + b"\r\n" + FIVE[:-1])
    assert status(read_to_the_end(connection)) == 408


def test_who_does_not_read_the_answer_is_closed(serve: Any) -> None:
    served = serve(stall_seconds=0.3)
    connection = served.connect()
    connection.sendall(b"GET /endless HTTP/1.1\r\nHost: h\r\n\r\n")
    wait_for(lambda: served.connected() == 1)
    wait_for(lambda: served.connected() == 0)


def test_when_all_places_are_taken_a_silent_one_makes_room_and_a_worker_stays(serve: Any) -> None:
    served = serve(connections=4, head_seconds=60)
    worker = served.connect()
    worker.sendall(GET)
    assert answer_of(worker) == 200
    silent = [served.connect() for _ in range(3)]
    wait_for(lambda: served.connected() == 4)
    newcomer = served.connect()
    newcomer.sendall(GET)
    assert answer_of(newcomer) == 200
    assert status(read_to_the_end(silent[0])) == 503
    worker.sendall(GET)
    assert answer_of(worker) == 200


def test_when_all_places_are_taken_by_workers_a_newcomer_is_told_to_come_back(serve: Any) -> None:
    served = serve(connections=3)
    workers = [served.connect() for _ in range(3)]
    for worker in workers:
        worker.sendall(GET)
        assert answer_of(worker) == 200
    refused = read_to_the_end(served.connect())
    assert status(refused) == 503
    assert b"retry-after: 1" in refused.lower()
    workers[0].close()
    wait_for(lambda: served.connected() == 2)
    newcomer = served.connect()
    newcomer.sendall(GET)
    assert answer_of(newcomer) == 200


def test_the_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_HEAD_SECONDS", "1.5")
    monkeypatch.setenv("HPO_CONNECTIONS", "7")
    bounds = Bounds.of(Settings())
    assert (bounds.head_seconds, bounds.body_seconds, bounds.connections) == (1.5, 30, 7)


def test_no_more_connections_than_files_can_be_opened() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
        assert Bounds.of(Settings(connections=before[1])).connections == before[1] - 128
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
