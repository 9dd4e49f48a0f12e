"""What a page shows: thinned histories and curves, failures by reason, workers of a study, a line for each study."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

REASON = "CUDA out of memory: tried to allocate {} GiB"


def history(api: Any, name: str, points: int = 2000) -> Any:
    answer = api.get(f"/v1/studies/{name}/history?points={points}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def with_values(api: Any, *values: float, **fields: Any) -> str:
    name = str(api.create(**fields))
    trials = [{"params": {"x": 0.5}, "state": "COMPLETE", "values": [value]} for value in values]
    for start in range(0, len(trials), 1000):
        api.imported(name, *trials[start : start + 1000])
    return name


def test_a_small_study_is_told_whole(api: Any) -> None:
    name = with_values(api, 0.1, 0.5, 0.3, 0.7)
    told = history(api, name)
    assert (told["study"], told["trials"], told["shown"]) == (name, 4, 4)
    assert [item["number"] for item in told["items"]] == [0, 1, 2, 3]
    assert told["best_so_far"] == [0, 1, 3]
    assert told["items"][1]["values"] == [0.5]
    assert told["items"][1]["params"] == {"x": 0.5}


def test_however_few_are_told_the_best_steps_and_what_runs_are_among_them(api: Any) -> None:
    values = [0.5 + (0.4 if n == 37 else -0.3 if n % 7 else 0.0) for n in range(400)]
    name = with_values(api, *values)
    (running,) = api.ask(name)
    told = history(api, name, points=20)
    assert (told["trials"], told["shown"], len(told["items"])) == (401, 20, 20)
    numbers = [item["number"] for item in told["items"]]
    assert numbers == sorted(numbers)
    assert told["best_so_far"] == [0, 37]
    assert {0, 37, running["number"]} <= set(numbers)
    assert max(b - a for a, b in itertools.pairwise(numbers)) < 100, "the rest is spread"


def test_where_every_trial_is_a_step_of_the_best_the_ends_are_kept(api: Any) -> None:
    name = with_values(api, *(n / 100 for n in range(100)))
    told = history(api, name, points=7)
    assert told["shown"] == 7
    assert [told["items"][0]["number"], told["items"][-1]["number"]] == [0, 99]


def test_a_minimized_study_has_steps_downwards(api: Any) -> None:
    name = with_values(api, 3.0, 5.0, 2.0, directions=["minimize"])
    assert history(api, name)["best_so_far"] == [0, 2]


def test_several_directions_have_no_best(api: Any) -> None:
    name = api.create(directions=["maximize", "minimize"])
    api.imported(name, {"params": {"x": 0.1}, "state": "COMPLETE", "values": [1.0, "Infinity"]})
    told = history(api, name)
    assert told["best_so_far"] == []
    assert told["items"][0]["values"] == [1.0, "Infinity"]


def test_a_running_trial_is_told_with_its_last_report(api: Any) -> None:
    name = api.create()
    api.ask(name)
    assert history(api, name)["items"][0]["last_report"] is None
    reports = [{"step": 3, "value": 0.25}, {"step": 1, "value": 0.5}, {"step": 4, "value": "NaN"}]
    api.work(name, 0, "report", reports=reports[:2])
    assert history(api, name)["items"][0]["last_report"] == {"step": 3, "value": 0.25}
    api.work(name, 0, "report", reports=reports)
    assert history(api, name)["items"][0]["last_report"] == {"step": 4, "value": "NaN"}


def test_of_the_metrics_only_what_has_room_in_a_table_is_told(api: Any) -> None:
    name = api.create()
    api.ask(name)
    metrics = {"loss": 0.25, "device": "gpu", "log": "x" * 101, "confusion": [[1, 0], [0, 1]], "final": True}
    api.work(name, 0, "tell", state="COMPLETE", values=[0.5], metrics=metrics)
    assert history(api, name)["items"][0]["metrics"] == {"loss": 0.25, "device": "gpu", "final": True}


@pytest.mark.slow
def test_a_huge_study_is_told_in_few_bytes(api: Any) -> None:
    """Params of 50 kB each: what does not fit into 8 MiB is left out, and the answer says so."""
    choice = "c" * 1000
    space = {f"p{n}": {"type": "categorical", "choices": [f"{choice}{n}"]} for n in range(50)}
    name = api.create(search_space=space)
    params = {parameter: definition["choices"][0] for parameter, definition in space.items()}
    for _ in range(18):
        api.imported(name, *({"params": params, "state": "COMPLETE", "values": [0.5]} for _ in range(18)))
    answer = api.get(f"/v1/studies/{name}/history")
    assert 7 * 2**20 < len(answer.content) < 9 * 2**20
    told = answer.json()
    assert told["trials"] == 324
    assert 100 < told["shown"] == len(told["items"]) < 200


def test_events_go_on_where_the_history_ends(api: Any) -> None:
    name = with_values(api, 0.5)
    assert history(api, name)["revision"] > 0
    before = history(api, name)["revision"]
    api.finish(name, 0.7)
    assert history(api, name)["revision"] > before


@pytest.mark.parametrize("points", ["0", "20001", "x"])
def test_points_have_bounds(api: Any, points: str) -> None:
    assert api.get(f"/v1/studies/{api.create()}/history?points={points}").status_code == 422


# -- curves -----------------------------------------------------------------------------------------------


def test_curves_are_those_of_the_best_and_of_what_runs(api: Any) -> None:
    name = api.create()
    for number, value in enumerate((0.3, 0.9, 0.6)):
        api.ask(name)
        api.work(name, number, "report", reports=[{"step": s, "value": value * s} for s in range(3)])
        api.tell(name, number, value)
    api.ask(name)
    api.work(name, 3, "report", reports=[{"step": 0, "value": 0.1}])
    items = api.get(f"/v1/studies/{name}/curves?best=2&running=5").json()["items"]
    assert [(item["number"], item["state"], item["value"]) for item in items] == [
        (1, "COMPLETE", 0.9),
        (2, "COMPLETE", 0.6),
        (3, "RUNNING", None),
    ]
    assert (items[0]["steps"], items[0]["values"], items[0]["reports"]) == ([0, 1, 2], [0.0, 0.9, 1.8], 3)


def test_a_long_curve_is_thinned_and_keeps_its_ends(api: Any) -> None:
    name = api.create()
    api.ask(name)
    for start in (0, 500):
        api.work(name, 0, "report", reports=[{"step": 10 * s, "value": s} for s in range(start, start + 500)])
    (curve,) = api.get(f"/v1/studies/{name}/curves?points=50").json()["items"]
    assert curve["reports"] == 1000
    assert (curve["steps"][0], curve["steps"][-1]) == (0, 9990)
    assert 45 <= len(curve["steps"]) <= 52
    assert curve["values"] == [step / 10 for step in curve["steps"]]


# -- failures and workers ---------------------------------------------------------------------------------


def test_failures_are_counted_by_reasons_that_differ_in_numbers_only(api: Any) -> None:
    name = api.create(limits={"failures": None})
    for number, reason in enumerate((REASON.format(1.5), REASON.format(2.25), "no such file", REASON.format(7))):
        api.ask(name)
        api.work(name, number, "tell", state="FAIL", reason=reason)
    told = api.get(f"/v1/studies/{name}/failures").json()
    assert told["total"] == 4
    out_of_memory, missing = told["items"]
    assert (out_of_memory["count"], out_of_memory["first_trial"], out_of_memory["last_trial"]) == (3, 0, 3)
    assert out_of_memory["reason"].startswith("CUDA out of memory: tried to allocate")
    assert (missing["reason"], missing["count"]) == ("no such file", 1)


def test_the_workers_of_a_study_are_told_with_their_leases(api: Any) -> None:
    name = api.create()
    api.ask(name, worker_id="gpu-1")
    api.ask(name, worker_id="gpu-2")
    api.tell(name, 0, 0.5)
    second, first = sorted(api.get(f"/v1/studies/{name}/workers").json()["items"], key=lambda w: bool(w["holds"]))[::-1]
    assert (first["worker_id"], first["holds"], first["counts"]["COMPLETE"]) == ("gpu-1", [], 1)
    assert (second["worker_id"], second["counts"]["RUNNING"], second["draining"]) == ("gpu-2", 1, False)
    assert [(held["number"], held["attempt"]) for held in second["holds"]] == [(1, 1)]
    assert second["holds"][0]["lease_expires_at"] > second["holds"][0]["started_at"]


# -- all studies ------------------------------------------------------------------------------------------


def line(api: Any, name: str) -> Any:
    items = api.get("/v1/studies:overview?page_size=1000").json()["items"]
    (found,) = (item for item in items if item["name"] == name)
    return found


@pytest.mark.slow
def test_the_overview_has_a_line_for_each_study(api: Any) -> None:
    name = with_values(api, 0.1, 0.5, 0.3, 0.7, limits={"trials": 10})
    api.ask(name, worker_id="gpu-1")
    api.ask(name, worker_id="gpu-1")
    told = line(api, name)
    assert told["best"] == {"number": 3, "value": 0.7}
    assert told["best_so_far"] == [[0, 0.1], [1, 0.5], [3, 0.7]]
    assert (told["workers"], told["counts"]["RUNNING"], told["counts"]["COMPLETE"]) == (1, 2, 4)
    assert told["active_at"] >= told["created_at"]


@pytest.mark.slow
def test_an_empty_study_has_a_line_too(api: Any) -> None:
    told = line(api, api.create())
    assert (told["best"], told["best_so_far"], told["workers"], told["seconds_left"]) == (None, [], 0, None)


@pytest.mark.slow
def test_the_time_left_follows_from_the_pace(api: Any) -> None:
    name = api.create(limits={"trials": 8})
    for value in (0.1, 0.2, 0.3, 0.4):
        (given,) = api.ask(name)
        api.clock.turn(10)
        api.tell(name, given["number"], value)
    api.ask(name)
    api.clock.turn(10)
    assert 20 < line(api, name)["seconds_left"] < 60


def test_the_overview_is_paged(own: Any) -> None:
    names = {own.create() for _ in range(7)}
    seen, token = [], None
    while True:
        page = own.get(
            "/v1/studies:overview", params={"page_size": 2, **({"page_token": token} if token else {})}
        ).json()
        seen += [item["name"] for item in page["items"]]
        token = page["next_page_token"]
        if token is None:
            break
    assert len(seen) == len(names)
    assert names == set(seen)


# -- study files ------------------------------------------------------------------------------------------

TOML = 'name = "{}"\n[search_space]\nx = {{ type = "float", low = 0, high = 1 }}\n'


def created_with(api: Any, text: str, kind: str = "application/toml") -> Any:
    return api.post("/v1/studies", content=text.encode(), headers={"Content-Type": kind})


@pytest.mark.parametrize("kind", ["application/toml", "Application/TOML; charset=utf-8"])
def test_a_study_is_created_from_toml(api: Any, kind: str) -> None:
    name = f"from-{api.create()}"
    made = created_with(api, TOML.format(name), kind)
    assert (made.status_code, made.json()["search_space"]["x"]["high"]) == (201, 1.0)
    as_json = {"name": name, "search_space": {"x": {"type": "float", "low": 0.0, "high": 1.0}}}
    assert api.post("/v1/studies", as_json).status_code == 200


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("name = x\n", 400, "line 1"),
        ("[" * 100_000, 400, "TOML"),
        ('name = "x"\n[search_space]\nx = { type = "float", low = 0, high = inf }', 400, "finite"),
        ('name = "x"\n[search_space]\nx = { type = "float", low = 1979-05-27, high = 1 }', 422, "/search_space/x/low"),
        ('name = "X"\n[search_space]\nx = { type = "float", low = 0, high = 1 }', 422, "/name"),
        ("x" * (2**20 + 1), 413, "1048576"),
        ("a." * 200_000 + "a = 1", 400, "TOML"),
        ("name = 1" + "0" * 5000, 400, "TOML"),
    ],
    ids=["cut", "deep", "infinite", "a date", "a wrong name", "large", "dotted", "a huge number"],
)
def test_toml_that_cannot_be_a_study_is_refused(api: Any, text: str, status: int, said: str) -> None:
    refused = created_with(api, text)
    assert refused.status_code == status
    assert said in refused.text


def test_toml_of_other_bytes_is_refused(api: Any) -> None:
    refused = api.post("/v1/studies", content=b"name = \xff", headers={"Content-Type": "application/toml"})
    assert (refused.status_code, api.code(refused)) == (400, "malformed_json")
