"""Slow, silent, greedy and broken connections on a real socket: each is closed in time, and none harms another."""

from __future__ import annotations

import asyncio
import contextlib
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from hpo_service.api.connections import (
    DRAINED_AND_CLOSED,
    DRAINED_AND_KEPT,
    LARGEST_END,
    LARGEST_HEAD,
    BoundedConnection,
    ConnectionBounds,
)
from hpo_service.api.query_parameters import KEY_STUDIES
from hpo_service.api.request_heads import MOST_HEADERS
from hpo_service.instruments import registry
from hpo_service.settings import Settings
from tests.patience import PATIENCE_SECONDS

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
LARGE = 8 * 2**20  # more than is on its way to a reader
WITH_A_KEY = b"GET /known HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers the length of the body; /endless with more than any buffer holds, /head with what it was told."""
    if scope["path"] == "/known":
        scope[KEY_STUDIES] = None  # as the door notes it of a key
    if scope["path"] == "/slow":
        await asyncio.sleep(1.5)
    size, more = 0, scope["path"] not in ("/early", "/closing")
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        more = message["more_body"]
    headers = [(b"connection", b"close")] if scope["path"] == "/closing" else []
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["path"] == "/head":
        for header in scope["headers"]:
            await send({"type": "http.response.body", "body": b"%s=%s\n" % header, "more_body": True})
    for _ in range(2000 if scope["path"] == "/endless" else 0):
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    large = b"x" * LARGE if scope["path"] == "/large" else b""
    await send({"type": "http.response.body", "body": b"%d%s" % (size, large)})


class Served:
    def __init__(self, bounds: ConnectionBounds) -> None:
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
        return socket.create_connection(self.listener.getsockname(), timeout=PATIENCE_SECONDS)

    def connected(self) -> int:
        return len(self.connections())

    def connections(self) -> list[BoundedConnection]:
        return list(self.server.server_state.connections)  # type: ignore[arg-type]

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
            served = Served(ConnectionBounds(**{**usual, **bounds}))
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
    while time.monotonic() < began + 60:
        try:
            connection.sendall(b"a")
        except OSError:
            break
        time.sleep(0.05)
    assert time.monotonic() - began < 30  # it would go on for a minute


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


@pytest.mark.slow
def test_an_idle_connection_outlives_the_deadline_of_a_head_and_the_next_request_has_one_again(serve: Any) -> None:
    connection = serve(head_seconds=0.3, idle_seconds=60).connect()
    for _ in range(2):
        connection.sendall(GET)
        assert answer_of(connection) == 200
        time.sleep(1.2)
    connection.sendall(b"GET /")
    assert b" 408 " in read_to_the_end(connection)


@pytest.mark.slow
def test_a_request_in_pieces_is_answered_and_its_connection_may_be_idle(serve: Any) -> None:
    connection = serve().connect()
    for piece in (POST[:20], POST[20:] + b"12345", b"67890"):
        connection.sendall(piece)
        time.sleep(0.1)
    assert answer_of(connection) == 200
    time.sleep(1.2)
    connection.sendall(GET)
    assert answer_of(connection) == 200


@pytest.mark.slow
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
    worker.sendall(WITH_A_KEY)
    assert answer_of(worker) == 200
    silent = [served.connect() for _ in range(3)]
    wait_for(lambda: served.connected() == 4)
    newcomer = served.connect()
    newcomer.sendall(GET)
    assert answer_of(newcomer) == 200
    assert status(read_to_the_end(silent[0])) == 503
    worker.sendall(WITH_A_KEY)
    assert answer_of(worker) == 200


def test_when_all_places_are_taken_by_workers_a_newcomer_is_told_to_come_back(serve: Any) -> None:
    served = serve(connections=3)
    workers = [served.connect() for _ in range(3)]
    for worker in workers:
        worker.sendall(WITH_A_KEY)
        assert answer_of(worker) == 200
    refused = read_to_the_end(served.connect())
    assert status(refused) == 503
    assert b"retry-after: 1" in refused.lower()
    workers[0].close()
    wait_for(lambda: served.connected() == 2)
    newcomer = served.connect()
    newcomer.sendall(GET)
    assert answer_of(newcomer) == 200


