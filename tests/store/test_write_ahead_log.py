"""SQLite's log that a reader keeps from being cut: told of with the process that reads, and cut when it has gone."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpo_service.cli import doctor
from hpo_service.store import write_ahead_log
from hpo_service.store.database import Database
from tests.patience import PATIENCE_SECONDS

MIB = 2**20


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large, in tests: a log of 2 MiB, and four times of a database of 1."""
    monkeypatch.setattr(write_ahead_log, "LARGE", MIB)
    monkeypatch.setattr(write_ahead_log, "LARGE_FOR_SMALL", 2 * MIB)
    monkeypatch.setattr(write_ahead_log, "TIMES_THE_DATABASE", 1)


@pytest.fixture(params=["plain", "symlink"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    file = tmp_path / "hpo.db"
    if request.param == "symlink":
        (tmp_path / "disk").mkdir()
        file.symlink_to(tmp_path / "disk" / "kept.db")
    return file


@pytest.fixture
def database(file: Path, small_bounds: None) -> Iterator[Database]:
    opened = Database(f"sqlite:///{file}")
    opened.read(lambda record: None)  # a connection that stays open: the last one to close would cut the log itself
    yield opened
    opened.close()


@pytest.fixture
def reader(file: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts another process that looks at the database as it is now, and goes on looking."""
    processes: list[subprocess.Popen[str]] = []
    program = f"""
        import sqlite3
        connection = sqlite3.connect({str(file)!r}, isolation_level=None)
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM hpo_studies").fetchone()
        print("reading", flush=True)
        input()
    """

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def write_much(file: Path, mebibytes: int = 4) -> None:
    """Write the same pages again and again, which a log without a reader would take in a fifth of the room."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("CREATE TABLE IF NOT EXISTS ballast (n INTEGER PRIMARY KEY, bytes BLOB)")
    for _ in range(mebibytes * 4):
        connection.execute("INSERT OR REPLACE INTO ballast VALUES (1, ?)", (os.urandom(MIB // 4),))
    connection.close()


def test_a_log_that_a_reader_keeps_from_being_cut_makes_the_server_unready_until_it_has_gone(database, file, reader):
    reading = reader()
    write_much(file)
    assert write_ahead_log.size(write_ahead_log.log_of(file)) > 2 * MIB

    (fault,) = database.faults()
    assert ".db-wal has grown to" in fault
    assert "hpo doctor says which process" in fault

    reading.communicate("", timeout=PATIENCE_SECONDS)
    assert database.faults() == []
    assert write_ahead_log.size(write_ahead_log.log_of(file)) == 0


def test_a_large_log_that_nobody_reads_is_cut_by_the_reapers_round(database, file):
    held = sqlite3.connect(file, isolation_level=None)
    held.execute("BEGIN")
    held.execute("SELECT count(*) FROM hpo_studies").fetchone()
    write_much(file)
    held.close()
    assert write_ahead_log.size(write_ahead_log.log_of(file)) > MIB  # the file keeps its size

    database.cut_log()

    assert write_ahead_log.size(write_ahead_log.log_of(file)) == 0
    assert database.faults() == []


def test_the_log_is_cut_while_others_write(database, file):
    """A writer in the middle of a transaction is waited for by nobody: the next round cuts it."""
    write_much(file, 1)
    log = write_ahead_log.log_of(file)
    with open(log, "ab") as longer:  # what a log has that was larger once
        longer.write(bytes(3 * MIB))
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    database.cut_log()
    assert write_ahead_log.size(log) > MIB
    other.execute("ROLLBACK")
    other.close()
    database.cut_log()
    assert write_ahead_log.size(log) == 0


@pytest.mark.slow
def test_the_doctor_says_which_process_reads_and_that_it_is_bad(file, small_bounds, reader):
    opened = Database(f"sqlite:///{file}")
    opened.close()
    keeper = sqlite3.connect(file, isolation_level=None)  # else the last one to close would cut the log
    keeper.execute("PRAGMA journal_mode=WAL")
    reading = reader()
    write_much(file)
    keeper.close()

    (found,) = doctor._write_ahead_log(f"sqlite:///{file}")

    assert found.state == doctor.BAD
    assert f"process {reading.pid} (" in found.detail
    assert "End that reading" in found.detail

    reading.kill()
    reading.communicate()
    (found,) = doctor._write_ahead_log(f"sqlite:///{file}")
    assert found.state == doctor.NOTE
    assert "nobody reads now" in found.detail


def test_a_small_log_is_fine(file, database):
    (found,) = doctor._write_ahead_log(f"sqlite:///{file}")
    assert found.state == doctor.OK
