"""NUL is refused in every text that comes in, at its place; what an SDK's trial says with one is told without it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from hpo_service.cli.study_file import StudyFileRefused, read_study_file
from hpo_service.client import NEVER, Client
from hpo_service.domain import nul
from hpo_service.domain.errors import Invalid
from hpo_service.store import optuna_views
from hpo_service.store.engine import database_url as url_of
from hpo_service.store.engine import reading_engine, writing_engine

N = "a\0b"
SPACE: dict[str, Any] = {
    "x": {"type": "categorical", "choices": ["a", "b"]},
    "y": {"type": "float", "low": 0, "high": 1},
}
_numbers = itertools.count()


def study(**fields: Any) -> dict[str, Any]:
    return {"name": f"nul-{next(_numbers)}", "search_space": SPACE, "sampler": {"name": "random", "seed": 1}, **fields}


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"metadata": {"note": N}}, "/metadata/note"),
        ({"metadata": {"deep": [1, {"er": ["x", N]}]}}, "/metadata/deep/1/er/1"),
        ({"metadata": {N: 1}}, "/metadata"),
        ({"metadata": {"a/b": {N: {"c": N}}}}, "/metadata/a~1b"),
        ({"objective": {"kind": "mine", "path": N}}, "/objective/path"),
        ({"objective": {"kind": N}}, "/objective/kind"),
        ({"search_space": {**SPACE, "z": {"type": "categorical", "choices": ["a", N]}}}, "/search_space/z/choices/1"),
        ({"search_space": {**SPACE, N: SPACE["y"]}}, "/search_space"),
        ({"sampler": {"name": "tpe", "params": {"multivariate": N}}}, "/sampler/params/multivariate"),
        ({"pruner": {"name": "median", "params": {N: 1}}}, "/pruner/params"),
        ({"name": N}, "/name"),
        ({"lease_seconds": N}, "/lease_seconds"),
    ],
)
def test_a_study_with_nul_is_refused_where_it_stands(fields: dict[str, Any], pointer: str, either: Any) -> None:
    answer = either.post("/v1/studies", study(**fields))
    assert either.pointers(answer) == [pointer]
    assert answer.json()["code"] == "invalid"
    assert "NUL" in answer.json()["detail"]


def test_every_call_of_people_and_workers_refuses_it(either: Any) -> None:
    name = either.create()
    (given,) = either.ask(name)
    trial = f"/v1/studies/{name}/trials/{given['number']}"
    ask = {"worker_id": N, "request_id": "r"}
    report = {"step": 1, "value": 1, "metrics": {"a": N}}
    handing_back = {"study": name, "number": 0, "call": "release", "attempt": 1, "reason": N}
    calls: list[tuple[str, dict[str, Any], str]] = [
        (f"{trial}:tell", {"attempt": 1, "state": "FAIL", "reason": N}, "/reason"),
        (f"{trial}:tell", {"attempt": 1, "state": "FAIL", "metrics": {"a": {N: 1}}}, "/metrics/a"),
        (f"{trial}:tell", {"attempt": 1, "state": "FAIL", "next": {**ask}}, "/next/worker_id"),
        (f"{trial}:report", {"attempt": 1, "reports": [report]}, "/reports/0/metrics/a"),
        (f"{trial}:heartbeat", {"attempt": 1, "dataset_sha256": N}, "/dataset_sha256"),
        (f"{trial}:release", {"attempt": 1, "reason": N}, "/reason"),
        (f"/v1/studies/{name}/trials:ask", ask, "/worker_id"),
        ("/v1/trials:ask", {"worker_id": "w", "request_id": N, "objectives": ["x"]}, "/request_id"),
        ("/v1/trials:ask", {"worker_id": "w", "request_id": "r", "objectives": [N]}, "/objectives/0"),
        ("/v1/trials:batch", {"calls": [handing_back]}, "/calls/0/reason"),
        (f"/v1/studies/{name}/trials:enqueue", {"trials": [{"params": {"x": N}}]}, "/trials/0/params/x"),
        (f"/v1/studies/{name}/trials:import", {"trials": [{"params": {N: 1}, "state": "FAIL"}]}, "/trials/0/params"),
        (f"/v1/studies/{name}:narrow", {"keep": N}, "/keep"),
        (f"/v1/studies/{name}:test", {"ensemble": N}, "/ensemble"),
    ]  # fmt: skip
    for path, body, pointer in calls:
        assert either.pointers(either.post(path, body)) == [pointer], path
    assert either.pointers(either.patch(f"/v1/studies/{name}", {"metadata": {"a": N}})) == ["/metadata/a"]
    assert either.trial(name, given["number"])["state"] == "RUNNING"


def test_the_text_that_looks_like_its_escape_is_taken(either: Any) -> None:
    body = study(metadata={"note": "\\u0000", "backslash": "\\\\u0000"})
    assert either.post("/v1/studies", body).status_code == 201
    assert either.study(body["name"])["metadata"] == body["metadata"]


@pytest.mark.parametrize("path", ["/v1/studies/a%00b", "/v1/studies/a%00b/trials", "/v1/studies/a%00b/trials/0"])
def test_a_path_with_it_leads_nowhere(path: str, either: Any) -> None:
    assert either.get(path).status_code == 404
    assert either.post("/v1/workers/a%00b:drain").status_code == 404


@pytest.mark.parametrize("query", ["state=%00", "page_token=%00", "page_token=AA", "order_by=a%00"])
def test_a_query_with_it_is_refused(query: str, either: Any) -> None:
    assert either.get(f"/v1/studies/{either.create()}/trials?{query}").status_code == 422


@pytest.mark.parametrize(
    ("text", "expected"),
    [('"a\\u0000"', '"a\\ufffd"'), ('"\\\\u0000"', None), ('"\\\\\\u0000"', '"\\\\\\ufffd"')],
)
def test_its_escape_is_told_from_the_text_that_looks_like_it(text: str, expected: str | None) -> None:
    assert nul.replaced(text.encode()).decode() == (expected or text)
    assert nul.stands_in(text) is (expected is not None)


@pytest.mark.parametrize("name", ["s.json", "s.toml"])
def test_a_study_file_with_it_is_refused_before_anybody_is_asked(name: str, tmp_path: Path) -> None:
    text = (
        json.dumps(study(metadata={"note": N}))
        if name == "s.json"
        else ('name = "s"\n[search_space.y]\ntype = "float"\nlow = 0.0\nhigh = 1.0\n[metadata]\nnote = "a\\u0000b"\n')
    )
    (tmp_path / name).write_text(text)
    with pytest.raises(StudyFileRefused, match="/metadata/note") as refusal:
        read_study_file(tmp_path / name).spec()
    assert "NUL" in str(refusal.value)


def test_what_comes_past_the_api_is_refused_at_the_last_door(database_url: str) -> None:
    engine = writing_engine(url_of(database_url))
    with pytest.raises(Invalid), engine.begin() as connection:
        connection.execute(sa.insert(sa.table("hpo_keys", sa.column("studies", sa.JSON))), {"studies": [N]})
    engine.dispose()


def test_what_a_trial_says_with_nul_is_told_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []

    class Kept:
        def call(self, _method: str, _path: str, content: bytes, *_: Any) -> Any:
            sent.append(content)
            raise OSError("seen enough")

    client = Client("http://127.0.0.1:1", retries=NEVER)
    monkeypatch.setattr(client._transport, "_pool", Kept())
    for call in (
        lambda: client.tell("s", 0, 1, "FAIL", reason=N, metrics={N: N}),
        lambda: client.report("s", 0, 1, [{"step": 0, "value": 1, "metrics": {"a": N}}]),
        lambda: client.release("s", 0, 1, N),
        lambda: client.batch([{"study": "s", "number": 0, "call": "release", "attempt": 1, "reason": N}]),
    ):
        with pytest.raises(Exception, match="seen enough"):
            call()
    assert len(sent) == 4
    assert all("\ufffd" in str(json.loads(content)) and "\0" not in str(json.loads(content)) for content in sent)
    with pytest.raises(Exception, match="seen enough"):
        client.create({"name": "s", "metadata": {"a": N}})
    assert "\\u0000" in sent[-1].decode()  # that is for the server to refuse


def test_optunas_views_are_readable_after_all_that(own: Any, database_url: str) -> None:
    assert own.post("/v1/studies", study(metadata={"note": N})).status_code == 422
    own.finish(own.create(metadata={"note": "fine"}), 1.0)
    engine = reading_engine(url_of(database_url))
    with engine.connect() as connection:
        for view in optuna_views.NAMES:
            connection.execute(sa.text(f"SELECT * FROM {view}")).all()
    engine.dispose()
