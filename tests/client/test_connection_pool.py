"""What may answer a call, byte by byte: whole answers in any form, and what is none."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import trustme

from hpo_service.client.answers import root_reason
from hpo_service.client.connection_pool import BrokenAnswer, ConnectionPool, HttpResponse, NotConnected

Answering = Callable[..., ConnectionPool]


@pytest.fixture
def heard() -> list[bytes]:
    """What each connection has sent, request by request."""
    return []


@pytest.fixture
def answering(heard: list[bytes]) -> Iterator[Answering]:
    """A server that answers the nth request with these pieces, and with the last one ends the connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept: list[ConnectionPool] = []

    def serve(answers: list[list[bytes]]) -> None:
        while answers:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # the test is over
            with connection:
                while answers and (request := connection.recv(65536)):
                    heard.append(request)
                    pieces = answers.pop(0)
                    for piece in pieces:
                        connection.sendall(piece)
                    if b"close" in pieces[0]:
                        break

    def start(*answers: list[bytes]) -> ConnectionPool:
        threading.Thread(target=serve, args=(list(answers),), daemon=True).start()
        kept.append(ConnectionPool(f"http://127.0.0.1:{listener.getsockname()[1]}", 5))
        return kept[-1]

    yield start
    for one in kept:
        one.close()
    listener.close()


def get(kept: ConnectionPool, path: str = "/") -> HttpResponse:
    return kept.call("GET", path, None, {}, 5)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nETag: x\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\netag: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([OK], id="at once"),
        pytest.param([OK[:3], OK[3:30], OK[30:47], OK[47:]], id="in pieces"),
        pytest.param([b"HTTP/1.1 100 Continue\r\n\r\n" + OK], id="after an interim answer"),
        pytest.param([b"HTTP/1.1 100 Continue\r\n\r\n", OK], id="after an interim answer of its own"),
        pytest.param([CHUNKED], id="in chunks"),
        pytest.param([OK.replace(b"ETag", b"Connection: Upgrade\r\nUpgrade: h2c\r\nETag")], id="with an offer"),
        pytest.param([b"HTTP/1.1 200 OK\r\nETAG: x\r\nConnection: close\r\n\r\n{}"], id="until the end"),
        pytest.param([b"HTTP/1.0 200 OK\r\nETag: x\r\nContent-Length: 2\r\n\r\n{}close"], id="of HTTP/1.0"),
    ],
)
def test_an_answer_is_read_in_whatever_form_it_comes(answering, pieces):
    answered = get(answering(pieces))
    assert (answered.status, answered.data, answered.headers["etag"]) == (200, b"{}", "x")


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([b"SSH-2.0 close\r\n"], "it does not speak HTTP"),
        (
            [b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\n{}"],
            "the connection ended before the answer",
        ),
        ([b"HTTP/1.1 200 OK\r\nConnection: close\r\nETag: "], "the connection ended before the answer"),
        ([b"HTTP/1.1 100 Continue\r\nConnection: close\r\n\r\n"], "the connection ended before the answer"),
        (
            [b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}"],
            "the connection ended before the answer",
        ),
        ([b"HTTP/1.1 101 close\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"], "another protocol"),
    ],
)
def test_what_is_no_whole_answer_is_none(answering, pieces, reason):
    with pytest.raises(BrokenAnswer) as broken:
        get(answering(pieces))
    assert reason in root_reason(broken.value)


def test_a_connection_is_used_again_unless_the_server_ends_it(answering, heard):
    kept = answering([OK], [OK], [OK.replace(b"ETag: x", b"Connection: close")], [OK])
    for path in ("/1", "/2", "/3", "/4"):
        assert get(kept, path).data == b"{}"
    assert [request.split(b" ")[1] for request in heard] == [b"/1", b"/2", b"/3", b"/4"]


def test_an_answer_that_nobody_asked_for_is_no_answer_to_the_next_call(answering):
    kept = answering([OK + OK.replace(b"{}", b"[]")], [OK.replace(b"{}", b"42")])
    assert get(kept).data == b"{}"
    assert get(kept).data == b"42"


def test_a_header_cannot_smuggle_in_another(answering):
    kept = answering([OK])
    for value in ("x\r\nHost: elsewhere", "x\nA: b", "\x00", "\u2028"):
        with pytest.raises(ValueError, match="'If-Match' has a character") as refused:
            kept.call("GET", "/", None, {"Authorization": "Bearer secret", "If-Match": value}, 5)
        assert "secret" not in str(refused.value)


def test_the_request_is_one_piece_with_its_length(answering, heard):
    answering([OK]).call("POST", "/v1", b'{"a":1}', {"Content-Type": "application/json"}, 5)
    head, _, body = heard[0].partition(b"\r\n\r\n")
    assert body == b'{"a":1}'
    assert head.splitlines()[0] == b"POST /v1 HTTP/1.1"
    assert {b"Content-Length: 7", b"Content-Type: application/json"} <= set(head.splitlines())


@pytest.mark.parametrize(
    ("server", "host", "path"),
    [
        ("http://[::1]:8000", b"[::1]:8000", b"/v1"),
        ("http://hpo.example", b"hpo.example", b"/v1"),
        ("http://bücher.example/ä b", b"xn--bcher-kva.example", b"/%C3%A4%20b/v1"),
        ("http://hpo_server:80/prefix", b"hpo_server:80", b"/prefix/v1"),
    ],
)
def test_the_host_and_the_path_are_written_as_http_wants_them(server, host, path):
    lines = ConnectionPool(server, 5)._request("GET", "/v1", None, {}).splitlines()
    assert lines[0] == b"GET " + path + b" HTTP/1.1"
    assert b"Host: " + host in lines


def test_a_server_that_is_not_there_has_heard_nothing():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(NotConnected):
            get(ConnectionPool(f"http://127.0.0.1:{unused.getsockname()[1]}", 5))


def test_an_answer_comes_by_tls_too_from_a_server_that_shows_who_it_is(monkeypatch, tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(2):
            accepted, _address = listener.accept()
            with suppress(OSError), context.wrap_socket(accepted, server_side=True) as connection:
                while connection.recv(65536):
                    connection.sendall(OK)

    threading.Thread(target=serve, daemon=True).start()
    server = f"https://localhost:{listener.getsockname()[1]}"
    with pytest.raises(NotConnected, match="certificate"):
        get(ConnectionPool(server, 5))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    kept = ConnectionPool(server, 5)
    assert [get(kept).data for _ in range(3)] == [b"{}"] * 3  # over one connection
    kept.close()
    listener.close()
