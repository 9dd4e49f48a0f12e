"""Drills with artifacts: what was acknowledged is whole, nothing half is to be read, nothing is left over."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from drills.bad_disks import disk_of_its_own
from drills.loaded_study import STUDY, NotHere, Outcome, Place
from drills.nursery import Nursery
from drills.served import PATIENCE_SECONDS, Server, free_port

ROOT = Path(__file__).resolve().parents[3]
MIB = 2**20
UPLOADERS = 4
NAMES = 3  # of each: most uploads take the place of one before
MOST_MIB = 12
DISK_MIB = 320  # of which the server leaves 64 free
PIECE = MIB // 2
PAUSE_SECONDS = 0.01  # between two pieces: a fault comes in the middle of some uploads
FAULT_SECONDS = 4.0
SILENT_SECONDS = 5.0  # a loaded machine may take seconds for anything
RECOVERY_SECONDS = 60.0
UNREADABLE_SECONDS = 15.0
REFUSALS = (413, 429, 503)
PATH = "/v1/studies/s/trials/0"


def server_killed_amid_uploads(place: Place, size: int) -> Outcome:
    """kill -9 the server while artifacts come, and start it again."""
    server = place.server(place.sqlite())
    with Uploads(place, server) as uploads:
        for _ in range(size):
            uploads.wait_for_some()
            place.pause(0.0, 0.3)
            server.kill()
            server.start()
    return uploads.checked(size, lambda: _files(place))


def artifacts_disk_full(place: Place, size: int) -> Outcome:
    """The disk of the artifacts is filled up while some come; the database lies on another one."""
    folder = Path(f"{place.sqlite_file()}.artifacts")
    disk = disk_of_its_own(place, folder, DISK_MIB)
    if disk is None:
        raise NotHere("no disk of its own may be mounted here")
    server = place.server(place.sqlite())
    with Uploads(place, server) as uploads:
        for _ in range(size):
            uploads.wait_for_some()
            with uploads.fault():
                disk.fill(server)
                uploads.meet_it()
                disk.make_room(server)
    return uploads.checked(size, lambda: _files(place))


def bucket_away(place: Place, size: int) -> Outcome:
    """The bucket answers 503, and by turns takes no connection, while artifacts go there."""
    if find_spec("obstore") is None:
        raise NotHere("obstore is not installed: pip install 'hpo-service[artifacts]'")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))  # for tests that import from each other
    from tests.objects.small_s3 import OneBucket

    bucket = OneBucket(free_port())
    bucket.open()
    place.at_end(bucket.close)
    place.nursery = Nursery(
        HPO_ARTIFACTS="s3://bucket/artifacts",
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{bucket.port}",
        AWS_ACCESS_KEY_ID="x",
        AWS_SECRET_ACCESS_KEY="y",
        AWS_REGION="us-east-1",
    )
    place.at_end(place.nursery.close)
    server = place.server(place.sqlite())
    with Uploads(place, server) as uploads:
        for index in range(size):
            uploads.wait_for_some()
            with uploads.fault():
                if index % 2:
                    bucket.close()
                else:
                    bucket.is_unwell.set()
                uploads.meet_it()
                if index % 2:
                    bucket.open()
                bucket.is_unwell.clear()
    return uploads.checked(size, lambda: sorted(bucket.objects))


def _files(place: Place) -> list[str]:
    folder = Path(f"{place.sqlite_file()}.artifacts")
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@dataclass
class Sent:
    """What was sent under one name, in order. answer: 200, another status, or None where none came."""

    sha256: str
    size: int
    answer: int | None


@dataclass
class Named:
    sent: list[Sent] = field(default_factory=list)

    def may_be(self) -> set[str | None]:
        """What may lie there in the end, by its SHA-256; None: nothing."""
        found: set[str | None] = {None}
        for each in self.sent:
            if each.answer == 200:
                found = {each.sha256}
            elif each.answer is None:
                found.add(each.sha256)
        return found


class Uploads:
    """`with` it uploaders put artifacts, a reader reads them, and a worker goes on with a trial beside them."""

    def __init__(self, place: Place, server: Server) -> None:
        self._server, self._seeds = server, itertools.count(place.random.randrange(2**32))
        server.patiently("POST", "/v1/studies", {**STUDY, "lease_seconds": 3600})
        for number in range(2):  # one for the artifacts, and one for the worker beside
            body = {"worker_id": "w", "request_id": f"artifacts-{number}"}
            server.patiently("POST", "/v1/studies/s/trials:ask", body)
        self._names = {f"{uploader}-{name}": Named() for uploader in range(UPLOADERS) for name in range(NAMES)}
        self._violations: list[str] = []
        self._refused = self._read = 0
        self._silent_seconds = 0.0
        self._is_over = threading.Event()
        self._in_fault = threading.Event()
        tasks: list[tuple[Callable[[str], None], str]] = []
        tasks += [(self._upload, str(uploader)) for uploader in range(UPLOADERS)]
        tasks += [(self._read_on, ""), (self._work, "")]
        self._threads = [threading.Thread(target=self._run, args=task) for task in tasks]

    def __enter__(self) -> Uploads:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def wait_for_some(self) -> None:
        """Until each uploader has had an artifact kept since now, so that a fault meets a server that is well."""
        before = self._kept()
        deadline = time.monotonic() + RECOVERY_SECONDS
        while self._kept() < before + 2 * UPLOADERS:
            if time.monotonic() > deadline:
                self._violations.append(f"recovery: no artifact was kept for {RECOVERY_SECONDS:.0f} s after a fault")
                return
            time.sleep(0.02)

    @contextlib.contextmanager
    def fault(self) -> Iterator[None]:
        """Meanwhile uploads may be refused; the worker beside may not."""
        self._in_fault.set()
        yield
        self._in_fault.clear()

    def meet_it(self) -> None:
        """Until the fault has lasted, and an upload has met it: a bucket that answers 503 is asked anew for a while."""
        before = self._refused
        time.sleep(FAULT_SECONDS)
        deadline = time.monotonic() + RECOVERY_SECONDS
        while self._refused == before:
            if time.monotonic() > deadline:
                self._violations.append("the drill: no upload met a fault")
                return
            time.sleep(0.05)

    def checked(self, count: int, objects: Callable[[], list[str]]) -> Outcome:
        """Wait for the sweep, and compare what is there with what was sent. objects: that lie in the place for them."""
        listed = {item["name"]: item for item in self._server.patiently("GET", f"{PATH}/artifacts")["items"]}
        for name, named in self._names.items():
            self._check(name, named.may_be(), listed.get(name))
        deadline = time.monotonic() + RECOVERY_SECONDS / 4
        while len(objects()) != len(listed) and time.monotonic() < deadline:
            time.sleep(0.1)
        if len(left := objects()) != len(listed):
            self._violations.append(f"nothing is left over: {len(left)} objects of {len(listed)} artifacts")
        sent = [each for named in self._names.values() for each in named.sent]
        unknown = sum(each.answer is None for each in sent)
        megabytes = sum(each.size for each in sent if each.answer == 200) / MIB
        measured = f"{self._kept()} artifacts kept, {megabytes:.0f} MiB"
        if self._silent_seconds:
            measured += f"; a heartbeat was answered after {self._silent_seconds:.1f} s at most"
        notes = [f"{self._refused} uploads refused in words, {self._read} artifacts read meanwhile"]
        return Outcome(count, self._kept(), unknown, self._violations, notes, measured)

    def _check(self, name: str, may_be: set[str | None], item: Any) -> None:
        found = None if item is None else item["sha256"]
        if found not in may_be:
            self._violations.append(f"acknowledged artifacts are whole: {name} is {found}, and not what was sent last")
        if item is not None:
            try:
                status, body, _ = self._get(name)
            except (OSError, http.client.HTTPException):
                status, body = 0, b""  # it broke off
            if status != 200 or hashlib.sha256(body).hexdigest() != found or len(body) != item["size"]:
                self._violations.append(
                    f"acknowledged artifacts are whole: {name} has {item['size']} bytes, and is read as {len(body)} "
                    f"others, status {status}"
                )

    def _kept(self) -> int:
        return sum(each.answer == 200 for named in self._names.values() for each in named.sent)

    # -- what the threads do --------------------------------------------------------------------------------

    def _run(self, task: Callable[[str], None], name: str) -> None:
        while not self._is_over.is_set():
            try:
                task(name)
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)  # the server is away

    def _upload(self, uploader: str) -> None:
        draw = random.Random(next(self._seeds))
        name = f"{uploader}-{draw.randrange(NAMES)}"
        data = draw.randbytes(draw.randrange(1, MOST_MIB * MIB))
        sent = Sent(hashlib.sha256(data).hexdigest(), len(data), None)
        connection = self._connection()
        connection.connect()  # whom nobody hears sends nothing
        self._names[name].sent.append(sent)
        try:
            headers = {"Content-Type": "application/octet-stream"}  # without its size: no refusal in advance
            connection.request("PUT", f"{PATH}/artifacts/{name}?attempt=1", _pieces(data), headers)
            answer = connection.getresponse()
            said = json.loads(answer.read())
            sent.answer = answer.status
        finally:
            connection.close()
        if sent.answer == 200:
            if (said["sha256"], said["size"]) != (sent.sha256, sent.size):
                self._violations.append(f"acknowledged artifacts are whole: {name} was acknowledged as another one")
            self._read_back(name, sent)
        elif sent.answer not in REFUSALS or not said.get("detail") or not said.get("code"):
            self._violations.append(f"refusals say why: {sent.answer} {said}")
        else:
            self._refused += 1
            time.sleep(0.2)

    def _read_back(self, name: str, sent: Sent) -> None:
        """What was just acknowledged is there, as soon as a server and the place of its bytes are."""
        failing_since = None
        while True:
            status = 0
            try:
                status, body, _ = self._get(name)
                if status == 200 and hashlib.sha256(body).hexdigest() == sent.sha256:
                    return
            except ConnectionRefusedError:
                failing_since = None  # killed, and not there again
            except (ConnectionError, http.client.HTTPException):
                status = 0  # it broke off
            if self._in_fault.is_set():
                return  # to upload others, which the fault is to meet; what lies there in the end is checked then
            failing_since = failing_since or time.monotonic()
            if time.monotonic() > failing_since + UNREADABLE_SECONDS:
                self._violations.append(f"acknowledged artifacts are whole: {name} cannot be read, status {status}")
                return
            time.sleep(0.1)

    def _read_on(self, _: str) -> None:
        name = random.choice(list(self._names))
        status, body, tag = self._get(name)
        if status == 200:
            self._read += 1
            sha256 = hashlib.sha256(body).hexdigest()
            if f'"{sha256}"' != tag or sha256 not in {each.sha256 for each in self._names[name].sent}:
                self._violations.append(f"nothing half is readable: {name} was read as {len(body)} bytes nobody sent")
        elif status not in (404, 503):
            self._violations.append(f"refusals say why: {status} to a reader")
        time.sleep(0.05)

    def _work(self, _: str) -> None:
        """Send heartbeats for the other trial."""
        is_meant = self._in_fault.is_set()
        began = time.monotonic()
        status, answer = self._server.call("POST", "/v1/studies/s/trials/1:heartbeat", {"attempt": 1})
        if is_meant and self._in_fault.is_set():
            took = time.monotonic() - began
            self._silent_seconds = max(self._silent_seconds, took)
            if status != 200 or took > SILENT_SECONDS:
                self._violations.append(f"the rest goes on: a heartbeat, {status} after {took:.1f} s: {answer}")
        time.sleep(0.05)

    def _get(self, name: str) -> tuple[int, bytes, str | None]:
        connection = self._connection()
        try:
            connection.request("GET", f"{PATH}/artifacts/{name}")
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.getheader("ETag")
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._server.host, self._server.port, timeout=PATIENCE_SECONDS)


def _pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]
        time.sleep(PAUSE_SECONDS)
