"""Artifacts: whole or not at all, kept by who holds the lease, with their trial over all its attempts."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hpo_service.api.app import create_app
from hpo_service.settings import Settings
from tests.api.conftest import Api, check_problem
from tests.patience import PATIENCE_SECONDS

DATA = os.urandom(300_000)
NETWORK = {
    "search_space": {"learning_rate": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True}},
    "objective": {"kind": "neural_network"},
}


class Kept(Api):
    """An Api with a folder for artifacts."""

    def __init__(self, client: TestClient, clock: Any, folder: Path) -> None:
        super().__init__(client, clock)
        self.folder = folder

    def put(self, path: str, data: Any = DATA, attempt: int = 1) -> Any:
        return self.call("PUT", f"/v1/studies/{path}?attempt={attempt}", content=data)

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def sweep(self) -> None:
        assert self.client.portal is not None
        app: Any = self.client.app
        self.client.portal.call(app.state.artifacts.sweep)


@pytest.fixture
def kept(database_url: str, clock: Any, tmp_path: Path) -> Iterator[Kept]:
    folder = tmp_path / "artifacts"
    settings = Settings(
        database_url=database_url, artifacts=str(folder), artifact_bytes=1_000_000, artifact_total_bytes=2_500_000
    )
    app = create_app(settings, clock, with_reaper=False, with_keys=False)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Kept(client, clock, folder)


@pytest.mark.slow
def test_what_is_put_is_listed_and_read_byte_by_byte(kept: Kept) -> None:
    name = kept.create()
    kept.ask(name)
    put = kept.put(f"{name}/trials/0/artifacts/model.pt")
    assert put.status_code == 200
    item = put.json()
    assert item["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert (item["name"], item["size"], item["attempt"]) == ("model.pt", len(DATA), 1)
    assert kept.get(f"/v1/studies/{name}/trials/0/artifacts").json() == {"items": [item]}
    assert kept.trial(name, 0)["artifacts"] == ["model.pt"]

    read = kept.get(f"/v1/studies/{name}/trials/0/artifacts/model.pt")
    assert read.content == DATA
    assert read.headers["content-disposition"] == 'attachment; filename="model.pt"'
    assert read.headers["x-content-type-options"] == "nosniff"
    assert read.headers["content-length"] == str(len(DATA))
    assert kept.put(f"{name}/trials/0/artifacts/empty", b"").json()["size"] == 0
    assert kept.get(f"/v1/studies/{name}/trials/0/artifacts/empty").content == b""
    assert kept.trial(name, 0)["artifacts"] == ["empty", "model.pt"]


def test_the_folder_and_its_files_are_for_the_owner_and_the_group(kept: Kept) -> None:
    name = kept.create()
    kept.ask(name)
    kept.put(f"{name}/trials/0/artifacts/model.pt")
    places = [kept.folder, *kept.folder.rglob("*")]
    assert len(places) == 3
    assert [place.stat().st_mode & 0o007 for place in places] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-9", 0, 10),
        ("bytes=299990-", 299_990, 300_000),
        ("bytes=-5", 299_995, 300_000),
        ("bytes=7-999999", 7, 300_000),
    ],
)
def test_a_range_is_answered_with_these_bytes(kept: Kept, wanted: str, start: int, end: int) -> None:
    name = kept.create()
    kept.ask(name)
    kept.put(f"{name}/trials/0/artifacts/a")
    part = kept.get(f"/v1/studies/{name}/trials/0/artifacts/a", headers={"Range": wanted})
    assert part.status_code == 206
    assert part.content == DATA[start:end]
    assert part.headers["content-range"] == f"bytes {start}-{end - 1}/300000"


def test_ranges_that_cannot_be_and_those_that_are_none(kept: Kept) -> None:
    name = kept.create()
    kept.ask(name)
    kept.put(f"{name}/trials/0/artifacts/a")
    path = f"/v1/studies/{name}/trials/0/artifacts/a"
    for wanted in ("bytes=300000-", "bytes=9-3", "bytes=-0"):
        assert kept.code(refused := kept.get(path, headers={"Range": wanted})) == "invalid_range"
        assert refused.status_code == 416
    for wanted in ("bytes=0-1,5-6", "lines=1-2", "bytes=x-", "bytes=-"):
        assert kept.get(path, headers={"Range": wanted}).content == DATA


@pytest.mark.slow
def test_only_who_holds_the_lease_may_put(kept: Kept) -> None:
    name = kept.create(lease_seconds=10)
    path = f"{name}/trials/0/artifacts/a"
    assert kept.code(kept.put(path)) == "not_found"
    kept.ask(name)
    assert kept.code(kept.put(path, attempt=2)) == "lease_lost"
    assert kept.code(kept.put(path, attempt=0)) == "lease_lost"
    kept.clock.turn(11)
    assert kept.put(path).status_code == 200  # ran out, and nobody else has it: held again, as by a report
    assert kept.trial(name, 0)["state"] == "RUNNING"
    kept.clock.turn(11)
    kept.ask(name, worker_id="other")
    assert kept.code(kept.put(path)) == "lease_lost"
    assert kept.put(path, attempt=2).json()["attempt"] == 2
    kept.tell(name, 0, 1.0, attempt=2)
    assert kept.code(kept.put(path, attempt=2)) == "trial_finished"
    kept.sweep()
    assert len(kept.files()) == 1


def test_a_retry_reads_with_the_names_and_goes_on_from_there(kept: Kept) -> None:
    name = kept.create()
    kept.ask(name)
    kept.put(f"{name}/trials/0/artifacts/checkpoint", b"epoch 3")
    kept.work(name, 0, "release")
    (again,) = kept.ask(name)
    assert (again["number"], again["artifacts"]) == (0, ["checkpoint"])
    assert kept.get(f"/v1/studies/{name}/trials/0/artifacts/checkpoint").content == b"epoch 3"
    assert kept.tell(name, 0, 1.0, attempt=2)["artifacts"] == ["checkpoint"]


def test_a_second_one_of_a_name_takes_the_place_of_the_first(kept: Kept) -> None:
    name = kept.create()
    kept.ask(name)
    path = f"{name}/trials/0/artifacts/a"
    kept.put(path, b"first")
    kept.put(path, b"second")
    assert kept.get(f"/v1/studies/{path}").content == b"second"
    assert len(kept.get(f"/v1/studies/{name}/trials/0/artifacts").json()["items"]) == 1
    kept.sweep()
    assert len(kept.files()) == 1


@pytest.mark.parametrize("name", [".hidden", "-a", "a b", "ä", "n" * 129, "..%2Fx", "a%00"])
def test_names_are_names_and_no_paths(kept: Kept, name: str) -> None:
    study = kept.create()
    kept.ask(study)
    refused = kept.put(f"{study}/trials/0/artifacts/{name}")
    assert refused.status_code in (404, 405, 422)
    assert kept.files() == []


@pytest.mark.parametrize("announces", [True, False])
def test_what_is_too_large_is_refused_and_leaves_nothing(kept: Kept, announces: bool) -> None:
    name = kept.create()
    kept.ask(name)
    path = f"{name}/trials/0/artifacts/"
    data = bytes(1_000_001)
    too_large = kept.put(path + "a", data if announces else iter([data]))
    assert (too_large.status_code, kept.code(too_large)) == (413, "too_large")
    assert "HPO_ARTIFACT_BYTES" in too_large.json()["detail"]
    data = bytes(1_000_000)
    for number in range(2):
        assert kept.put(f"{path}{number}", data).status_code == 200
    in_all = kept.put(path + "2", data if announces else iter([data]))
    assert (in_all.status_code, kept.code(in_all)) == (413, "too_large")
    assert "HPO_ARTIFACT_TOTAL_BYTES" in in_all.json()["detail"]
    assert kept.put(path + "1", data).status_code == 200  # in the place of one
    kept.sweep()
    assert len(kept.files()) == 2


def test_they_go_with_their_study_and_with_nobody_elses(kept: Kept) -> None:
    from hpo_service.operations.clearing_away import clear_all

    mine, other = kept.create(), kept.create()
    for name in (mine, other):
        kept.ask(name)
        kept.put(f"{name}/trials/0/artifacts/a")
    assert kept.client.delete(f"/v1/studies/{mine}?force=true").status_code == 204
    assert kept.get(f"/v1/studies/{mine}/trials/0/artifacts/a").status_code == 404
    assert kept.client.portal is not None
    kept.client.portal.call(clear_all, kept.client.app.state.service)  # type: ignore[attr-defined]
    kept.sweep()
    assert len(kept.files()) == 1
    assert kept.get(f"/v1/studies/{other}/trials/0/artifacts/a").content == DATA


def test_what_a_dead_server_was_writing_is_swept_away(kept: Kept) -> None:
    from hpo_service.domain.artifact import Artifact
    from hpo_service.store.artifact_rows import ArtifactRows

    name = kept.create()
    kept.ask(name)
    service = kept.client.app.state.service  # type: ignore[attr-defined]
    key = "ab" * 16
    left = Artifact("left", key, 10, "", 1, kept.clock())

    def begin(record: Any) -> None:
        ArtifactRows(record.sql()).begin(left, record.study(name).id, 0, "a server that was killed")

    service.database.write(begin, [name]).result(PATIENCE_SECONDS)
    part = kept.folder / key[:2] / f"{key}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half")
    assert kept.get(f"/v1/studies/{name}/trials/0/artifacts").json() == {"items": []}
    kept.sweep()
    assert kept.files() == []
    assert not service.database.read(lambda record: ArtifactRows(record).is_loose())


def test_a_folder_that_cannot_be_used_is_503_and_its_recovery_is_seen(kept: Kept) -> None:
    name = kept.create()
    kept.ask(name)
    kept.folder.write_text("a file in the place of the folder")
    path = f"/v1/studies/{name}/trials/0/artifacts/a"
    refused = kept.client.put(path + "?attempt=1", content=DATA)
    assert refused.status_code == 503
    check_problem(refused)
    assert "folder" in refused.json()["detail"]
    assert kept.trial(name, 0)["artifacts"] == []
    kept.folder.unlink()
    assert kept.put(f"{name}/trials/0/artifacts/a").status_code == 200
    kept.sweep()
    assert len(kept.files()) == 1
    kept.files()[0].unlink()
    assert kept.client.get(path).status_code == 503


def test_an_upload_that_breaks_off_leaves_nothing(kept: Kept) -> None:
    from hpo_service.operations.artifacts import Owner

    name = kept.create()
    kept.ask(name)
    artifacts = kept.client.app.state.artifacts  # type: ignore[attr-defined]

    async def broken() -> Any:
        yield bytes(500_000)
        raise ConnectionError

    async def put() -> None:
        with pytest.raises(ConnectionError):
            await artifacts.put(Owner(name, 0), "a", 1, None, broken())
        task = asyncio.create_task(artifacts.put(Owner(name, 0), "a", 1, None, _for_ever()))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert kept.client.portal is not None
    kept.client.portal.call(put)
    assert kept.trial(name, 0)["artifacts"] == []
    kept.sweep()
    assert kept.files() == []


async def _for_ever() -> Any:
    yield bytes(10)
    await asyncio.sleep(1000)


@pytest.mark.slow
def test_the_sealed_test_has_its_own(kept: Kept) -> None:
    name = kept.create(**NETWORK, limits={"trials": 1})
    kept.ask(name)
    kept.tell(name, 0, 0.5)
    path = f"{name}/test/artifacts/network.npz"
    assert kept.code(kept.put(path)) == "not_found"
    assert kept.post(f"/v1/studies/{name}:test", {}).status_code == 202
    assert kept.code(kept.put(path)) == "lease_lost"
    (job,) = kept.ask_any()["trials"]
    assert kept.put(path, attempt=job["attempt"]).status_code == 200
    assert [item["name"] for item in kept.get(f"/v1/studies/{name}/test/artifacts").json()["items"]] == ["network.npz"]
    assert kept.get(f"/v1/studies/{path}").content == DATA


@pytest.mark.slow
def test_without_a_place_on_postgresql_the_refusal_names_the_variable(postgres_url: str) -> None:
    app = create_app(Settings(database_url=postgres_url), with_keys=False)
    with TestClient(app, raise_server_exceptions=False) as client:
        api = Api(client, None)
        name = api.create()
        api.ask(name)
        refused = client.put(f"/v1/studies/{name}/trials/0/artifacts/a?attempt=1", content=b"x")
        assert refused.status_code == 503
        assert "HPO_ARTIFACTS" in refused.json()["detail"]
        assert api.get(f"/v1/studies/{name}/trials/0/artifacts").json() == {"items": []}


@pytest.mark.slow
def test_two_servers_share_a_folder(postgres_url: str, tmp_path: Path) -> None:
    settings = Settings(database_url=postgres_url, artifacts=str(tmp_path / "shared"))
    with (
        TestClient(create_app(settings, with_keys=False)) as one,
        TestClient(create_app(settings, with_keys=False)) as two,
    ):
        first, second = Api(one, None), Api(two, None)
        name = first.create()
        first.ask(name)
        path = f"/v1/studies/{name}/trials/0/artifacts/a"
        for number, server in enumerate((one, two, one)):
            assert server.put(path + "?attempt=1", content=b"%d" % number).status_code == 200
            assert {api.get(path).content for api in (first, second)} == {b"%d" % number}
        assert second.trial(name, 0)["artifacts"] == ["a"]
