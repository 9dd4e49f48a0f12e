"""What belongs to one trial or study is bounded over many calls: at the bound it is taken, above it nothing is done."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from pydantic_core import to_json

from hpo_service.domain import sizes
from hpo_service.operations import events, study_work, workers
from hpo_service.reading import readings, trial_pieces
from hpo_service.store import report_rows, trial_reports, trial_rows

_requests = itertools.count()
ORDINARY = {"content-type": "application/json; charset=utf-8"}  # goes past the fast path
WAYS = [pytest.param({"content-type": "application/json"}, id="hot"), pytest.param(ORDINARY, id="ordinary")]


def document(size: int, **members: Any) -> dict[str, Any]:
    """An object that takes so many bytes as compact JSON, some of them in characters of several bytes."""
    begun = {**members, "text": "é€"}
    return {**begun, "text": "é€" + "x" * (size - len(to_json(begun)))}


def sent(api: Any, path: str, body: Any, way: dict[str, str]) -> Any:
    return api.call("POST", path, content=to_json(body), headers=way)


def running(api: Any, **fields: Any) -> tuple[str, str]:
    name = api.create(**fields)
    api.ask(name)
    return name, f"/v1/studies/{name}/trials/0"


def report(step: int, value: float = 0.5, **fields: Any) -> dict[str, Any]:
    return {"step": step, "value": value, **fields}


def too_large(answer: Any) -> bool:
    return (answer.status_code, api_code(answer)) == (413, "too_large")


def api_code(answer: Any) -> str:
    return str(answer.json().get("code"))


@pytest.mark.parametrize("way", WAYS)
def test_the_metrics_of_a_report(either: Any, way: dict[str, str]) -> None:
    name, trial = running(either)
    at_the_bound = {"attempt": 1, "reports": [report(1, metrics=document(sizes.REPORT_METRICS))]}
    assert sent(either, trial + ":report", at_the_bound, way).status_code == 200
    above = {"attempt": 1, "reports": [report(2), report(3, metrics=document(sizes.REPORT_METRICS + 1))]}
    refused = sent(either, trial + ":report", above, way)
    assert too_large(refused)
    assert "step 3" in refused.json()["detail"]
    assert [each["step"] for each in either.trial(name, 0)["reports"]] == [1]


@pytest.mark.parametrize("way", WAYS)
def test_the_metrics_of_a_tell(either: Any, way: dict[str, str]) -> None:
    name, trial = running(either)
    told = {"attempt": 1, "state": "COMPLETE", "values": [0.5]}
    assert too_large(sent(either, trial + ":tell", {**told, "metrics": document(sizes.TELL_METRICS + 1)}, way))
    assert either.trial(name, 0)["state"] == "RUNNING"
    metrics = document(sizes.TELL_METRICS)
    assert sent(either, trial + ":tell", {**told, "metrics": metrics}, way).json()["metrics"] == metrics


def total(reports: list[dict[str, Any]]) -> int:
    """What they take as they read, with a comma after each."""
    return sum(
        len(to_json({"step": r["step"], "value": r["value"], "metrics": r.get("metrics", {})})) + 1 for r in reports
    )


@pytest.mark.parametrize("way", WAYS)
def test_the_reports_of_a_trial(either: Any, way: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = [report(1, metrics={"a": "é" * 100})], [report(2, 1e-7), report(3, metrics={"b": 1})]
    monkeypatch.setattr(trial_reports, "TRIAL_REPORTS", total(first) + total(second))
    name, trial = running(either)
    for reports in (first, second, first):  # those of a step replace each other
        assert sent(either, trial + ":report", {"attempt": 1, "reports": reports}, way).status_code == 200
    for reports in ([report(4)], [report(3, metrics={"b": 10})], [report(0), report(1)], [report(4), report(4)]):
        before = either.trial(name, 0)["reports"]
        assert too_large(sent(either, trial + ":report", {"attempt": 1, "reports": reports}, way)) or total(
            [*before, *reports]
        ) <= total(second) + 2 * total(first)
    smaller = [report(1), report(4)]
    assert sent(either, trial + ":report", {"attempt": 1, "reports": smaller}, way).status_code == 200
    assert sent(either, trial + ":heartbeat", {"attempt": 1}, way).status_code == 200


@pytest.mark.parametrize("way", WAYS)
def test_the_steps_of_a_trial(either: Any, way: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_reports, "MOST_STEPS", 3)
    name, trial = running(either)
    three = [report(1), report(5), report(3), report(5, 0.7)]
    assert sent(either, trial + ":report", {"attempt": 1, "reports": three}, way).status_code == 200
    refused = sent(either, trial + ":report", {"attempt": 1, "reports": [report(1, 0.1), report(4)]}, way)
    assert refused.status_code == 422
    assert either.pointers(refused) == ["/reports"]
    assert [r["value"] for r in either.trial(name, 0)["reports"]] == [0.5, 0.5, 0.7]
    assert sent(either, trial + ":report", {"attempt": 1, "reports": [report(1, 0.1)]}, way).status_code == 200


@pytest.mark.slow
def test_a_hundred_thousand_steps_are_taken_and_no_more(api: Any) -> None:
    name, trial = running(api, pruner={"name": "threshold", "params": {"upper": 1.0}})
    for start in range(0, sizes.MOST_STEPS, 20_000):
        body = {"attempt": 1, "reports": [report(step) for step in range(start, start + 20_000)]}
        assert sent(api, trial + ":report", body, ORDINARY).status_code == 200
    one_more = {"attempt": 1, "reports": [report(sizes.MOST_STEPS)]}
    assert sent(api, trial + ":report", one_more, ORDINARY).status_code == 422
    assert len(api.trial(name, 0)["reports"]) == sizes.MOST_STEPS


def test_an_attempt_begins_without_the_bytes_of_the_one_before(either: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_reports, "MOST_STEPS", 1)
    name, trial = running(either)
    assert either.post(trial + ":report", {"attempt": 1, "reports": [report(1)]}).status_code == 200
    either.post(trial + ":release", {"attempt": 1})
    assert [given["attempt"] for given in either.ask(name)] == [2]
    assert either.post(trial + ":report", {"attempt": 2, "reports": [report(2)]}).status_code == 200
    assert either.post(trial + ":report", {"attempt": 2, "reports": [report(3)]}).status_code == 422


def test_in_a_batch_each_call_is_refused_by_itself(either: Any) -> None:
    name = either.create()
    either.ask(name, 3)
    large = document(sizes.REPORT_METRICS + 1)
    calls = [
        {"call": "report", "number": 0, "reports": [report(1, metrics=large)]},
        {"call": "report", "number": 1, "reports": [report(1)]},
        {
            "call": "tell",
            "number": 2,
            "state": "COMPLETE",
            "values": [1.0],
            "metrics": document(sizes.TELL_METRICS + 1),
        },
        {"call": "tell", "number": 2, "state": "COMPLETE", "values": [1.0], "metrics": {}},
    ]
    answer = either.post("/v1/trials:batch", {"calls": [{"study": name, "attempt": 1, **call} for call in calls]})
    assert answer.status_code == 207
    assert [result["status"] for result in answer.json()["results"]] == [413, 200, 413, 200]
    assert [result["body"].get("code") for result in answer.json()["results"]] == ["too_large", None, "too_large", None]
    assert either.trial(name, 0)["reports"] == []


def test_the_steps_of_a_trial_in_a_batch(either: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_reports, "MOST_STEPS", 2)
    name, _ = running(either)
    calls = [
        {"study": name, "number": 0, "call": "report", "attempt": 1, "reports": [report(step)]} for step in range(4)
    ]
    answer = either.post("/v1/trials:batch", {"calls": calls})
    assert [result["status"] for result in answer.json()["results"]] == [200, 200, 422, 422]
    assert [each["step"] for each in either.trial(name, 0)["reports"]] == [0, 1]


def test_the_answers_of_a_batch(either: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "BATCH_ANSWERS", 3000)
    name = either.create()
    either.ask(name, 4)
    told = {
        "study": name,
        "call": "tell",
        "attempt": 1,
        "state": "COMPLETE",
        "values": [1.0],
        "metrics": document(1000),
    }
    answer = either.post("/v1/trials:batch", {"calls": [{**told, "number": number} for number in range(4)]})
    assert [result["status"] for result in answer.json()["results"]] == [200, 200, 413, 413]
    assert [either.trial(name, number)["state"] for number in range(4)] == ["COMPLETE"] * 2 + ["RUNNING"] * 2


@pytest.mark.parametrize("imported", ["report", "reports"])
def test_an_import(either: Any, imported: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = either.create()
    if imported == "report":
        reports = [report(1, metrics=document(sizes.REPORT_METRICS + 1))]
    else:
        monkeypatch.setattr(trial_reports, "TRIAL_REPORTS", 100)
        reports = [report(step) for step in range(9)]
    trials = [
        {"params": {"x": 0.5}, "state": "COMPLETE", "values": [1.0]},
        {"params": {"x": 0.5}, "state": "COMPLETE", "values": [1.0], "reports": reports},
    ]
    assert too_large(either.post(f"/v1/studies/{name}/trials:import", {"trials": trials}))
    assert either.study(name)["counts"]["COMPLETE"] == 0


@pytest.mark.parametrize(("field", "most"), [("objective", sizes.OBJECTIVE), ("metadata", sizes.METADATA)])
def test_objective_and_metadata(either: Any, field: str, most: int) -> None:
    kept = document(most, kind="mine")
    name = either.create(**{field: kept})
    assert either.study(name)[field] == kept
    above = {"name": "too-large", "search_space": {"x": {"type": "int", "low": 0, "high": 1}}}
    above[field] = document(most + 1, kind="mine")
    assert too_large(either.post("/v1/studies", above))
    assert either.get("/v1/studies/too-large").status_code == 404


def test_metadata_by_patch(either: Any) -> None:
    name = either.create()
    kept = document(sizes.METADATA)
    assert either.patch(f"/v1/studies/{name}", {"metadata": kept}).json()["metadata"] == kept
    refused = either.patch(f"/v1/studies/{name}", {"metadata": document(sizes.METADATA + 1), "limits": {"trials": 3}})
    assert too_large(refused)
    assert either.study(name)["limits"]["trials"] is None


def test_a_choice(either: Any) -> None:
    longest = "x" * (sizes.CHOICE - 2)
    name = either.create(search_space={"x": {"type": "categorical", "choices": [longest]}})
    assert either.ask(name)[0]["params"] == {"x": longest}
    for choice in (longest + "x", "é" * (sizes.CHOICE // 2), '"' * (sizes.CHOICE // 2)):
        space = {"x": {"type": "categorical", "choices": ["a", choice]}}
        assert too_large(either.post("/v1/studies", {"name": "too-large", "search_space": space}))


def test_the_rounds_of_a_study(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "MOST_ROUNDS", 3)
    name = api.create()
    assert [api.post(f"/v1/studies/{name}:narrow").status_code for _ in range(3)] == [201, 201, 422]
    monkeypatch.setattr(sizes, "ROUNDS", 100)
    assert too_large(api.post(f"/v1/studies/{api.create()}:narrow", {"keep": 0.5}))
    narrowing = {"rounds": 9, "trials_per_round": 2}
    space = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
    assert too_large(api.post("/v1/studies", {"name": "too-large", "search_space": space, "narrowing": narrowing}))


def test_what_was_taken_before_there_was_a_bound_stays_and_goes_on(
    either: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, trial = running(either)
    many = [report(step, metrics={"a": step}) for step in range(9)]
    assert either.post(trial + ":report", {"attempt": 1, "reports": many}).status_code == 200
    monkeypatch.setattr(trial_reports, "MOST_STEPS", 3)
    monkeypatch.setattr(trial_reports, "TRIAL_REPORTS", 100)
    assert either.post(trial + ":report", {"attempt": 1, "reports": [report(3, metrics={"a": 1})]}).status_code == 200
    assert either.post(trial + ":report", {"attempt": 1, "reports": [report(9)]}).status_code == 422
    assert len(either.tell(name, 0, 0.5)["reports"]) == 9


# -- what answers carry -------------------------------------------------------------------------------------


def large_trial(api: Any, reports: int, kib: int = 16, **fields: Any) -> tuple[str, list[dict[str, Any]]]:
    """A trial that runs, with so many reports of so many KiB; and what it reads as."""
    name, trial = running(api, **fields)
    every = [report(step, step / 7, metrics=document(kib * 1024, step=step)) for step in range(reports)]
    for start in range(0, reports, 960 // kib):
        body = {"attempt": 1, "reports": every[start : start + 960 // kib]}
        assert sent(api, trial + ":report", body, ORDINARY).status_code == 200
    return name, every


def the_last_that_fit(reports: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    while total(reports) > most:
        reports = reports[1:]
    return reports


@pytest.mark.slow
@pytest.mark.parametrize("call", ["tell", "release", "stop"])
def test_a_workers_answer_carries_the_last_reports_that_fit(either: Any, call: str) -> None:
    name, every = large_trial(either, 200)
    carried = the_last_that_fit(every, sizes.CARRIED_REPORTS)
    assert 25 < len(carried) < 35
    if call == "stop":
        answers = [either.post(f"/v1/studies/{name}/trials/0:stop") for _ in range(2)]
    else:
        body = {"attempt": 1, **({"state": "COMPLETE", "values": [0.5]} if call == "tell" else {})}
        answers = [either.post(f"/v1/studies/{name}/trials/0:{call}", body) for _ in range(2)]
    assert [answer.json()["reports"] for answer in answers] == [carried, carried]
    assert either.trial(name, 0)["reports"] == every


@pytest.mark.slow
def test_ten_thousand_bare_reports_are_carried_all(either: Any) -> None:
    name, trial = running(either)
    every = [{"step": step, "value": 0.5, "metrics": {}} for step in range(10_000)]
    assert sent(either, trial + ":report", {"attempt": 1, "reports": every}, ORDINARY).status_code == 200
    assert either.tell(name, 0, 0.5)["reports"] == every


def test_reports_that_are_not_in_memory_any_more_are_carried_where_others_became_smaller(either: Any) -> None:
    name, every = large_trial(either, 100)
    smaller = [report(step) for step in range(60, 100)]
    assert either.post(f"/v1/studies/{name}/trials/0:report", {"attempt": 1, "reports": smaller}).status_code == 200
    now = every[:60] + [{**each, "metrics": {}} for each in smaller]
    answer = either.post(f"/v1/studies/{name}/trials/0:release", {"attempt": 1})
    assert answer.json()["reports"] == the_last_that_fit(now, sizes.CARRIED_REPORTS)


def test_an_event_carries_the_last_reports_that_fit(own: Any) -> None:
    name, every = large_trial(own, 60)
    small, few = large_trial(own, 2)
    service = own.client.app.state.service

    def look(study: str) -> Any:
        return service.database.read(
            lambda record: events._since(record, record.study(study), record.study(study).id, 0)
        )

    def trials_in(study: str) -> list[Any]:
        sent = [event.sent.decode().split("\n") for event in look(study).events]
        return [json.loads(data.removeprefix("data: ")) for kind, _, data, *_ in sent if kind == "event: trial"]

    (trial,) = trials_in(name)
    assert trial["reports"] == the_last_that_fit(every, sizes.CARRIED_REPORTS)
    assert [trial["reports"] for trial in trials_in(small)] == [few]


@pytest.mark.slow
@pytest.mark.parametrize("order_by", ["number", "value"])
def test_pages_of_large_trials_hold_fewer_and_all_of_them_everything(
    either: Any, order_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_pieces, "PAGE", 100_000)
    monkeypatch.setattr(report_rows, "PIECE", 20_000)
    monkeypatch.setattr(trial_rows, "PIECE", 20_000)
    monkeypatch.setattr(trial_pieces, "PIECE", 20_000)
    name = either.create(directions=["minimize"])
    either.ask(name, 12)
    written = {}
    for number in range(12):
        many = 12 if number == 5 else number % 3
        written[number] = [report(step, metrics=document(15_000)) for step in range(many)]
        body = {"attempt": 1, "reports": written[number]}
        assert either.post(f"/v1/studies/{name}/trials/{number}:report", body).status_code == 200
        told = {"attempt": 1, "state": "COMPLETE", "values": [float(-number)], "metrics": document(3000)}
        assert either.post(f"/v1/studies/{name}/trials/{number}:tell", told).status_code == 200
    found: list[Any] = []
    pages, token = 0, ""
    while token is not None:
        query = f"order_by={order_by}&page_size=1000&page_token={token}"
        page = either.get(f"/v1/studies/{name}/trials?{query}").json()
        found += page["items"]
        pages, token = pages + 1, page["next_page_token"]
    assert [trial["number"] for trial in found] == (
        list(range(12)) if order_by == "number" else list(range(11, -1, -1))
    )
    assert {trial["number"]: trial["reports"] for trial in found} == written
    assert all(trial == either.trial(name, trial["number"]) for trial in found)
    assert pages >= 2
    exact = either.get(f"/v1/studies/{name}/trials?page_size=3").json()
    assert [trial["number"] for trial in exact["items"]] == [0, 1, 2]


@pytest.mark.slow
def test_pages_of_large_studies_hold_fewer(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [own.create(metadata=document(10_000)) for _ in range(45)]
    for most, at_least in ((2**23, 1), (25_000, 15)):
        monkeypatch.setattr(readings, "PAGE", most)
        found: list[str] = []
        pages, token = 0, ""
        while token is not None:
            page = own.get(f"/v1/studies?page_size=1000&page_token={token}").json()
            found += [study["name"] for study in page["items"]]
            pages, token = pages + 1, page["next_page_token"]
        assert found == names
        assert pages >= at_least
    sized = own.get("/v1/studies?page_size=45").json()
    assert len(sized["items"]) <= 45


@pytest.mark.slow
def test_an_ask_for_many_remembers_the_objective_once(either: Any) -> None:
    name = either.create(objective=document(sizes.OBJECTIVE, kind="mine"))
    body = {"worker_id": "w", "request_id": f"many-{next(_requests)}", "count": 100}
    first = either.post(f"/v1/studies/{name}/trials:ask", body).json()
    assert len(first["trials"]) == 100
    assert first["trials"][99]["objective"] == document(sizes.OBJECTIVE, kind="mine")
    assert either.post(f"/v1/studies/{name}/trials:ask", body).json() == first
    service = either.client.app.state.service
    study = service.database.read(lambda record: record.study(name))
    kept = service.database.read(lambda record: record.answer(f"ask {study.id}", body["request_id"]))
    assert len(to_json(kept)) < 100_000


def test_an_ask_for_many_large_trials_gives_fewer(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_work, "GRANTED", 50_000)
    name = api.create(objective=document(20_000, kind="mine"))
    assert len(api.ask(name, 100)) == 2
    either_way = api.create(objective=document(200_00, kind="mine"), limits={"trials": 1})
    assert len(api.ask(either_way, 100)) == 1


def test_the_members_of_a_test(either: Any) -> None:
    name = either.create(
        objective={"kind": "neural_network"},
        search_space={"learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2}},
        limits={"trials": 1},
    )
    either.finish(name, 0.9)
    assert either.post(f"/v1/studies/{name}:test").status_code == 202
    told = {"attempt": 1, "state": "COMPLETE", "test_accuracy": 0.9, "validation_accuracy": 0.9}
    told |= {"dataset_sha256": "0" * 64}
    path = f"/v1/studies/{name}/test:tell"
    assert too_large(either.post(path, {**told, "members": [document(sizes.TELL_METRICS)]}))
    assert either.post(path, {**told, "members": [{}] * 101}).status_code == 422


@pytest.mark.slow
def test_the_description_states_every_bound(api: Any) -> None:
    text = api.get("/v1/openapi.json").json()["components"]["schemas"]

    def bound(schema: str, name: str) -> Any:
        field = text[schema]["properties"][name]
        (described,) = [each for each in (field, *field.get("anyOf", ())) if "x-maxBytes" in each]
        assert f"{described['x-maxBytes']:,}" in described["description"]
        return described["x-maxBytes"]

    assert bound("ReportedValue", "metrics") == sizes.REPORT_METRICS
    assert bound("Tell", "metrics") == bound("BatchTell", "metrics") == sizes.TELL_METRICS
    assert bound("Reports", "reports") == bound("BatchReport", "reports") == sizes.TRIAL_REPORTS
    assert text["Reports"]["properties"]["reports"]["maxItems"] == sizes.MOST_STEPS
    assert "100,000 different steps" in text["Reports"]["properties"]["reports"]["description"]
    assert bound("StudySpec", "objective") == sizes.OBJECTIVE
    assert bound("StudySpec", "metadata") == bound("Patch", "metadata") == sizes.METADATA
    assert bound("TestResult", "members") == sizes.TELL_METRICS


def test_the_bounds_lie_where_the_contract_has_them() -> None:
    kib, mib = 2**10, 2**20
    assert 16 * kib <= sizes.REPORT_METRICS <= 256 * kib
    assert 256 * kib <= sizes.TELL_METRICS <= 512 * kib
    assert sizes.MOST_STEPS >= 100_000
    assert 64 * mib >= sizes.TRIAL_REPORTS
    assert 64 * kib <= sizes.OBJECTIVE <= 256 * kib
    assert 64 * kib <= sizes.METADATA <= 256 * kib
    assert 512 * kib == sizes.CARRIED_REPORTS
