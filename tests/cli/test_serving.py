"""`hpo serve` starts with one line, stops when told, and starts again right after it was killed."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from hpo_service.client import NEVER, Client
from tests.patience import PATIENCE_SECONDS


@pytest.fixture
def serve(tmp_path):
    processes = []

    def start(*options, port=0):
        command = [sys.executable, "-m", "hpo_service", "serve", "--no-auth", "--port", str(port), *options]
        process = subprocess.Popen(
            [*command, "--database", f"sqlite:///{tmp_path}/hpo.db"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_one_line_says_where_it_serves(serve):
    line = serve().stdout.readline()

    assert line.startswith("serving sqlite:///")
    url = line.split(" at ")[1].strip()
    with Client(url) as client:
        assert client.version()["api"]


@pytest.mark.slow
def test_told_to_stop_it_sends_home_who_waits_and_ends_with_0(serve):
    process = serve("--json")
    url = json.loads(process.stdout.readline())["url"]
    answers = []
    with Client(url, retries=NEVER) as client:
        client.create({"name": "waiting", "search_space": {"x": {"type": "float", "low": 0.0, "high": 1.0}}})
        client.pause("waiting")
        waiting = threading.Thread(target=lambda: answers.append(client.ask("worker", "waiting", wait_seconds=30)))
        waiting.start()
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        waiting.join(PATIENCE_SECONDS)

    assert answers[0]["trials"] == []
    assert process.wait(timeout=PATIENCE_SECONDS) == 0
    assert "Traceback" not in process.stderr.read()


def test_a_port_that_is_taken_is_one_clear_line(serve):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = serve(port=taken.getsockname()[1])
        out, err = process.communicate(timeout=PATIENCE_SECONDS)

    assert (process.returncode, out) == (1, "")
    assert "--port 0 takes any free port" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_second_server_on_one_file_is_one_clear_line(serve):
    serve().stdout.readline()
    second = serve()
    out, err = second.communicate(timeout=PATIENCE_SECONDS)

    assert (second.returncode, out) == (1, "")
    assert "another server" in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_right_after_kill_9_it_starts_again_on_its_port(serve):
    first = serve("--json")
    url = json.loads(first.stdout.readline())["url"]
    first.kill()
    again = serve("--json", port=int(url.rpartition(":")[2]))

    assert json.loads(again.stdout.readline())["url"] == url
