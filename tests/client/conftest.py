"""A server that follows a script: each request gets the next answer, and is written down."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from hpo_service.client import Client, Retries

SOON = Retries(initial=0.001, longest=0.002, deadline=5)


@dataclass(frozen=True)
class Answer:
    """One answer; lost: the connection is closed instead, after the request was read; last: it is closed after."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    lost: bool = False
    last: bool = False

    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def problem(status: int, code: str, retryable: bool = False, **headers: str) -> Answer:
    body = {"type": "about:blank", "title": code, "status": status, "code": code, "retryable": retryable}
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, {**body, "detail": f"because of {code}"}, headers)


LOST = Answer(lost=True)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass
class Script:
    """answers: given one after the other, the last one again and again."""

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def next(self) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.loads(content) if content else None
            script.requests.append(Request(self.command, self.path, dict(self.headers), body))
            answer = script.next()
            if answer.lost:
                self.close_connection = True
                return
            sent = answer.content()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)
            self.close_connection = self.close_connection or answer.last

        def log_message(self, *_: object) -> None:
            pass

    for method in ("GET", "POST", "PATCH", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.answer)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield script
    server.shutdown()
    server.server_close()


@pytest.fixture
def client(script: Script) -> Iterator[Client]:
    with Client(script.url, retries=SOON) as client:
        yield client


@pytest.fixture
def answering(script: Script) -> Any:
    """Write the script: answering(Answer(...), problem(...), LOST)."""

    def write(*answers: Answer) -> None:
        script.answers[:] = answers

    write.answer, write.problem, write.lost = Answer, problem, LOST  # type: ignore[attr-defined]
    return write
