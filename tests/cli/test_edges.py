"""Closed and full outputs, addresses and database URLs with a slip: a sentence each, and never a traceback."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpo_service.cli.held_database import holder, sqlite_path
from hpo_service.client import Client
from hpo_service.domain.errors import Invalid
from hpo_service.printable import without_password
from hpo_service.store.engine import database_url, sqlite_file
from hpo_service.store.inode_lock import InodeLock

QUICK = """\
name = "quick"
sampler = { name = "random", seed = 1 }
[search_space]
learning_rate = { type = "float", low = 1e-3, high = 1e-1, log = true }
[objective]
kind = "neural_network"
samples = 100
hidden_layers = 1
epochs = 1
[limits]
trials = 2
"""


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    around = {name: value for name, value in os.environ.items() if not name.startswith("HPO_")}
    hpo = f"{sys.executable} -m hpo_service"
    return subprocess.run(
        ["sh", "-c", command.replace("hpo ", f"{hpo} ", 1)],
        cwd=folder,
        capture_output=True,
        text=True,
        env=around,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize("database", ["", " --database 'sqlite:///t_pct%41/x y.db'"], ids=["default", "escaped"])
def test_a_run_without_standard_input_is_one_like_any_other(tmp_path: Path, database: str) -> None:
    (tmp_path / "study.toml").write_text(QUICK)
    done = shell(f"hpo run study.toml --workers 1 --no-test{database} <&-", tmp_path)
    assert done.returncode == 0, done.stderr
    place = tmp_path / "t_pctA" if database else tmp_path
    assert {"hpo-server.log", "hpo-worker.log"} <= {path.name for path in place.iterdir()}
    assert (place / ("x y.db" if database else "hpo.db")).exists()
    assert not (tmp_path / "t_pct%41").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["--help", "doctor", "doctor --json"])
def test_a_full_disk_behind_the_output_is_said_in_a_line(tmp_path: Path, command: str) -> None:
    done = shell(f"hpo {command} >/dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (1, "hpo: the output cannot be written: No space left on device\n")


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_stop_no_command(tmp_path: Path, closed: str) -> None:
    done = shell(f"hpo --version {closed}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ("http://127.0.0.1:abc", "is not a URL like http://127.0.0.1:8000"),
        ("http://[::1", "is not a URL like"),
        ("http://127.0.0.1:99999999", "is not a URL like"),
        ("http://a b", "is not a URL like"),
        ("http://", "is not a URL like"),
        ("ftp://x", "is not a URL like"),
        ("http://127.0.0.1:0", "has the port 0"),
        ("http://user:secret@127.0.0.1:abc", "***@127.0.0.1"),
        ("http://user:secret@127.0.0.1:1", "***@127.0.0.1:1' holds a user name"),
        ("https://secret@localhost/hpo", "***@localhost/hpo' holds a user name"),
    ],
)
def test_an_address_with_a_slip_is_one_sentence(hpo: Callable[..., Any], server: str, words: str) -> None:
    ended = hpo("study", "list", "--server", server)
    assert (ended.code, len(ended.err.splitlines())) == (1, 1)
    assert words in ended.err
    assert "secret" not in ended.err
    with pytest.raises(Invalid):
        Client(server)


@pytest.mark.slow
def test_a_blank_behind_an_address_does_no_harm(server: str) -> None:
    with Client(f" {server}/ \n") as client:
        assert client.server == server


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:///x.db?mode=memory", "dies with the process"),
        ("sqlite:///x.db?mode=ro", "SQLite takes no options here: leave out ?mode"),
        ("sqlite:///", "SQLite needs a file"),
        ("postgresql://u:se@cret@h/db", "the password in the database URL has an @: there it is written %40"),
        ("postgresql://u:secret@h:abc/db", "its host or its port is none"),
        ("postgresql://u:secret@[::1/db", "its host or its port is none"),
        ("u:secret@h/db", "is no database URL"),
    ],
)
@pytest.mark.parametrize("command", ["db upgrade", "token list", "serve --port 0"])
def test_a_database_url_with_a_slip_is_one_sentence_without_its_password(
    hpo: Callable[..., Any], url: str, words: str, command: str
) -> None:
    ended = hpo(*command.split(), "--database", url)
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert words in ended.err
    assert "cret" not in ended.err


@pytest.mark.slow
def test_doctor_goes_on_where_the_database_is_none(hpo: Callable[..., Any]) -> None:
    for url in ("sqlite:///", "nonsense", "postgresql://u:se@cret@h/db"):
        ended = hpo("doctor", "--database", url)
        assert ended.code == 1
        assert "Traceback" not in ended.err + ended.out
        assert "cret" not in ended.err + ended.out


@pytest.mark.parametrize("url", ["sqlite+aiosqlite:///x.db", "sqlite+pysqlite:///x.db", "sqlite:///x.db"])
def test_sqlite_is_sqlite_whichever_driver_is_named(url: str) -> None:
    assert database_url(url).drivername == "sqlite"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:secret@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:se@cr/et@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:se/cret@h/db", "postgresql://u:***@h/db"),
        ("postgresql://h/db?user=u&password=secret&a=1", "postgresql://h/db?user=u&password=***&a=1"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("sqlite:///a/b.db", "sqlite:///a/b.db"),
    ],
)
def test_no_password_is_shown_however_it_is_written(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize("url", ["sqlite:///a.db", "sqlite:////tmp/a b.db", "sqlite:///a%20%41.db", "sqlite+x:///a.db"])
def test_a_command_and_the_server_mean_the_same_file(url: str) -> None:
    assert sqlite_path(url) == sqlite_file(database_url(url))
    assert sqlite_path("postgresql://h/db") is None


@pytest.mark.slow
def test_who_holds_a_database_is_seen_at_once(tmp_path: Path) -> None:
    path = tmp_path / "hpo.db"
    assert holder(path) is None
    lock = InodeLock(path, 0)
    lock.note("")
    assert holder(path) == os.getpid()
    lock.close()
    assert holder(path) is None


def on_a_terminal(arguments: list[str], answer: str) -> tuple[int, str]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "hpo_service", *arguments], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 65536):
            said += piece
            if b"[y/N]" in said and answer:
                os.write(ours, answer.encode())
                answer = ""
    except OSError:  # Linux says EIO when the other side has gone
        pass
    os.close(ours)
    return process.wait(60), said.decode()


@pytest.mark.slow
def test_a_study_is_deleted_on_a_terminal_only_after_a_yes(
    server: str, client: Client, hpo: Callable[..., Any]
) -> None:
    def names() -> set[str]:
        return {study["name"] for study in client.studies()}

    for name in ("asked", "typed", "elsewhere"):
        client.create({"name": name, "search_space": {"x": {"type": "float", "low": 0, "high": 1}}})
    command = ["study", "delete", "asked", "--server", server]
    for answer in ("\n", "n\n", "\x04"):
        code, said = on_a_terminal(command, answer)
        assert (code, "delete the study asked for good (0 finished trials, 0 running)? [y/N]" in said) == (1, True)
    assert "asked" in names()
    assert on_a_terminal(command, "y\n")[0] == 0
    code, said = on_a_terminal(["study", "delete", "typed", "--yes", "--server", server], "")
    assert (code, "[y/N]" in said) == (0, False)
    assert hpo("study", "delete", "elsewhere", "--server", server).code == 0
    assert {"asked", "typed", "elsewhere"}.isdisjoint(names())
