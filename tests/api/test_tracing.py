"""Spans arrive at a receiver of OTLP over HTTP, under the caller's; without the variables nothing is loaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from hpo_service import tracing
from tests.forked import Fork, Forked
from tests.patience import PATIENCE_SECONDS

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}


class Receiver:
    """What a collector receives."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
                for resource in sent.resource_spans:
                    attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
                    receiver.services.add(attributes["service.name"])
                    receiver.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def of_trace(self) -> dict[str, Any]:
        return {span.name: span for span in self.spans if span.trace_id.hex() == TRACE}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


Serve = Callable[..., tuple[Forked, str]]


@pytest.fixture
def serve(fork: Fork, database_url: str, tmp_path: Path) -> Iterator[Serve]:
    servers: list[Forked] = []

    def start(**variables: str) -> tuple[Forked, str]:
        variables = {"HPO_DATABASE_URL": database_url, "HPO_READING_PROCESS": "false", **variables}
        server = fork("serve", "--no-auth", "--port", "0", "--json", errors=tmp_path / "log", **variables)
        servers.append(server)
        return server, str(json.loads(server.stdout.readline())["url"])

    yield start
    for server in servers:
        server.kill()
        server.communicate()


def post(url: str, path: str, body: Any, **headers: str) -> Any:
    sent = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"Content-Type": "application/json", **headers}, method="POST"
    )
    with urllib.request.urlopen(sent, timeout=PATIENCE_SECONDS) as answer:
        return answer.headers["X-Request-Id"]


@pytest.mark.slow
def test_a_calls_spans_arrive_under_the_callers_trace(serve, receiver):
    server, url = serve(
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, OTEL_SERVICE_NAME="a name of its own", OTEL_BSP_SCHEDULE_DELAY="100"
    )
    post(url, "/v1/studies", {"name": "mine", "search_space": SPACE, "sampler": {"name": "random", "seed": 1}})
    for number in range(2):  # the worker is known at the second one, which is on the fast path
        body = {"worker_id": "w", "request_id": f"r{number}"}
        traceparent = f"00-{TRACE}-{PARENT}-01" if number else "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
        request_id = post(url, "/v1/studies/mine/trials:ask?secret=1", body, traceparent=traceparent)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(receiver.of_trace()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=PATIENCE_SECONDS) == 0

    spans = receiver.of_trace()
    request = spans["POST /v1/studies/{study:segment}/trials:ask"]
    assert request.parent_span_id.hex() == PARENT
    attributes = {each.key: each.value for each in request.attributes}
    assert attributes["http.response.status_code"].int_value == 200
    assert attributes["hpo.request_id"].string_value == request_id
    assert "secret" not in str(request)
    assert spans["draw"].parent_span_id == spans["commit"].parent_span_id == request.span_id
    assert receiver.services == {"a name of its own"}


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_collector_that_is_away_holds_up_neither_calls_nor_the_end(serve):
    server, url = serve(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_BSP_SCHEDULE_DELAY="100")
    post(url, "/v1/studies", {"name": "mine", "search_space": SPACE})
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=PATIENCE_SECONDS) == 0


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318"}, False),
        ({"OTEL_SDK_DISABLED": "TRUE", "OTEL_TRACES_EXPORTER": "otlp"}, False),
    ],
)
def test_the_variables_mean_what_they_mean_elsewhere(environment, wanted):
    assert tracing.is_wanted(environment) is wanted


_LOADED = """
import sys
import hpo_service.api.app, hpo_service.tracing
hpo_service.tracing.configure()
print(hpo_service.tracing.is_on(), any(name.startswith("opentelemetry.sdk") for name in sys.modules))
"""
_NOT_INSTALLED = "import sys; sys.modules['opentelemetry.sdk'] = None; " + (
    "from hpo_service import log_format, tracing; log_format.configure(); tracing.configure(); print(tracing.is_on())"
)


def run(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )


@pytest.mark.slow
def test_without_the_variables_nothing_of_it_is_loaded():
    assert run(_LOADED).stdout == "False False\n"


@pytest.mark.slow
def test_asked_for_and_not_installed_is_one_clear_line_and_no_reason_not_to_serve():
    done = run(_NOT_INSTALLED, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318")
    assert done.stdout == "False\n"
    (line,) = done.stderr.splitlines()
    assert "pip install 'hpo-service[otel]'" in json.loads(line)["event"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [{"OTEL_TRACES_EXPORTER": "zipkin"}, {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}],
)
def test_what_is_not_spoken_here_is_one_clear_line(variables):
    program = _NOT_INSTALLED.replace("sys.modules['opentelemetry.sdk'] = None; ", "")
    done = run(program, **variables)
    assert done.stdout == "False\n"
    (line,) = done.stderr.splitlines()
    assert "is spoken here" in line or "there are otlp, console and none" in line
