"""A stand-in for the server: one study in memory, with the faults of a network and a restart; and a real server."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from hpo_service.client import Client, Retries
from hpo_worker.heartbeat import HeartbeatSender
from hpo_worker.loop import Worker
from hpo_worker.outbox import Outbox
from tests.patience import PATIENCE_SECONDS
from tests.worker_loop import real_server as real

Json = dict[str, Any]
Answer = tuple[int, Json]


class StandIn:
    """Gives out `trials` and takes what is told of them.

    fault: called with (verb, how many calls so far) before each call; "drop" loses the answer after the call has
    had its effect, "away" refuses it with 503, None lets it through.
    """

    def __init__(self, trials: list[Json], lease_seconds: float = 60.0) -> None:
        self.lock = threading.Condition()
        self.waiting = list(range(len(trials)))
        self.params = trials
        self.lease_seconds = lease_seconds
        self.running: dict[int, int] = {}
        self.attempts = dict.fromkeys(self.waiting, 0)
        self.reports: dict[int, dict[int, Json]] = {number: {} for number in self.waiting}
        self.told: dict[int, Json] = {}
        self.released: list[tuple[int, int]] = []
        self.gone: set[int] = set()  # with the study, say
        self.answers: dict[str, Json] = {}
        self.calls: list[tuple[str, Any]] = []
        self.stops: dict[int, str] = {}
        self.fault: Callable[[str, int], str | None] = lambda verb, count: None
        self.drain = False
        self.dataset_sha256: str | None = None
        self.study: Json = {
            "name": "s",
            "state": "ACTIVE",
            "sampler": {"name": "random", "seed": 1, "params": {}},
            "pruner": {"name": "none", "params": {}},
            "objective": None,
            "search_space": {},
            "limits": {"trials": len(trials)},
            "narrowing": None,
            "rounds": [{"round": 0, "trials": 0}],
            "test": None,
        }
        self.test: Json | None = None
        self.test_attempt = 0

    def answer(self, verb: str, body: Json) -> Answer:
        with self.lock:
            self.calls.append((verb, body))
            self.lock.notify_all()
            return getattr(self, f"_{verb}")(body)

    def _version(self, body: Json) -> Answer:
        return 200, {"version": "0", "api": "v1"}

    def _study(self, body: Json) -> Answer:
        state = "COMPLETED" if self.finished() else "ACTIVE"
        counts = {"WAITING": 0, "RUNNING": len(self.running), "COMPLETE": len(self.told), "PRUNED": 0, "FAIL": 0}
        return 200, {**self.study, "state": state, "counts": counts}

    def _studies(self, body: Json) -> Answer:
        return 200, {"items": [self._study(body)[1]], "next_page_token": None}

    def finished(self) -> bool:
        return len(self.told) == len(self.params)

    def _ask(self, body: Json) -> Answer:
        if body["request_id"] in self.answers:
            return 200, self.answers[body["request_id"]]
        trials = []
        if self.test is not None and self.study["test"] is None and not self.drain:
            self.test_attempt += 1
            self.study["test"] = {"state": "RUNNING"}
            trials.append({**self.test, "attempt": self.test_attempt, "purpose": "test", "lease": self._lease()})
        count = 0 if trials or self.drain else body.get("count", 1)
        for _ in range(min(count, len(self.waiting))):
            number = self.waiting.pop(0)
            self.attempts[number] += 1
            self.running[number] = self.attempts[number]
            self.reports[number] = {}
            trials.append(
                {
                    "study": "s",
                    "number": number,
                    "attempt": self.attempts[number],
                    "params": self.params[number],
                    "seed": number,
                    "objective": self.study["objective"],
                    "reports": [],
                    "lease": self._lease(),
                }
            )
        answer: Json = {"trials": trials, "study_state": "COMPLETED" if self.finished() else "ACTIVE"}
        if self.drain:
            answer["drain"] = True
        if trials:
            self.answers[body["request_id"]] = answer
        return 200, answer

    def _lease(self) -> Json:
        return {"expires_at": "2026-01-01T00:00:00Z", "duration_seconds": self.lease_seconds}

    def _batch(self, body: Json) -> Answer:
        results = []
        for call in body["calls"]:
            status, answered = getattr(self, f"_trial_{call['call']}")(call["number"], call)
            results.append({"status": status, "body": answered})
        return 200 if all(each["status"] == 200 for each in results) else 207, {"results": results}

    def _refusal(self, number: int, attempt: int) -> Answer | None:
        if number in self.told:
            return 409, {"code": "trial_finished", "detail": "finished", "retryable": False}
        if self.running.get(number) != attempt:
            return 409, {"code": "lease_lost", "detail": "lost", "retryable": False}
        return None

    def _trial_report(self, number: int, call: Json) -> Answer:
        if (refusal := self._refusal(number, call["attempt"])) is not None:
            return refusal
        for report in call.get("reports", []):
            self.reports[number][report["step"]] = report
        return 200, {
            "should_stop": number in self.stops,
            "reason": self.stops.get(number),
            "lease_expires_at": "2026-01-01T00:00:00Z",
            "study_state": "ACTIVE",
        }

    _trial_heartbeat = _trial_report

    def _heartbeat(self, body: Json) -> Answer:
        sha256 = body["dataset_sha256"]
        if self.dataset_sha256 not in (None, sha256):
            return 409, {"code": "study_state", "detail": f"{self.dataset_sha256}, not {sha256}", "retryable": False}
        self.dataset_sha256 = sha256
        return self._trial_heartbeat(body["number"], body)

    def _trial_tell(self, number: int, call: Json) -> Answer:
        if number in self.told and self.told[number]["attempt"] == call["attempt"]:
            return 200, {"number": number}
        if (refusal := self._refusal(number, call["attempt"])) is not None:
            return refusal
        if call.get("values") is not None and len(call["values"]) != 1:
            return 422, {"code": "invalid", "detail": "one direction, one value", "errors": []}
        del self.running[number]
        self.told[number] = call
        return 200, {"number": number}

    def _release(self, body: Json) -> Answer:
        number, attempt = body["number"], body["attempt"]
        if number in self.gone:
            return 404, {"code": "not_found", "detail": "gone", "retryable": False}
        if self.running.get(number) == attempt:
            del self.running[number]
            self.waiting.insert(0, number)
            self.released.append((number, attempt))
        return 200, {"number": number}

    def _trial_release(self, number: int, call: Json) -> Answer:
        return self._release({**call, "number": number})

    def _test_heartbeat(self, body: Json) -> Answer:
        return 200, {"should_stop": False, "reason": None}

    def _test_tell(self, body: Json) -> Answer:
        self.study["test"] = body
        return 200, {"state": body["state"]}

    def _test_release(self, body: Json) -> Answer:
        self.study["test"] = None
        return 200, {}

    def count(self, verb: str) -> int:
        return sum(each == verb for each, _ in self.calls)

    def wait_for(self, happened: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
        with self.lock:
            assert self.lock.wait_for(happened, seconds), self.calls[-5:]


def _verb(path: str, body: Json) -> tuple[str, Json]:
    place, _, verb = path.partition("?")[0].rpartition(":")
    if not place:
        return {"version": "version", "studies": "studies"}.get(path.partition("?")[0].split("/")[-1], "study"), body
    if verb in ("release", "heartbeat") and "/trials/" in place:
        return verb, {**body, "number": int(place.rsplit("/", 1)[1])}
    return f"test_{verb}" if place.endswith("/test") else verb, body


@contextmanager
def serving(stand_in: StandIn, port: int = 0) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            verb, body = _verb(self.path, json.loads(self.rfile.read(length) or b"{}"))
            fault = stand_in.fault(verb, stand_in.count(verb))
            if fault == "away":
                stand_in.calls.append(("refused", verb))
                self.send(503, {"code": "unavailable", "detail": "away", "retryable": True})
                return
            status, answer = stand_in.answer(verb, body)
            if fault == "drop":
                self.close_connection = True
                return
            if verb == "ask" and not answer["trials"] and not answer.get("drain"):
                time.sleep(min(body["wait_seconds"], 0.05))
            self.send(status, answer)

        do_GET = do_POST  # noqa: N815 (the name that http.server looks for)

        def send(self, status: int, answer: Json) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn([{"x": number / 10} for number in range(4)])


@pytest.fixture
def server(stand_in: StandIn) -> Iterator[str]:
    with serving(stand_in) as url:
        yield url


# A real server, and commands of the house beside it


@pytest.fixture(scope="module")
def real_server(fork, tmp_path_factory):
    server = real.RealServer(fork, tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def hpo(real_server):
    with Client(real_server.url) as client:
        yield client


@pytest.fixture
def go_on(tmp_path):
    return tmp_path / "go_on"


@pytest.fixture
def start(tmp_path, real_server, go_on):
    """Start a command of the house in the background, with OBJECTIVES at hand."""
    (tmp_path / "objectives_for_real.py").write_text(textwrap.dedent(real.OBJECTIVES))
    started = []

    def run(*command: str):
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env={
                **os.environ,
                "PYTHONPATH": str(tmp_path),
                "HPO_SERVER": real_server.url,
                "GO_ON": str(go_on),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate()


SOON = Retries(initial=0.01, longest=0.05, deadline=5)


@pytest.fixture
def work(server):
    """Run a worker with this objective until the study is over; return its outcome_counts."""

    def run(objective, studies=("s",), retries=SOON):
        outbox = Outbox()
        heartbeat = HeartbeatSender(Client(server, retries=retries), outbox)
        heartbeat.start()
        worker = Worker(
            Client(server, retries=SOON),
            heartbeat,
            outbox,
            objective,
            worker_id="me",
            studies=studies,
            until_done=True,
            rng=random.Random(1),
        )
        worker.run()
        return dict(worker.outcome_counts)

    return run
