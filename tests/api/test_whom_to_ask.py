"""Asks of any study: which studies are looked at, in which order, and at what cost."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from hpo_service.operations.long_draws import LongDraws

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
_requests = itertools.count()


def ask_any(client: Any, **fields: Any) -> list[str]:
    """The studies of what is given."""
    body = {"worker_id": "w", "request_id": f"whom-{next(_requests)}", **fields}
    answer = client.post("/v1/trials:ask", json=body)
    assert answer.status_code == 200, answer.text
    return [trial["study"] for trial in answer.json()["trials"]]


def act(client: Any, name: str, what: str) -> None:
    answer = client.post(f"/v1/studies/{name}{what}")
    assert answer.status_code < 300, answer.text


def limited(client: Any, name: str, **limits: Any) -> None:
    assert client.patch(f"/v1/studies/{name}", json={"limits": limits}).status_code == 200


@pytest.mark.slow
def test_those_with_fewest_running_come_first_and_full_ones_not_at_all(client, create):
    for name in ("one", "two", "three"):
        create(name=name, objective={"kind": "k"})
    create(name="full", objective={"kind": "k"}, limits={"running": 1})
    create(name="nobodys")
    create(name="another", objective={"kind": "other"})
    given = [ask_any(client, objectives=["k"])[0] for _ in range(10)]
    assert sorted(given[:4]) == ["full", "one", "three", "two"]
    assert sorted(given[4:7]) == ["one", "three", "two"]
    assert sorted(given[7:]) == ["one", "three", "two"]
    assert ask_any(client, objectives=["nothing"]) == []
    assert ask_any(client) == ["another"]


@pytest.mark.slow
def test_what_changes_a_study_changes_whether_it_is_asked(client, create):
    create(name="s", objective={"kind": "k"}, limits={"trials": 1})
    assert ask_any(client) == ["s"]
    assert ask_any(client) == []
    limited(client, "s", trials=2)
    act(client, "s", ":pause")
    assert ask_any(client) == []
    act(client, "s", ":resume")
    assert ask_any(client) == ["s"]
    assert ask_any(client) == []
    release = client.post("/v1/studies/s/trials/0:release", json={"attempt": 1})
    assert release.status_code == 200
    assert ask_any(client) == ["s"]
    limited(client, "s", trials=None, running=2)
    assert ask_any(client) == []
    limited(client, "s", running=None)
    assert ask_any(client) == ["s"]


@pytest.mark.slow
def test_a_study_with_something_is_found_behind_many_with_nothing(client, create):
    """Rounds whose trials all run have nothing to give, which no column says."""
    for number in range(20):
        narrowing = {"rounds": 2, "trials_per_round": 1}
        create(name=f"round-{number}", objective={"kind": "k"}, narrowing=narrowing)
    for _ in range(20):
        assert ask_any(client) != []
    create(name="last", objective={"kind": "k"})
    assert ask_any(client) == ["last"]
    for _ in range(3):
        assert ask_any(client) == ["last"]
    assert [ask_any(client), ask_any(client)] == [["last"], ["last"]]


@pytest.mark.slow
@pytest.mark.parametrize("count", [40, 400])
def test_a_look_reads_a_few_studies_however_many_there_are_and_no_spec(client, create, count):
    create(name="first", objective={"kind": "k"})
    engine = client.app.state.service.database._write_engine
    row = "spec, created_with, state, created_at, lease_seconds, revision, version, kind"
    numbers = f"numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})"
    insert = (
        f"INSERT INTO hpo_studies (name, {row}) WITH RECURSIVE {numbers} "
        f"SELECT 'copy-' || n, {row} FROM hpo_studies, numbers WHERE name = 'first'"
    )
    with engine.connect() as connection:
        connection.execute(sa.text(insert))
        connection.commit()
    seen: list[str] = []

    def noted(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    reader = client.app.state.service.database._reader.engine
    event.listen(reader, "after_cursor_execute", noted)
    try:
        assert ask_any(client, objectives=["k"]) == ["first"]
    finally:
        event.remove(reader, "after_cursor_execute", noted)
    looks = [statement for statement in seen if "hpo_studies.kind" in statement]
    assert len(looks) == 1
    assert "LIMIT" in looks[0]
    assert not any("spec" in statement for statement in looks)


def test_a_study_whose_draws_fail_keeps_nobody_from_the_others(client, create, monkeypatch):
    create(name="a-bad", objective={"kind": "k"}, sampler={"name": "gp"})
    create(name="b-good", objective={"kind": "k"}, limits={"running": 2})

    async def fails(_draws: Any, needed: Any) -> Any:
        raise RuntimeError("this sampler cannot")

    monkeypatch.setattr(LongDraws, "_draw_here_or_there", fails)
    assert [ask_any(client), ask_any(client)] == [["b-good"], ["b-good"]]
    answer = client.post("/v1/trials:ask", json={"worker_id": "w", "request_id": "none-left"})
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "a-bad" in answer.json()["detail"]
    release = client.post("/v1/studies/b-good/trials/0:release", json={"attempt": 1})
    assert release.status_code == 200
    assert ask_any(client, wait_seconds=30) == ["b-good"]
