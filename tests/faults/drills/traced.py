"""strace on a running server: what it wrote and synced and answered, or calls of it made to fail."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from drills.loaded_study import NotHere
from drills.served import Server

_WRITES = ("pwrite64", "ftruncate")
_SYNCS = ("fsync", "fdatasync")
_SENDS = ("write", "sendto", "sendmsg", "writev")
_LINE = re.compile(r"^(?P<thread>\d+) +(?P<call>\w+)\(\d+<(?P<file>[^>]*)>(?P<rest>.*)$")
_RESUMED = re.compile(r"^(?P<thread>\d+) +<\.\.\. (?P<call>\w+) resumed>(?P<rest>.*)$")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


@contextmanager
def strace(server: Server, *options: str) -> Iterator[None]:
    """Attach to the server, and let go of it at the end."""
    if shutil.which("strace") is None:
        raise NotHere("strace is not installed")
    command = ["strace", "-f", "-p", str(server.pid), *options]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _wait_until_attached(process, server.pid)
        yield
    finally:
        # SIGINT makes it let go; a second one would kill it with the server stopped.
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def _wait_until_attached(process: subprocess.Popen[bytes], pid: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if process.poll() is not None:
            assert process.stderr is not None
            raise NotHere(f"strace may not attach: {process.stderr.read().decode().strip()[-200:]}")
        threads = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
        if all(_is_traced(pid, thread) for thread in threads):
            return
        time.sleep(0.01)
    raise NotHere("strace did not attach within 20 seconds")


def _is_traced(pid: int, thread: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/task/{thread}/status").read_text()
    except OSError:
        return True  # a thread that has just ended
    return "TracerPid:\t0\n" not in status


@contextmanager
def traced_writes(server: Server, log: Path) -> Iterator[None]:
    """Record every write, sync and answer of the server with its bytes."""
    calls = ",".join((*_WRITES, *_SYNCS, *_SENDS))
    with strace(server, "-o", str(log), "-y", "-xx", "-s", "20000", "-e", f"trace={calls}"):
        yield


@dataclass(frozen=True)
class Written:
    """Bytes at an offset of a file; data None: the file ends here from now on."""

    file: str
    offset: int
    data: bytes | None


@dataclass(frozen=True)
class SyncBegan:
    thread: str
    file: str


@dataclass(frozen=True)
class SyncEnded:
    thread: str
    file: str


@dataclass(frozen=True)
class Sent:
    data: bytes


Event = Written | SyncBegan | SyncEnded | Sent


def events_of(log: Path, folder: Path) -> Iterator[Event]:
    """What happened to the files of this folder and what was sent, in order."""
    for line in log.read_text(errors="replace").splitlines():
        if (resumed := _RESUMED.match(line)) is not None:
            if resumed["call"] in _SYNCS and resumed["rest"].endswith("= 0"):
                yield SyncEnded(resumed["thread"], "")
            continue
        found = _LINE.match(line)
        if found is None:
            continue
        call, file, rest = found["call"], _path(found["file"]), found["rest"]
        if call in _SENDS:
            if file.startswith(("TCP", "socket")):
                yield Sent(b"".join(_bytes(match) for match in _STRING.finditer(rest)))
        elif not file.startswith(str(folder)):
            continue
        elif call == "pwrite64":
            string = _STRING.search(rest)
            assert string is not None, line[-80:]
            assert string[2] is None, "strace cut a write short"
            offset = re.match(r", \d+, (\d+)", rest[string.end() :])
            assert offset is not None, line[-80:]
            yield Written(file, int(offset[1]), _bytes(string))
        elif call == "ftruncate":
            length = re.match(r", (\d+)", rest)
            assert length is not None
            yield Written(file, int(length[1]), None)
        else:
            yield SyncBegan(found["thread"], file)
            if rest.endswith("= 0"):
                yield SyncEnded(found["thread"], file)


def _path(shown: str) -> str:
    return bytes.fromhex(shown.replace("\\x", "")).decode() if shown.startswith("\\x") else shown


def _bytes(match: re.Match[str]) -> bytes:
    return bytes.fromhex(match[1].replace("\\x", ""))
