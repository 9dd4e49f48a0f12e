"""One server a SQLite file, whatever name the file is reached by; and who may only read it keeps no server out."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hpo_service.domain.errors import Unavailable
from hpo_service.store import Database
from hpo_service.store.inode_lock import DatabaseInUse

SERVE = """
from hpo_service.store import Database
database = Database({url!r})
print("it is there", flush=True)
import sys; sys.stdin.read()
"""
# What an earlier version's server did to keep others out.
EARLIER_VERSION = """
import fcntl, os, sys
file = open({path!r} + ".lock", "a+"); fcntl.flock(file, fcntl.LOCK_EX); file.truncate(0); file.write(str(os.getpid()))
file.flush(); print("it is there", flush=True); sys.stdin.read()
"""
READER_OF_THE_LOCK_FILE = """
import fcntl, sys
file = open({path!r} + ".lock"); fcntl.flock(file, fcntl.LOCK_EX); print("it is there", flush=True); sys.stdin.read()
"""
READER_OF_THE_DATABASE = """
import fcntl, sys
file = open({path!r}); fcntl.flock(file, fcntl.LOCK_EX); fcntl.lockf(file, fcntl.LOCK_SH)
print("it is there", flush=True); sys.stdin.read()
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """A process that does this, from when it says that it is there until the end of the test."""
    running: list[subprocess.Popen[str]] = []

    def begin(program: str, **values: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program.format(**values)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        assert "it is there\n" in iter(process.stdout.readline, "")  # behind what it may have to warn of
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def symlink(file: Path) -> Path:
    (file.parent / "other.db").symlink_to(file)
    return file.parent / "other.db"


def symlink_to_the_folder(file: Path) -> Path:
    link = file.parent.parent / "link"
    link.symlink_to(file.parent)
    return link / file.name


def hard_link(file: Path) -> Path:
    (file.parent / "other.db").hardlink_to(file)
    return file.parent / "other.db"


def lock_file_deleted(file: Path) -> Path:
    Path(f"{file}.lock").unlink()
    return file


def relative(file: Path) -> Path:
    return Path(os.path.relpath(file))


def descriptor(file: Path) -> Path:
    # Opened by this process, which has no SQLite on it; open until the process ends.
    return Path(f"/proc/self/fd/{os.open(file, os.O_RDWR)}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [symlink, symlink_to_the_folder, hard_link, lock_file_deleted, relative, descriptor],
    ids=lambda f: f.__name__,
)
def test_a_second_server_is_refused_whatever_name_it_reaches_the_file_by(
    way: Callable[[Path], Path], tmp_path: Path, start: Start
) -> None:
    file = tmp_path / "record" / "hpo.db"
    first = start(SERVE, url=f"sqlite:///{file}")
    with pytest.raises(DatabaseInUse, match="another server"):
        Database(f"sqlite:///{way(file)}")
    first.kill()
    first.wait()
    Database(f"sqlite:///{file}").close()


@pytest.mark.slow
def test_a_server_of_an_earlier_version_is_noticed_and_notices(tmp_path: Path, start: Start) -> None:
    file = tmp_path / "hpo.db"
    earlier = start(EARLIER_VERSION, path=str(file))
    with pytest.raises(DatabaseInUse, match=f"process {earlier.pid}"):
        Database(f"sqlite:///{file}")
    earlier.kill()
    earlier.wait()
    with closing(Database(f"sqlite:///{file}")), open(f"{file}.lock") as lock_file, pytest.raises(BlockingIOError):
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.slow
@pytest.mark.parametrize("reader", [READER_OF_THE_LOCK_FILE, READER_OF_THE_DATABASE], ids=["lock file", "database"])
def test_who_may_only_read_keeps_no_server_out_and_lets_no_second_one_in(
    reader: str, tmp_path: Path, start: Start
) -> None:
    file = tmp_path / "hpo.db"
    Database(f"sqlite:///{file}").close()
    start(reader, path=str(file))
    start(SERVE, url=f"sqlite:///{file}")
    with pytest.raises(DatabaseInUse):
        Database(f"sqlite:///{file}")


def test_what_a_first_start_makes_is_for_the_owner_and_the_group(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with closing(Database(f"sqlite:///{tmp_path}/hpo.db")):
            modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"hpo.db": 0o640, "hpo.db-wal": 0o640, "hpo.db-shm": 0o640, "hpo.db.lock": 0o600}


def test_a_lock_file_that_others_could_open_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "hpo.db.lock").touch(0o666)
    Database(f"sqlite:///{tmp_path}/hpo.db").close()
    assert (tmp_path / "hpo.db.lock").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_a_second_opening_in_one_process_leaves_sqlites_own_locks_alone(tmp_path: Path) -> None:
    file = tmp_path / "hpo.db"
    with closing(Database(f"sqlite:///{file}")):
        assert shared_lock_holder(file) == os.getpid()
        with pytest.raises(DatabaseInUse):
            Database(f"sqlite:///{file}")
        assert shared_lock_holder(file) == os.getpid()


def shared_lock_holder(file: Path) -> int:
    """The process that holds SQLite's shared lock, as another process sees it."""
    layout = "hhqqi4x"
    look = (
        f"import fcntl, os, struct; file = os.open({str(file)!r}, os.O_RDWR);"
        f"wanted = struct.pack({layout!r}, fcntl.F_WRLCK, 0, {2**30 + 2}, 510, 0);"
        f"print(struct.unpack({layout!r}, fcntl.fcntl(file, fcntl.F_GETLK, wanted))[4])"
    )
    assert struct.calcsize(layout) == 32
    return int(subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout)


def killed(file: Path, start: Start) -> None:
    """Leave a database with a log, as a server does that was killed."""
    server = start(SERVE, url=f"sqlite:///{file}")
    server.kill()
    server.wait()
    assert Path(f"{file}-wal").exists()
    if not Path(f"{file}-wal").stat().st_size:
        Path(f"{file}-wal").write_bytes(b"\0" * 32)


@pytest.mark.slow
@pytest.mark.parametrize("leave", ["nothing", "an empty file"])
def test_no_empty_record_is_begun_beside_the_log_of_another(leave: str, tmp_path: Path, start: Start) -> None:
    file = tmp_path / "hpo.db"
    killed(file, start)
    file.rename(tmp_path / "away.db")
    if leave == "an empty file":
        file.touch()
    with pytest.raises(Unavailable, match="is there, but not the database that it is the log of"):
        Database(f"sqlite:///{file}")
    assert file.exists() is (leave == "an empty file")
    (tmp_path / "away.db").rename(file)
    Database(f"sqlite:///{file}").close()


@pytest.mark.slow
def test_a_log_is_not_played_into_a_backup_that_was_put_in_the_databases_place(tmp_path: Path, start: Start) -> None:
    file = tmp_path / "hpo.db"
    Database(f"sqlite:///{file}").close()
    shutil.copy(file, tmp_path / "backup.db")
    killed(file, start)
    shutil.copytree(tmp_path, tmp_path.parent / "copied")
    (tmp_path / "backup.db").rename(file)
    with pytest.raises(Unavailable, match="is the log of another file"):
        Database(f"sqlite:///{file}")
    for name in ("hpo.db-wal", "hpo.db-shm"):
        (tmp_path / name).unlink()
    Database(f"sqlite:///{file}").close()
    # What was copied together belongs together.
    Database(f"sqlite:///{tmp_path.parent}/copied/hpo.db").close()
