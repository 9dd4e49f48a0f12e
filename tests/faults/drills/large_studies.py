"""Drills with trials and studies that grow over many calls: memory, silence and the cost of a report stay bounded."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from drills.loaded_study import STUDY, Outcome, Place
from drills.served import Server

READERS = 8
GROWS_BY_MB = 160  # at most, under readers, whatever a trial holds
ANSWER_MB = 1.0
SILENT_SECONDS = 2.0  # a loaded machine may take a second for anything
GONE_WITHIN_SECONDS = 240.0
JUDGED = 40  # reports that are timed
DEARER = 8  # so many times what it costs at the beginning, and
DEARER_SECONDS = 0.05

_requests = itertools.count()


def _ask(server: Server, study: str) -> str:
    """The path of a trial that is held."""
    body = {"worker_id": "w", "request_id": f"large-{next(_requests)}"}
    (trial,) = server.patiently("POST", f"/v1/studies/{study}/trials:ask", body)["trials"]
    return f"/v1/studies/{study}/trials/{trial['number']}"


# -- a trial with more and more reports -------------------------------------------------------------------


def trials_filled_up(place: Place, size: int) -> Outcome:
    """Report `size` MB of metrics to one trial, as large as they are taken, read all of it thrice, and tell."""
    server = place.server(place.sqlite())
    server.patiently("POST", "/v1/studies", {**STUDY, "lease_seconds": 600})
    trial = _ask(server, "s")
    _fill(server, trial, 1)
    before = _peak_mb(server.pid)
    sent = _fill(server, trial, size)
    _all_at_once(_reader(server, trial) for _ in range(READERS))
    answer = _length(server, "POST", trial + ":tell", b'{"attempt": 1, "state": "COMPLETE", "values": [0.5]}')
    grown = _peak_mb(server.pid) - before
    outcome = Outcome(int(sent), measured=f"{grown:.0f} MB more at the peak, a tell answers {answer / 2**20:.1f} MB")
    if grown > GROWS_BY_MB:
        outcome.violations.append(f"memory is bounded: {grown:.0f} MB more than before")
    if answer > ANSWER_MB * 2**20:
        outcome.violations.append(f"answers are bounded: a tell answers {answer / 2**20:.1f} MB")
    return outcome


def _fill(server: Server, trial: str, megabytes: int) -> float:
    """How many were taken."""
    taken = 0.0
    for step in itertools.count(next(_requests) * 1000):
        for kib in (900, 60):
            text = "x" * (kib * 2**10)
            reports = [{"step": step, "value": 0.5, "metrics": {"text": text}}]
            status, _ = server.call("POST", trial + ":report", {"attempt": 1, "reports": reports})
            if status == 200:
                break
        else:
            return max(taken, megabytes)  # no more is kept: as full as it can be
        taken += kib / 2**10
        if taken >= megabytes:
            return taken
    raise AssertionError("there is always another step")


def _reader(server: Server, trial: str) -> threading.Thread:
    def read() -> None:
        for path in (trial, trial.rsplit("/", 1)[0] + "?page_size=1000", trial):
            _length(server, "GET", path)

    return threading.Thread(target=read, daemon=True)


def _all_at_once(threads: Iterator[threading.Thread]) -> None:
    begun = list(threads)
    for thread in begun:
        thread.start()
    for thread in begun:
        thread.join(120)


def _length(server: Server, method: str, path: str, body: bytes | None = None) -> int:
    """Of the answer, which is read and dropped piece by piece."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    try:
        connection.request(method, path, body, server.headers())
        answer, length = connection.getresponse(), 0
        while piece := answer.read(2**16):
            length += len(piece)
        return length
    finally:
        connection.close()


