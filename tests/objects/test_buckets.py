"""A bucket: what is put there is read from there, and while it is away nothing is lost and nothing is half."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from hpo_service.api.app import create_app
from hpo_service.objects.object_store import ObjectMissing, open_store
from hpo_service.settings import Settings
from tests.api.conftest import Api
from tests.objects.small_s3 import small_s3

pytest.importorskip("obstore", reason="needs obstore: pip install 'hpo-service[artifacts]'")


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "y"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    return monkeypatch


@pytest.mark.slow
def test_an_object_in_parts_is_read_as_a_whole_and_in_ranges(credentials: pytest.MonkeyPatch) -> None:
    data = os.urandom(20_000_000)  # three parts
    with small_s3() as (port, objects):
        credentials.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        store = open_store("s3://bucket/folder")
        upload = store.begin("key", len(data))
        for start in range(0, len(data), 2**20):
            upload.write(data[start : start + 2**20])
        assert objects == {}  # nothing to be found before all of it is there
        upload.keep()
        assert objects == {"/bucket/folder/key": data}
        assert b"".join(store.read("key", 0, len(data))) == data
        assert b"".join(store.read("key", 9_999_999, 10_000_009)) == data[9_999_999:10_000_009]
        half = store.begin("half", None)
        half.write(data)
        half.drop()
        with pytest.raises(ObjectMissing):
            list(store.read("half", 0, 1))
        for _ in range(2):
            store.delete("key")
        assert objects == {}


@pytest.mark.parametrize("place", ["http://127.0.0.1/x", "s3://", "ftp://x/y"])
def test_a_place_that_cannot_be_is_refused_at_the_start(place: str) -> None:
    with pytest.raises(ValueError, match="HPO_ARTIFACTS"):
        open_store(place)


@pytest.mark.slow
def test_a_bucket_that_is_away_is_503_and_comes_back(credentials: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with small_s3() as (port, objects):
        credentials.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        settings = Settings(database_url=f"sqlite:///{tmp_path}/hpo.db", artifacts="s3://bucket/folder")
    app = create_app(settings, with_keys=False, with_reaper=False)
    with TestClient(app, raise_server_exceptions=False) as client:
        api = Api(client, None)
        name = api.create()
        api.ask(name)
        path = f"/v1/studies/{name}/trials/0/artifacts/a"
        away = client.put(path + "?attempt=1", content=b"data")
        assert away.status_code == 503
        assert away.json()["retryable"] is True
        assert "bucket" in away.json()["detail"]
        assert api.trial(name, 0)["artifacts"] == []
        with small_s3(port, objects):
            assert client.put(path + "?attempt=1", content=b"data").status_code == 200
            assert client.get(path).content == b"data"
            assert client.portal is not None
            client.portal.call(app.state.artifacts.sweep)
            assert list(objects.values()) == [b"data"]
        assert client.get(path).status_code == 503
