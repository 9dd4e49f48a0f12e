"""A server, or whoever has a key to it, sends texts that a terminal would obey: no command passes them on."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import sqlite3
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from hpo_service.cli.live_view import LiveDisplay, Snapshot
from hpo_service.printable import printable, printable_json
from tests.cli.canned import LEARNING_RATE, a_round, a_study, a_trial
from tests.patience import PATIENCE_SECONDS

A_TIME = "2026-01-01T00:00:00.000000Z"
FORGED = "study forged is COMPLETED"
# a window's title, a colour in two bytes and in one, right to left, isolates, nothing wide, forged lines, markup, maths
HOSTILE = (
    "\x1b]0;owned\x07\x1b[31;99m\x9b31m\u202egnp.exe\u2066\u2069\u200b\ufeff\u2028\x00\x7f"
    f"\r\n{FORGED}\n[red][/][link=http://x]y[/link] $\\frac$ \U000e0041"
)
CHOICES = {"type": "categorical", "choices": ["a", HOSTILE], "ordered": False, "when": None}
KEPT = {"type", "state", "directions", "kind", "created_at"}  # words by which a client goes


def hostile(value: Any, key: str = "") -> Any:
    """The same answer with the hostile text in every text that a person may have given."""
    if isinstance(value, dict):
        return {name: hostile(one, name) for name, one in value.items()}
    if isinstance(value, list) and key not in KEPT:
        return [hostile(one, key) for one in value]
    return HOSTILE if isinstance(value, str) and key not in KEPT else value


def study(**fields: Any) -> dict[str, Any]:
    space = {"learning_rate": LEARNING_RATE, HOSTILE: CHOICES}
    best = {"number": 1, "params": {HOSTILE: HOSTILE, "learning_rate": 0.1}, "values": [0.5], "attempt": 1}
    rounds = [{**a_round(number), "search_space": space} for number in range(2)]
    test = {"state": "FAIL", "reason": HOSTILE, "ensemble": 1}
    counts = {"WAITING": 0, "RUNNING": 1, "COMPLETE": 1, "PRUNED": 0, "FAIL": 1}
    shown = {"search_space": space, "best": best, "rounds": rounds, "test": test, "counts": counts, "objective": None}
    figure = {"kind": "values", "claim": HOSTILE, "source": HOSTILE, "expected": [_expected()]}
    return hostile(a_study(**{**shown, "metadata": {"figure": figure}, **fields}))


def _expected() -> dict[str, Any]:
    return {"measure": HOSTILE, "reference": [0.5]}


def trial(number: int, state: str) -> dict[str, Any]:
    given = a_trial(number, 0.5, reports=3, state=state, reason=HOSTILE, metrics={HOSTILE: HOSTILE})
    return hostile({**given, "params": {"learning_rate": 0.1, HOSTILE: HOSTILE}})


def answer(method: str, path: str) -> tuple[int, Any]:
    if "refused" in path:
        return 409, {"code": "study_state", "detail": HOSTILE, "title": HOSTILE}
    if "broken" in path:
        return 422, {"code": "invalid", "errors": [{"pointer": f"/{HOSTILE}", "detail": HOSTILE}]}
    if "odd" in path:
        return 500, {"title": HOSTILE}
    if path == "/version":
        return 200, {"version": HOSTILE, "api": HOSTILE}
    if path.endswith("/importances"):
        return 200, {"importances": {HOSTILE: 0.9, "learning_rate": 0.1}}
    if path.endswith("/advice"):
        item = {"code": "edge", "parameter": HOSTILE, "detail": HOSTILE, "evidence": {HOSTILE: HOSTILE}}
        return 200, {"items": [{**item, "suggestion": {"parameter": HOSTILE, "high": 1.0}}]}
    if path.endswith("/attempts"):
        attempt = {"attempt": 1, "worker_id": HOSTILE, "started_at": A_TIME, "ended_at": None, "end": HOSTILE}
        return 200, {"items": [attempt], "next_page_token": None}
    if path == "/v1/workers":
        worker = {"worker_id": HOSTILE, "last_seen_at": A_TIME, "trials": 1, "draining": False}
        return 200, {"items": [{**worker, "labels": {"gpu": HOSTILE}, "told": 2, "failed": 1}], "next_page_token": None}
    if path.endswith("/trials/1"):
        return 200, {**trial(1, "COMPLETE"), "sampler": HOSTILE, "sampler_reason": HOSTILE, "artifacts": [HOSTILE]}
    if path.endswith("/trials"):
        return 200, {"items": [trial(0, "FAIL"), trial(1, "COMPLETE")], "next_page_token": None}
    if path == "/v1/studies" and method == "GET":
        return 200, {"items": [study()], "next_page_token": None}
    if path.endswith(":narrow"):
        return 201, {**study()["rounds"][1], "from_trials": [1]}
    return 200, study()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        if path.endswith(":export"):
            cell = HOSTILE.replace('"', '""')
            line = json.dumps({"reason": HOSTILE}, ensure_ascii=False)
            text = line if "jsonl" in self.path else f'number\r\n"{cell}"'
            self._send(200, f"{text}\r\n".encode())
            return
        status, body = answer(self.command, path)
        self._send(status, json.dumps(body).encode())

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815 (the names that http.server looks for)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hostile_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def assert_harmless(output: str) -> None:
    assert "\x1b[31;99m" not in output
    ours = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)  # what rich draws with, and nobody else
    odd = {character for character in ours if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs")}
    assert odd <= set("\r\n"), odd
    assert not re.search(rf"^\s*{FORGED}", ours, re.MULTILINE), ours


COMMANDS = (
    "study list",
    "study show mine",
    "study pause mine",
    "study resume mine",
    "study stop mine",
    "study cancel mine",
    "study narrow mine",
    "study limits mine --trials 5",
    "study test mine",
    "study delete mine",
    "study advice mine",
    "trial list mine",
    "trial show mine 1",
    "workers",
    "watch mine",
    "doctor",
    "study show refused",
    "study show broken",
    "study show odd",
    "watch refused",
    "plot refused -o x.png",
    "agent mine -- true {unknown}",
)
WITHOUT_A_TEXT = ("study delete mine", "study test mine")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_passes_a_text_on_that_a_terminal_would_obey(hpo: Any, hostile_server: str, command: str) -> None:
    words = command.split(" -- ")
    after = ["--", *words[1].split()] if len(words) > 1 else []
    ended = hpo(*words[0].split(), "--server", hostile_server, *after)
    assert_harmless(ended.out)
    assert_harmless(ended.err)
    shown = ended.out + ended.err
    assert command in WITHOUT_A_TEXT or "\\x1b]0;owned\\x07" in shown, "it was to be shown, written out"


JSON = ("study list", "study show mine", "study limits mine --trials 5", "study narrow mine", "watch mine", "doctor")


@pytest.mark.slow
@pytest.mark.parametrize("command", JSON)
def test_json_says_the_same_in_characters_that_a_terminal_only_shows(
    hpo: Any, hostile_server: str, command: str
) -> None:
    ended = hpo(*command.split(), "--server", hostile_server, "--json")
    assert_harmless(ended.out)
    assert ended.out.count("\\u001b]0;owned\\u0007") > 0
    assert HOSTILE in _texts(json.loads(ended.out)) or command == "doctor"


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for name, one in value.items() for text in (name, *_texts(one))]
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    return [value] if isinstance(value, str) else []


def test_a_study_file_and_its_name_come_from_elsewhere_too(hpo: Any, hostile_server: str, tmp_path: Any) -> None:
    file = tmp_path / f"{HOSTILE.replace('/', '').replace(chr(0), '')}.json"
    file.write_text(json.dumps({"name": HOSTILE, HOSTILE: HOSTILE, "search_space": {HOSTILE: {"type": HOSTILE}}}))
    for command in ("run", "study create"):
        ended = hpo(*command.split(), str(file))
        assert ended.code == 1
        assert_harmless(ended.err)
        assert "\\x1b]0;owned" in ended.err
    ended = hpo("study", "create", "--server", f"{hostile_server}/broken", str(_good_file(tmp_path)))
    assert_harmless(ended.err)
    assert "\\x1b]0;owned" in ended.err


def _good_file(folder: Any) -> Any:
    file = folder / "good.json"
    file.write_text(json.dumps({"name": "good", "search_space": {"x": {"type": "float", "low": 0, "high": 1}}}))
    return file


WRONG_LINES = (
    ("study", HOSTILE),
    (HOSTILE,),
    (f"--{HOSTILE}",),
    ("study", "show", "mine", f"--{HOSTILE}"),
    ("workers", "drain", HOSTILE),
    ("plot", "mine", "--kind", HOSTILE),
    ("token", "create", "--scope", HOSTILE),
)


@pytest.mark.parametrize("line", WRONG_LINES, ids=lambda line: " ".join(line).replace(HOSTILE, "…"))
def test_what_is_wrong_with_a_command_line_is_said_in_letters(hpo: Any, line: tuple[str, ...]) -> None:
    """It may hold the name of a file, or what xargs has read."""
    ended = hpo(*line)
    assert ended.code == 2
    assert_harmless(ended.out)
    assert_harmless(ended.err)
    assert "\\x1b]0;owned\\x07" in re.sub(r"[\s│]*\n[\s│]*", "", ended.err), "it was to be shown, written out"


def test_a_host_that_cannot_be_named_is_one_sentence(hpo: Any) -> None:
    ended = hpo("serve", "--host", HOSTILE)
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert_harmless(ended.err)


@pytest.mark.slow
def test_labels_of_keys_are_shown_in_letters_also_where_another_program_wrote_them(hpo: Any, tmp_path: Any) -> None:
    database = ("--database", f"sqlite:///{tmp_path}/hpo.db")
    refused = hpo("token", "create", "--scope", "read", "--label", HOSTILE.replace("\0", ""), *database)
    assert refused.code == 2
    assert_harmless(refused.err)
    assert hpo("token", "create", "--scope", "read", "--label", "one", *database).code == 0
    with sqlite3.connect(tmp_path / "hpo.db") as connection:
        connection.execute("UPDATE hpo_keys SET label = ?", (HOSTILE,))
    listed = hpo("token", "list", *database)
    assert_harmless(listed.out)
    assert "\\x1b]0;owned\\x07" in listed.out


@pytest.mark.slow
@pytest.mark.parametrize("form", ["svg", "png"])
def test_a_picture_is_drawn_and_is_well_formed(hpo: Any, hostile_server: str, tmp_path: Any, form: str) -> None:
    """Control characters make an SVG that no program reads; $ in a name is a dollar sign and no formula."""
    ended = hpo("plot", "mine", "--server", hostile_server, "-o", str(tmp_path / f"x.{form}"))
    assert ended.code == 0, ended.err
    assert_harmless(ended.out + ended.err)
    if form == "svg":
        ElementTree.parse(tmp_path / "x.svg")


ON_A_TERMINAL = (
    "study show mine",
    "study list --json",
    "study export mine",
    "study export mine --format jsonl",
    "watch mine",
    "study show refused",
)


@pytest.mark.slow
@pytest.mark.parametrize("command", ON_A_TERMINAL)
def test_on_a_terminal_neither(hostile_server: str, command: str) -> None:
    code, output = on_a_terminal(command.split(), {"HPO_SERVER": hostile_server})
    assert code == (1 if "refused" in command else 0), output
    assert_harmless(output)
    assert "owned" in output


def on_a_terminal(arguments: list[str], environment: dict[str, str]) -> tuple[int, str]:
    ours, theirs = pty.openpty()
    around = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "hpo_service", *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=around
    )
    os.close(theirs)
    said = io.BytesIO()
    try:
        while piece := os.read(ours, 65536):
            said.write(piece)
    except OSError:  # Linux says EIO when the other side has gone
        pass
    os.close(ours)
    return process.wait(timeout=PATIENCE_SECONDS), said.getvalue().decode()


@pytest.mark.slow
def test_into_a_pipe_an_export_goes_as_it_is(hostile_server: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hpo_service", "study", "export", "mine", "--server", hostile_server],
        capture_output=True,
        check=True,
    )
    assert HOSTILE.encode() in done.stdout


@pytest.mark.parametrize("terminal", [True, False])
def test_the_live_view_shows_a_running_worker_and_its_line_in_letters(terminal: bool) -> None:
    target = io.StringIO()
    console = Console(file=target, force_terminal=terminal, width=300)
    with LiveDisplay("http://here", console) as display:
        display.say(HOSTILE)
        running = {**trial(0, "RUNNING"), "worker_id": "w [/] [blink]" + HOSTILE}
        display.show(Snapshot(study(state="ACTIVE"), [running], 1.0, 2.0))
    assert_harmless(target.getvalue())
    assert "owned" in target.getvalue()


def test_the_log_of_a_worker_and_of_the_server_is_harmless_on_a_terminal() -> None:
    program = (
        "import sys, structlog\n"
        "from hpo_service import log_format\n"
        "log_format.configure(worker_id=sys.argv[1])\n"
        "log = structlog.get_logger()\n"
        "log.warning('refused', detail=sys.argv[1], many=[sys.argv[1]])\n"
        "log.warning(sys.argv[1])\n"
        "try:\n    raise ValueError(sys.argv[1])\n"
        "except ValueError:\n    log.exception('failed')\n"
    )
    ours, theirs = pty.openpty()
    text = HOSTILE.replace("\0", "").replace(FORGED, "forged")  # a message of several lines is a traceback's business
    done = subprocess.run([sys.executable, "-c", program, text], stderr=theirs, check=True)
    os.close(theirs)
    assert done.returncode == 0
    said = b""
    try:
        while piece := os.read(ours, 65536):
            said += piece
    except OSError:
        pass
    os.close(ours)
    assert_harmless(said.decode())
    assert said.decode().count("owned") >= 4


def test_letters_of_every_script_stay_as_they_are() -> None:
    for text in ("naïve Größe", "学習率 0.1", "скорость", "שלום", "مرحبا", "e\u0301", "1\u00a0000", "🙂", "C:\\new"):
        assert printable(text) == text
        assert json.loads(printable_json(text)) == text


@pytest.mark.parametrize("text", [HOSTILE, "\ud800", "\U000e0041", "\x7f", '"\\\n', ""])
def test_json_with_escapes_means_the_same(text: str) -> None:
    written = printable_json({text: [text]}, indent=2)
    assert json.loads(written) == {text: [text]}
    assert_harmless(written)