def _peak_mb(pid: int) -> float:
    """Of the server and the process that reads for it, each at its own peak."""
    return sum(_high_water_mark(each) for each in (pid, *_children(pid))) / 2**10


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _high_water_mark(pid: int) -> int:
    """In KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


# -- a study that is deleted ------------------------------------------------------------------------------

_TRIALS = 200
_FILL = (
    "WITH RECURSIVE steps(step) AS (SELECT 1 UNION ALL SELECT step + 1 FROM steps WHERE step < ?) "
    "INSERT INTO hpo_reports (trial_id, step, value) SELECT t.id, steps.step, 0.5 FROM hpo_trials t CROSS JOIN steps "
    "WHERE t.study_id = (SELECT id FROM hpo_studies WHERE name = 'large')"
)


def large_study_deleted(place: Place, size: int) -> Outcome:
    """Delete a study with `size` thousand reports while a worker of another one sends a heartbeat after the other."""
    server = place.server(place.sqlite())
    server.patiently("POST", "/v1/studies", {**STUDY, "lease_seconds": 600})
    server.patiently("POST", "/v1/studies", {**STUDY, "name": "large"})
    finished = {"params": {"x": 0.5, "y": 0.5}, "state": "COMPLETE", "values": [0.5]}
    server.patiently("POST", "/v1/studies/large/trials:import", {"trials": [finished] * _TRIALS})
    server.kill()
    with contextlib.closing(sqlite3.connect(place.sqlite_file())) as database:
        database.execute(_FILL, (size * 1000 // _TRIALS,))
        database.commit()
    server.start()
    trial = _ask(server, "s")
    with _Heartbeats(server, trial) as heartbeats:
        time.sleep(0.3)
        began = time.monotonic()
        status, _ = server.call("DELETE", "/v1/studies/large", timeout=120)
        answered = time.monotonic() - began
        left = _rows_left(place.sqlite_file(), began + GONE_WITHIN_SECONDS)
        took = time.monotonic() - began
    outcome = Outcome(size, heartbeats.sent)
    outcome.measured = (
        f"silent for {heartbeats.longest:.2f} s, answered after {answered:.2f} s, gone after {took:.0f} s"
    )
    if status != 204:
        outcome.violations.append(f"the study is deleted: {status}")
    if left:
        outcome.violations.append(f"the rows are taken away: {left} are left after {GONE_WITHIN_SECONDS:.0f} s")
    if heartbeats.longest > SILENT_SECONDS:
        outcome.violations.append(f"nobody waits for a deletion: one heartbeat for {heartbeats.longest:.1f} s")
    return outcome


class _Heartbeats:
    def __init__(self, server: Server, trial: str) -> None:
        self.longest = 0.0
        self.sent = 0
        self._server, self._trial = server, trial
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._server.call("POST", self._trial + ":heartbeat", {"attempt": 1}, timeout=120)
            self.longest = max(self.longest, time.monotonic() - began)
            self.sent += 1

    def __enter__(self) -> _Heartbeats:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(130)


def _rows_left(path: Path, deadline: float) -> int:
    query = "SELECT count(*) FROM hpo_trials WHERE study_id <> (SELECT id FROM hpo_studies WHERE name = 's')"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        while True:
            (left,) = database.execute(query).fetchone()
            if not left or time.monotonic() > deadline:
                return int(left)
            time.sleep(0.2)


# -- a trial with more and more steps ---------------------------------------------------------------------


def steps_judged(place: Place, size: int) -> Outcome:
    """Report `size` steps of one trial to a study with a pruner; a report costs in the end what it did at first."""
    server = place.server(place.sqlite())
    pruner = {"name": "percentile", "params": {"percentile": 50, "n_startup_trials": 1}}
    server.patiently("POST", "/v1/studies", {**STUDY, "lease_seconds": 600, "pruner": pruner})
    finished = {"params": {"x": 0.5, "y": 0.5}, "state": "COMPLETE", "values": [0.5]}
    curve = [{"step": step, "value": 0.1} for step in range(2000)]
    server.patiently("POST", "/v1/studies/s/trials:import", {"trials": [{**finished, "reports": curve}]})
    trial = _ask(server, "s")
    first = _seconds_a_report(server, trial, 0)
    for start in range(JUDGED, size - JUDGED, 10_000):
        steps = range(start, min(start + 10_000, size - JUDGED))
        body = {"attempt": 1, "reports": [{"step": step, "value": 0.5} for step in steps]}
        server.patiently("POST", trial + ":report", body)
    last = _seconds_a_report(server, trial, size - JUDGED)
    outcome = Outcome(size, measured=f"a report takes {1e3 * first:.1f} ms at first and {1e3 * last:.1f} ms in the end")
    if last > DEARER * first and last > DEARER_SECONDS:
        outcome.violations.append(f"a report costs what it did at first: {first:.4f} s, and {last:.4f} s in the end")
    return outcome


def _seconds_a_report(server: Server, trial: str, start: int) -> float:
    """The median of a few."""
    seconds = []
    for step in range(start, start + JUDGED):
        body = {"attempt": 1, "reports": [{"step": step, "value": 0.5}]}
        began = time.monotonic()
        server.patiently("POST", trial + ":report", body)
        seconds.append(time.monotonic() - began)
    return sorted(seconds)[JUDGED // 2]