def test_idle_ones_that_no_key_has_let_in_make_room_the_longest_idle_first_and_read_nothing(serve: Any) -> None:
    served = serve(connections=3)
    worker, *strangers = [served.connect() for _ in range(3)]
    worker.sendall(WITH_A_KEY)
    assert answer_of(worker) == 200
    for stranger in reversed(strangers):
        stranger.sendall(GET)
        assert answer_of(stranger) == 200
    newcomers = [served.connect() for _ in strangers]
    for newcomer, stranger in zip(newcomers, reversed(strangers), strict=True):
        newcomer.sendall(WITH_A_KEY)
        assert answer_of(newcomer) == 200
        assert read_to_the_end(stranger) == b"", "an answer would be taken for that to its next call"
    worker.sendall(WITH_A_KEY)
    assert answer_of(worker) == 200


def test_whose_last_answer_is_being_read_makes_no_room(serve: Any) -> None:
    served = serve(connections=1, stall_seconds=60)
    reader = served.connect()
    reader.sendall(b"GET /large HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert reader.recv(12) == b"HTTP/1.1 200"
    assert status(read_to_the_end(served.connect())) == 503
    assert len(read_to_the_end(reader)) > LARGE


def test_the_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_HEAD_SECONDS", "1.5")
    monkeypatch.setenv("HPO_CONNECTIONS", "7")
    bounds = ConnectionBounds.of(Settings())
    assert (bounds.head_seconds, bounds.body_seconds, bounds.connections) == (1.5, 30, 7)


def test_no_more_connections_than_files_can_be_opened() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
        assert ConnectionBounds.of(Settings(connections=before[1])).connections == before[1] - 128
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


ONE_READ = 2**18  # bytes, what an event loop takes from a socket at once
CHUNKED = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


def send_all_that_is_taken(connection: socket.socket, data: bytes) -> threading.Thread:
    def sending() -> None:
        with contextlib.suppress(OSError):
            connection.sendall(data)

    thread = threading.Thread(target=sending)
    thread.start()
    return thread


@pytest.mark.slow
def test_requests_that_come_early_wait_as_they_came_and_are_all_answered(serve: Any) -> None:
    served = serve(head_seconds=60)
    connection = served.connect()
    connection.sendall(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n")
    wait_for(lambda: served.connected() == 1)
    (here,) = served.connections()
    sending = send_all_that_is_taken(connection, GET * 20_000 + GET[:-2] + b"Connection: close\r\n\r\n")
    wait_for(lambda: here.buffered > 0)
    most, queued = 0, 0
    answers = b""
    while part := connection.recv(2**16):
        most, queued = max(most, here.buffered), max(queued, len(here.pipeline))
        answers += part
    sending.join()
    assert answers.count(b"HTTP/1.1 200 OK") == 20_002
    assert most <= 2 * ONE_READ
    assert queued <= 1
    wait_for(lambda: here.limiter.waiting_bytes == 0)


@pytest.mark.parametrize("seed", range(4))
def test_how_the_bytes_are_cut_changes_no_answer(serve: Any, seed: int) -> None:
    chosen = random.Random(seed)
    empty_lines = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 12\r\n\r\n\r\n\r\nab\r\n\r\ncd"
    kinds = {
        GET: 0,
        POST + b"0123456789": 10,
        CHUNKED + b"3\r\nabc\r\n0\r\n\r\n": 3,
        CHUNKED + b"4;x=y\r\n\r\n\r\n\r\n0\r\nX-Trailer: 1\r\n\r\n": 4,
        empty_lines: 12,
        b"\r\n\r\n" + GET: 0,
        b"POST / HTTP/1.1\r\nHost: h\r\n" + OFFER + b"\r\n" + FIVE: 5,
        POST.replace(b"10", b"100000") + b"x" * 100_000: 100_000,
    }
    sent = chosen.choices(list(kinds), weights=[4, 4, 4, 4, 4, 4, 4, 1], k=60)
    stream = b"".join(sent) + GET[:-2] + b"Connection: close\r\n\r\n"
    connection = serve(head_seconds=60, body_seconds=60).connect()

    def sending() -> None:
        start = 0
        while start < len(stream):
            size = chosen.choice([1, 3, 17, 400, 5_000, 200_000])
            connection.sendall(stream[start : start + size])
            start += size

    thread = threading.Thread(target=sending)
    thread.start()
    answers = read_to_the_end(connection)
    thread.join()
    bodies = [int(answer.split(b"\r\n")[-4]) for answer in answers.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [*(kinds[one] for one in sent), 0]


@pytest.mark.slow
def test_what_is_not_http_is_refused_after_the_answers_to_what_came_before(serve: Any) -> None:
    connection = serve(head_seconds=60).connect()
    connection.sendall(b"POST /slow HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nfive!rubbish\r\n")
    first, second = read_to_the_end(connection).split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200 ")
    assert first.endswith(b"\r\n5\r\n0\r\n\r\n")
    assert second.startswith(b"400 ")


@pytest.mark.slow
def test_who_does_not_read_holds_up_his_own_next_requests_and_no_memory(serve: Any) -> None:
    served = serve(head_seconds=60)
    connection = served.connect()
    sending = send_all_that_is_taken(connection, b"GET /endless HTTP/1.1\r\nHost: h\r\n\r\n" * 200_000)
    wait_for(lambda: served.connected() == 1 and served.connections()[0].buffered > 0)
    (here,) = served.connections()
    time.sleep(0.5)
    assert here.transport.get_write_buffer_size() <= 2**17
    assert here.buffered <= 2 * ONE_READ
    assert len(here.pipeline) <= 1
    connection.shutdown(socket.SHUT_RDWR)  # a mere close would leave the sending thread to the server's patience
    connection.close()
    sending.join()


def test_trailers_are_no_headers(serve: Any) -> None:
    connection = serve(head_seconds=60, body_seconds=60).connect()
    request = CHUNKED.replace(b"POST /", b"POST /head") + b"2\r\n{}\r\n0\r\n"
    trailers = b"Authorization: Bearer hpo_x\r\nContent-Type: application/json\r\nHost: other\r\nX: y\r\n\r\n"
    for pieces in ((request + trailers,), (request, trailers), (request[:-1], b"\n" + trailers[:20], trailers[20:])):
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.05)
        told = read_one(connection)
        assert b"transfer-encoding=chunked" in told
        assert b"host=h\n" in told
        for name in (b"authorization", b"content-type", b"x=y", b"other"):
            assert name not in told.lower().partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    "trailers", [b"x: 1\r\n" * (MOST_HEADERS + 2), b"x: " + b"x" * (3 * LARGEST_END), b"x" * (3 * LARGEST_END)]
)
@pytest.mark.parametrize("path", [b"/", b"/early"])
def test_trailers_are_bounded_before_the_answer_and_after_it(serve: Any, trailers: bytes, path: bytes) -> None:
    served = serve(head_seconds=60, body_seconds=60)
    connection = served.connect()
    connection.sendall(CHUNKED.replace(b"POST /", b"POST " + path) + b"2\r\n{}\r\n0\r\n")
    if path == b"/early":
        assert answer_of(connection) == 200
    connection.sendall(trailers)
    refusal = read_to_the_end(connection)
    assert refusal == b"" if path == b"/early" else status(refusal) == 431
    connection.close()
    wait_for(lambda: served.connected() == 0)


def test_a_chunks_extension_is_bounded(serve: Any) -> None:
    connection = serve(head_seconds=60, body_seconds=60).connect()
    connection.sendall(CHUNKED + b"1;" + b"x" * (3 * LARGEST_END))
    assert status(read_to_the_end(connection)) == 431


@pytest.mark.slow
@pytest.mark.parametrize(
    "lines",
    [
        b"HTTP/1.1\r\n",
        b"HTTP/1.1\r\nHost: h\r\nHost: h\r\n",
        b"HTTP/1.1\r\nHost: h\r\nhost: other\r\n",
        b"HTTP/1.0\r\nHost: h\r\nHost: other\r\n",
        b"HTTP/1.1\r\nHost: a b\r\n",
        b"HTTP/1.1\r\nHost: h/path\r\n",
        b"HTTP/1.1\r\nHost: user@h\r\n",
        b"HTTP/1.1\r\nHost: h, other\r\n",
        b"HTTP/1.1\r\nHost: h:x\r\n",
        b"HTTP/2.0\r\nHost: h\r\n",
        b"HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        b"HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 0\r\n",
        b"HTTP/1.1\r\nHost: h\r\nContent-Length: 0, 0\r\n",
        b"HTTP/1.1\r\nHost: h\r\nContent-Length: +0\r\n",
        b"HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n",
        b"HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n",
        b"HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n",
        b"HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n",
        b"HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n",
        b"HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n",
    ],
)
def test_a_request_of_doubtful_host_or_end_is_400_and_reaches_nobody(serve: Any, lines: bytes) -> None:
    for first in (b"", GET):
        connection = serve(head_seconds=60, body_seconds=60).connect()
        connection.sendall(first)
        if first:
            assert answer_of(connection) == 200
        connection.sendall(b"POST /closing " + lines + b"\r\n0\r\n\r\n")
        answer = read_to_the_end(connection)
        assert (status(answer), answer.count(b"\r\ncontent-length")) == (400, 1)
        assert b'"code":"malformed_request"' in answer


@pytest.mark.parametrize("head", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n"])
def test_an_old_client_need_name_no_host(serve: Any, head: bytes) -> None:
    connection = serve().connect()
    connection.sendall(head)
    assert status(read_to_the_end(connection)) == 200


@pytest.mark.parametrize(
    ("target", "host"),
    [(b"http://other:81/head", b"other:81"), (b"HTTP://[::1]/head", b"[::1]"), (b"/head", b"h")],
)
def test_the_host_of_a_whole_address_counts(serve: Any, target: bytes, host: bytes) -> None:
    connection = serve().connect()
    connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n")
    assert b"host=" + host + b"\n" in read_one(connection)


def test_headers_are_bounded_in_number(serve: Any) -> None:
    served = serve(head_seconds=60)
    for end in (b"\r\n", b""):  # all here, or not
        connection = served.connect()
        connection.sendall(GET[:-2] + b"x: 1\r\n" * (MOST_HEADERS + 1) + end)
        assert status(connection.recv(65536)) == 431
    connection = served.connect()
    connection.sendall(GET[:-2] + b"x: 1\r\n" * (MOST_HEADERS - 1) + b"\r\n")
    assert answer_of(connection) == 200


def test_empty_lines_before_a_request_are_bounded(serve: Any) -> None:
    connection = serve(head_seconds=60).connect()
    connection.sendall(b"\r\n" * LARGEST_HEAD)
    assert status(connection.recv(65536)) == 431


def test_who_is_refused_while_he_still_sends_gets_to_read_why(serve: Any) -> None:
    served = serve(head_seconds=60, body_seconds=60)
    for head in (
        b"POST /closing HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (16 * DRAINED_AND_KEPT),
        GET[:-2] + b"X: ",
    ):
        connection = served.connect()
        connection.sendall(head + b"x" * (16 * DRAINED_AND_KEPT))  # no error here: nobody resets
        assert status(read_to_the_end(connection)) in (200, 431)
        connection.close()
    wait_for(lambda: served.connected() == 0)


def test_who_goes_on_sending_after_the_last_answer_is_closed(serve: Any) -> None:
    served = serve(head_seconds=60, body_seconds=60, linger_seconds=0.5)
    lazy, greedy = served.connect(), served.connect()
    for connection in (lazy, greedy):
        connection.sendall(b"rubbish\r\n\r\n")
        assert status(read_to_the_end(connection)) == 400
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        greedy.sendall(b"x" * (2 * DRAINED_AND_CLOSED))
    wait_for(lambda: served.connected() == 0)


@pytest.mark.slow
def test_who_sends_slowly_for_longer_than_the_silence_that_is_allowed_reads_the_answer(serve: Any) -> None:
    connection = serve(head_seconds=60, body_seconds=60, linger_seconds=2).connect()
    connection.sendall(b"POST /closing HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n")
    began = time.monotonic()
    while time.monotonic() - began < 5:
        connection.sendall(b"x" * 100)  # a reset would be an error here
        time.sleep(0.1)
    assert status(read_to_the_end(connection)) == 200


def send_slowly(connection: socket.socket, times: int) -> None:
    for _ in range(times):
        connection.sendall(b"x")
        time.sleep(0.05)


def test_nobody_goes_on_sending_for_ever(serve: Any) -> None:
    served = serve(head_seconds=60, body_seconds=60, linger_seconds=60, most_linger_seconds=0.5)
    connection = served.connect()
    connection.sendall(b"rubbish\r\n\r\n")
    assert status(read_to_the_end(connection)) == 400
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        send_slowly(connection, times=600)
    wait_for(lambda: served.connected() == 0)


@pytest.mark.slow
def test_a_short_body_that_nobody_wants_is_read_and_the_connection_goes_on(serve: Any) -> None:
    connection = serve(head_seconds=60, body_seconds=0.5).connect()
    size = DRAINED_AND_KEPT // 2
    connection.sendall(b"POST /early HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size)
    assert answer_of(connection) == 200
    connection.sendall(b"x" * size)
    time.sleep(1.5)  # and it is idle now, no body that is late
    connection.sendall(GET)
    assert answer_of(connection) == 200


def test_a_long_body_that_nobody_wants_ends_the_connection(serve: Any) -> None:
    connection = serve(head_seconds=60, body_seconds=60).connect()
    connection.sendall(b"POST /early HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (4 * DRAINED_AND_KEPT))
    assert answer_of(connection) == 200
    connection.sendall(b"x" * (2 * DRAINED_AND_KEPT))
    assert read_to_the_end(connection) == b""


def test_the_greediest_give_way_when_all_together_hold_too_much(serve: Any) -> None:
    served = serve(head_seconds=60, body_seconds=60, waiting_bytes=2**18)
    modest, *greedy = (served.connect() for _ in range(12))
    modest.sendall(POST + b"1234")
    for number, connection in enumerate(greedy):
        connection.sendall(GET[:-2] + b"X: " + b"x" * (30_000 + number))
    wait_for(lambda: served.connected() == 12)
    wait_for(lambda: bool(select.select(greedy, [], [], 0)[0]))  # what was sent has come
    wait_for(lambda: sum(connection.buffered > 0 for connection in served.connections()) <= 9)
    (limiter,) = {connection.limiter for connection in served.connections()}
    assert limiter.waiting_bytes == sum(connection.buffered for connection in served.connections()) <= 2**18
    refused, _, _ = select.select(greedy, [], [], 0)
    assert refused
    assert {status(connection.recv(65536)) for connection in refused} == {503}
    modest.sendall(b"567890")
    assert answer_of(modest) == 200
    for connection in (modest, *greedy):
        connection.close()
    wait_for(lambda: limiter.waiting_bytes == 0)


def test_refusals_and_connections_are_counted(serve: Any) -> None:
    def value(name: str, **labels: str) -> float:
        return registry.get_sample_value(name, labels) or 0.0

    before = value("hpo_connections_refused_total", status="400"), value("hpo_connections_open")
    connection = serve().connect()
    connection.sendall(b"rubbish\r\n\r\n")
    answer = read_to_the_end(connection)
    assert b"x-content-type-options: nosniff\r\n" in answer
    assert b"content-security-policy: frame-ancestors 'none'\r\n" in answer
    assert value("hpo_connections_refused_total", status="400") == before[0] + 1
    connection.close()
    wait_for(lambda: value("hpo_connections_open") == before[1])


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
