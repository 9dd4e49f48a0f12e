"""Drills with strangers who send all they can: the server stays small, and goes on answering everybody else."""

from __future__ import annotations

import contextlib
import http.client
import json
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drills.loaded_study import LoadedStudy, Outcome, Place
from drills.served import Server

_PROGRAM = Path(__file__).with_name("greedy_callers.py")

SECONDS = 5.0
MEGABYTES = 20  # that each connection has to send
# What the server may gain: what waits in all connections together, what is made of it, and what its allocator keeps.
LARGEST_GAIN = 40
# A loaded machine is late; a server that parses or frees a gigabyte is silent for longer.
LONGEST_SILENCE = 8.0
CHECKS_A_SECOND = 2.0
WINDOW_SECONDS = 4.0


def requests_pipelined(place: Place, size: int) -> Outcome:
    """`size` connections send requests without waiting for answers; some read those, some do not."""
    return _attacked(place, size, ("pipelined", "unread"))


def trailers_sent(place: Place, size: int) -> Outcome:
    """`size` connections send what has no end: trailers, one trailer, a chunk's extension, a refused body."""
    return _attacked(place, size, ("trailers", "long-trailer", "extensions", "bodies"))


def readiness_asked(place: Place, size: int) -> Outcome:
    """`size` callers ask whether the server is ready, again and again, beside a crew at work and then alone."""
    server = _with_keys(place)
    with LoadedStudy(place, server, token=server.token) as study:
        study.work_on()
        alone = _trials_a_second(study)
        with _greedy(place, server, "readyz", size, 2 * WINDOW_SECONDS + 2):
            time.sleep(1.0)
            beside = _trials_a_second(study)
        outcome = study.drained(size)
    before = _commits(place)
    with _greedy(place, server, "readyz", size, WINDOW_SECONDS) as said:
        pass
    checks = (_commits(place) - before) / said["seconds"]
    if checks > CHECKS_A_SECOND:
        outcome.violations.append(f"readiness is checked once a second: {checks:.1f} commits a second")
    share = beside / max(alone, 0.1)
    outcome.measured = f"{share:.2f} of the trials/s beside {size} callers, {checks:.1f} commits/s of theirs"
    outcome.notes.append(f"{alone:.0f} trials/s alone, {beside:.0f} beside; {said['answers']} answers to the callers")
    return outcome


def _attacked(place: Place, size: int, kinds: tuple[str, ...]) -> Outcome:
    server = _with_keys(place)
    with LoadedStudy(place, server, token=server.token) as study:
        study.work_on()
        watch = _Watch(server)
        sent = {}
        for kind in kinds:
            with _greedy(place, server, kind, size, SECONDS) as said:
                pass
            sent[kind] = said
        gained, silent = watch.end()
        found = []
        if gained > LARGEST_GAIN:
            found.append(f"the server stays small: it gained {gained} MB")
        if silent > LONGEST_SILENCE:
            found.append(f"the server goes on answering: it was silent for {silent:.1f} s")
        # One that was filled may not answer for minutes.
        outcome = Outcome(size, violations=found) if found else study.drained(size)
    outcome.measured = f"+{gained} MB at the peak, silent for {silent:.1f} s"
    for kind, said in sent.items():
        outcome.notes.append(f"{kind}: {said['sent'] / 1e6:.0f} MB sent, {said['answers']} answers")
    return outcome


def _with_keys(place: Place) -> Server:
    database = place.sqlite()
    key = Server.key(place.nursery, place.folder, database)
    server = Server(place.nursery, place.folder, database, place.sabotage, key)
    place.at_end(server.kill)
    server.start()
    return server


@contextlib.contextmanager
def _greedy(place: Place, server: Server, kind: str, many: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Greedy callers, until they have done; what they say of themselves is there at the end."""
    arguments = [kind, str(server.port), str(many), str(seconds), str(MEGABYTES * 2**20)]
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_PROGRAM), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    place.at_end(process.kill)
    assert process.stdout is not None
    process.stdout.readline()
    said: dict[str, Any] = {}
    yield said
    answer, _ = process.communicate(timeout=120)
    said.update(json.loads(answer))


def _trials_a_second(study: LoadedStudy) -> float:
    finished, began = study.finished(), time.monotonic()
    time.sleep(WINDOW_SECONDS)
    return (study.finished() - finished) / (time.monotonic() - began)


def _commits(place: Place) -> int:
    """So many the database has had: the counter in the head of SQLite's index of the write-ahead log."""
    (changes,) = struct.unpack_from("=I", Path(f"{place.sqlite_file()}-shm").read_bytes(), 8)
    return int(changes)


class _Watch:
    """How large a server becomes, and how long it leaves a stranger without an answer."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._over = threading.Event()
        self._size_before = _megabytes(server.pid, "VmRSS")
        self._silent = 0.0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def end(self) -> tuple[int, float]:
        """Megabytes gained at the peak, and seconds of silence."""
        self._over.set()
        self._thread.join()
        return max(0, _megabytes(self._server.pid, "VmHWM") - self._size_before), self._silent

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            began = time.monotonic()
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._server.call("GET", "/healthz", timeout=60)
            self._silent = max(self._silent, time.monotonic() - began)


def _megabytes(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) // 1024
