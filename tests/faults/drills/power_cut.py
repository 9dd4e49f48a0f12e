"""A power cut at each acknowledgement: only what the server had synced by then is still there."""

from __future__ import annotations

import json
import random
import re
import sqlite3
import time
from collections import defaultdict
from pathlib import Path

from drills.loaded_study import LoadedStudy, Outcome, Place
from drills.traced import Sent, SyncBegan, SyncEnded, Written, events_of, traced_writes

# A trial as an answer reads it: number, then state, values and attempt somewhere after.
_TOLD = re.compile(rb'"number":(\d+),"state":"(COMPLETE|PRUNED)".*?"values":\[([-0-9.e]+)\],"attempt":(\d+)')
_GIVEN = re.compile(rb'"number":(\d+),"attempt":(\d+),"params"')


class Disk:
    """Files as a disk holds them: what was synced for sure, and what was written since."""

    def __init__(self, files: dict[str, bytes], seed: int) -> None:
        self.synced = {name: bytearray(data) for name, data in files.items()}
        self._since: dict[str, list[Written]] = defaultdict(list)
        self._syncing: dict[str, tuple[str, int]] = {}
        self._random = random.Random(seed)

    def take(self, event: Written | SyncBegan | SyncEnded) -> None:
        if isinstance(event, Written):
            self._since[event.file].append(event)
        elif isinstance(event, SyncBegan):
            # A sync covers what was written before it began.
            self._syncing[event.thread] = (event.file, len(self._since[event.file]))
        elif event.thread in self._syncing:
            file, count = self._syncing.pop(event.thread)
            for write in self._since[file][:count]:
                _apply(self.synced.setdefault(file, bytearray()), write)
            del self._since[file][:count]

    def after_the_cut(self, folder: Path, *, some_of_the_rest: bool) -> Path:
        """Write the files as they are found when the power is back; return the database.

        some_of_the_rest: a disk may also have written any part of what nobody waited for.
        """
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        database = folder / "hpo.db"
        for file, data in self.synced.items():
            image = bytearray(data)
            if some_of_the_rest:
                for write in self._since[file]:
                    if self._random.random() < 0.5:
                        _apply(image, write)
            (folder / Path(file).name).write_bytes(image)
        return database


def _apply(image: bytearray, write: Written) -> None:
    if write.data is None:
        del image[write.offset :]
        return
    if len(image) < write.offset:
        image.extend(bytes(write.offset - len(image)))
    image[write.offset : write.offset + len(write.data)] = write.data


def power_cut(place: Place, size: int) -> Outcome:
    """Cut the power at each acknowledgement of a result, on SQLite; then a server starts on the last of these disks."""
    server = place.server(place.sqlite())
    files = {str(place.folder / name): b"" for name in ("hpo.db", "hpo.db-wal")}
    log = place.folder / "strace.log"
    study = LoadedStudy(place, server, crew=4, lease_seconds=30, think_seconds=0.0)
    # Nobody works yet: what the files hold now counts as synced.
    time.sleep(0.2)
    for name in files:
        files[name] = Path(name).read_bytes()
    with traced_writes(server, log), study:
        study.wait_for_finished(size + 2)
        server.patiently("POST", "/v1/studies/s:stop")
        faults = study.crew.drain(60.0)
    server.kill()
    outcome = Outcome(0, violations=[f"the drain: {fault}" for fault in faults])
    disk = Disk(files, seed=place.random.randrange(2**32))
    told: dict[int, tuple[str, float, int]] = {}
    given: dict[int, int] = {}
    image = place.folder / "image"
    database = place.folder / "hpo.db"
    for event in events_of(log, place.folder):
        if not isinstance(event, Sent):
            disk.take(event)
            continue
        for number, attempt in _GIVEN.findall(event.data):
            given[int(number)] = max(int(attempt), given.get(int(number), 0))
        results = _TOLD.findall(event.data)
        if not results or outcome.count >= size:
            continue
        for number, state, value, attempt in results:
            told[int(number)] = (state.decode(), float(value), int(attempt))
        outcome.count += 1
        database = disk.after_the_cut(image, some_of_the_rest=outcome.count % 2 == 0)
        outcome.violations += _lost(database, told, given)
    outcome.acknowledged = len(told) + len(given)
    if outcome.count < size:
        outcome.violations.append(f"the drill: only {outcome.count} of {size} acknowledgements were seen")
    outcome.violations += _started_again(place, database, told)
    return outcome


def _lost(database: Path, told: dict[int, tuple[str, float, int]], given: dict[int, int]) -> list[str]:
    violations = []
    with sqlite3.connect(database) as connection:
        health = connection.execute("PRAGMA integrity_check").fetchone()[0]
        rows = connection.execute('SELECT number, state, "value", attempt FROM hpo_trials').fetchall()
    connection.close()
    if health != "ok":
        violations.append(f"the file is sound: {health}")
    found = {number: (state, value, attempt) for number, state, value, attempt in rows}
    for number, result in told.items():
        if found.get(number) != result:
            violations.append(
                f"acknowledged results survive a power cut: trial {number} was told {result}, reads {found.get(number)}"
            )
    for number, attempt in given.items():
        if number not in found or found[number][2] < attempt:
            violations.append(f"acknowledged grants survive a power cut: trial {number}, attempt {attempt}")
    return violations


def _started_again(place: Place, database: Path, told: dict[int, tuple[str, float, int]]) -> list[str]:
    server = place.server(f"sqlite:///{database}")
    violations = []
    for number, (state, value, attempt) in told.items():
        status, trial = server.call("GET", f"/v1/studies/s/trials/{number}")
        if status != 200 or (trial["state"], trial["values"], trial["attempt"]) != (state, [value], attempt):
            violations.append(f"a server starts on what is left: trial {number} reads {json.dumps(trial)[:200]}")
    server.kill()
    return violations
