"""A database moved, removed or replaced under the server: nothing is acknowledged that a restart does not find."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hpo_service.api import readiness
from hpo_service.api.app import create_app
from hpo_service.settings import Settings
from hpo_service.store.database_file import DatabaseFile

STUDY = {"name": "s", "search_space": {"x": {"type": "float", "low": 0.0, "high": 1.0}}, "sampler": {"name": "random"}}
_requests = itertools.count()


@pytest.fixture(autouse=True)
def readiness_is_asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is good for a second otherwise."""
    monkeypatch.setattr(readiness, "GOOD_FOR_SECONDS", 0.0)


class Served:
    def __init__(self, file: Path) -> None:
        self.file = file
        app = create_app(Settings(database_url=f"sqlite:///{file}"), with_reaper=False, with_keys=False)
        self.client = TestClient(app, raise_server_exceptions=False)
        self.client.__enter__()
        self.stopped = False

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self.client.__exit__(None, None, None)

    def told(self) -> Any:
        """Ask for a trial and tell its result."""
        body = {"worker_id": "w", "request_id": f"r{next(_requests)}"}
        asked = self.client.post("/v1/studies/s/trials:ask", json=body)
        if asked.status_code != 200:
            return asked
        number = asked.json()["trials"][0]["number"]
        result = {"attempt": 1, "state": "COMPLETE", "values": [1.0]}
        return self.client.post(f"/v1/studies/s/trials/{number}:tell", json=result)

    def complete(self) -> int:
        found: int = self.client.get("/v1/studies/s").json()["counts"]["COMPLETE"]
        return found


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """With three results."""
    found = Served(tmp_path / "record" / "hpo.db")
    assert found.client.post("/v1/studies", json=STUDY).status_code == 201
    assert [found.told().status_code for _ in range(3)] == [200] * 3
    yield found
    found.stop()


def refusal(served: Served) -> str:
    """Every call but that on life is 503, in these words."""
    answers = [served.told(), served.told(), served.client.get("/v1/studies/s"), served.client.get("/readyz")]
    answers += [served.client.get("/v1/studies/s/trials:export"), served.client.get("/v1/studies")]
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(503, "unavailable")}
    assert served.client.get("/healthz").status_code == 200
    return str(answers[1].json()["detail"])


def moved(file: Path) -> Callable[[], object]:
    away = file.with_name("away.db")
    file.rename(away)
    return lambda: away.rename(file)


def moved_with_its_log(file: Path) -> Callable[[], object]:
    names = [path.name for path in file.parent.iterdir()]
    away = file.parent.parent / "away"
    away.mkdir()
    for name in names:
        (file.parent / name).rename(away / name)
    return lambda: [(away / name).rename(file.parent / name) for name in names]


def folder_renamed(file: Path) -> Callable[[], object]:
    away = file.parent.with_name("renamed")
    file.parent.rename(away)
    return lambda: away.rename(file.parent)


def replaced(file: Path) -> Callable[[], object]:
    away = file.with_name("away.db")
    file.rename(away)
    shutil.copy(away, file)
    return lambda: away.replace(file)


@pytest.mark.slow
@pytest.mark.parametrize("how", [moved, moved_with_its_log, folder_renamed, replaced], ids=lambda f: f.__name__)
def test_nothing_is_acknowledged_until_the_right_file_is_back(
    how: Callable[[Path], Callable[[], object]], served: Served
) -> None:
    back = how(served.file)
    words = refusal(served)
    assert "under the running server" in words
    assert str(served.file) in words
    back()
    assert served.client.get("/readyz").status_code == 200
    assert served.told().status_code == 200
    assert served.complete() == 4


def test_what_was_acknowledged_is_in_the_file_that_was_moved(served: Served, tmp_path: Path) -> None:
    served.file.rename(tmp_path / "elsewhere.db")
    refusal(served)
    shutil.copy(tmp_path / "elsewhere.db", tmp_path / "copy.db")  # as a restart finds it after kill -9, without its log
    restarted = Served(tmp_path / "copy.db")
    assert restarted.complete() == 3
    restarted.stop()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hpo.db-wal", "hpo.db-shm"])
@pytest.mark.parametrize("instead", [None, b"", b"something else"], ids=["removed", "emptied", "replaced"])
def test_a_log_that_was_taken_away_takes_nothing_along(
    name: str, instead: bytes | None, served: Served, tmp_path: Path
) -> None:
    (served.file.parent / name).unlink()
    if instead is not None:
        (served.file.parent / name).write_bytes(instead)
    assert served.client.get("/readyz").status_code == 503
    assert f"{name} was removed, moved or replaced" in refusal(served)
    shutil.copy(served.file, tmp_path / "copy.db")
    restarted = Served(tmp_path / "copy.db")
    assert restarted.complete() == 3
    restarted.stop()


def test_a_server_that_ends_leaves_the_log_of_whoever_is_in_its_place(served: Served, tmp_path: Path) -> None:
    served.file.parent.rename(tmp_path / "away")
    served.file.parent.mkdir()
    served.file.write_bytes(b"another database")
    log = served.file.with_name("hpo.db-wal")
    log.write_bytes(b"its log")
    served.stop()
    assert log.read_bytes() == b"its log"


def test_a_calls_answer_waits_for_the_look_after_its_commit(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is moved while the commit is under way."""
    check = DatabaseFile.check

    def moved_a_moment_before(self: DatabaseFile) -> None:
        served.file.rename(served.file.with_name("away.db"))
        check(self)

    monkeypatch.setattr(DatabaseFile, "check", moved_a_moment_before)
    assert served.told().status_code == 503
    monkeypatch.undo()
    served.file.with_name("away.db").rename(served.file)
    # It was committed, and not acknowledged: the same call again has its answer from the record.
    assert served.told().status_code == 200


@pytest.mark.slow
def test_another_database_in_its_place_is_never_opened(served: Served, tmp_path: Path) -> None:
    other = Served(tmp_path / "other.db")
    assert other.client.post("/v1/studies", json={**STUDY, "name": "of-the-other"}).status_code == 201
    other.stop()
    away = tmp_path / "away.db"
    served.file.rename(away)
    shutil.copy(tmp_path / "other.db", served.file)

    # All connections at once, so that new ones have to be opened.
    async def many() -> list[int]:
        calls = [asyncio.to_thread(served.client.get, "/v1/studies/of-the-other") for _ in range(20)]
        return [answer.status_code for answer in await asyncio.gather(*calls)]

    assert set(asyncio.run(many())) == {503}
    away.replace(served.file)
    assert served.client.get("/v1/studies/of-the-other").status_code == 404
    assert served.complete() == 3
