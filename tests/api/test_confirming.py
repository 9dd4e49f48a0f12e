"""Confirming the winner: the best trials are trained again with shared seeds, and nothing else takes notice of it."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from fastapi.testclient import TestClient

from hpo_service.api.app import create_app
from hpo_service.settings import Settings
from tests.api.conftest import Api

_numbers = itertools.count()
X = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
VALUES = (0.1, 0.9, 0.5, 0.7)  # of trials 0 to 3; best first they are 1, 3, 2, 0


def searched(api: Any, *values: float, **fields: Any) -> str:
    values = values or VALUES
    name: str = api.create(**{"limits": {"trials": len(values)}, **fields})
    api.finish(name, *values)
    return name


def confirm(api: Any, name: str, **body: Any) -> Any:
    return api.post(f"/v1/studies/{name}:confirm", body)


def confirming(api: Any, *values: float, top: int = 2, seeds: int = 2, **fields: Any) -> str:
    name = searched(api, *values, **fields)
    answer = confirm(api, name, top=top, seeds=seeds)
    assert answer.status_code == 202, answer.text
    return name


def confirmation(api: Any, name: str) -> Any:
    return api.study(name)["confirmation"]


def numbers(trials: list[Any]) -> list[int]:
    return [trial["number"] for trial in trials]


def test_the_best_are_trained_again_and_the_study_is_then_as_it_was(either: Any) -> None:
    name = searched(either)
    before, tag = either.study(name), either.get(f"/v1/studies/{name}").headers["etag"]
    assert before["confirmation"] is None
    answer = confirm(either, name, top=2, seeds=3)
    assert (answer.status_code, answer.json()["state"]) == (202, "ACTIVE")
    assert answer.headers["etag"] != tag
    asked = {"state": "RUNNING", "top": 2, "seeds": 3, "ranking": [], "tied": []}
    assert answer.json()["confirmation"] == confirmation(either, name) == asked
    given = either.ask(name, count=9, worker_id="again")
    assert numbers(given) == list(range(4, 10))
    trials = [either.trial(name, trial["number"]) for trial in given]
    assert [trial["replicate_of"] for trial in trials] == [1, 3, 1, 3, 1, 3]
    assert [trial["params"] for trial in trials] == [trial["params"] for trial in given]
    assert {json.dumps(trial["params"]) for trial in trials[::2]} == {json.dumps(either.trial(name, 1)["params"])}
    seeds = [trial["seed"] for trial in given]
    assert seeds[::2] == seeds[1::2] == [trial["seed"] for trial in trials[::2]]
    assert len({*seeds, *(either.trial(name, number)["seed"] for number in range(4))}) == 3 + 4
    assert all(trial["round"] is None for trial in trials)
    assert [trial["sampler"] for trial in trials[:2]] == [either.trial(name, number)["sampler"] for number in (1, 3)]
    for number, value in zip((4, 5, 6, 7), (0.4, 0.6, 0.5, 0.7), strict=True):
        either.tell(name, number, value)
    found = confirmation(either, name)
    assert found["state"] == "RUNNING"
    assert [each["number"] for each in found["ranking"]] == [3, 1]
    assert found["ranking"][0]["mean"] == pytest.approx(0.65)
    assert found["ranking"][0]["low"] < 0.65 < found["ranking"][0]["high"]
    assert found["ranking"][0]["values"] == [0.6, 0.7]
    assert either.state(name) == "ACTIVE"
    either.work(name, 8, "tell", state="FAIL", reason="out of memory")
    either.tell(name, 9, 0.65)
    after = either.study(name)
    assert after["confirmation"]["state"] == "COMPLETE"
    assert [each["failed"] for each in after["confirmation"]["ranking"]] == [0, 1]
    assert after["confirmation"]["tied"] == []
    assert {**after, "confirmation": None} == before
    assert either.asked(name) == {"trials": [], "study_state": "COMPLETED"}


def test_the_same_body_again_asks_for_nothing_new_and_another_one_is_refused(either: Any) -> None:
    name = searched(either)
    assert confirm(either, name).status_code == 202  # top 5, seeds 5
    again = confirm(either, name, seeds=5)
    assert (again.status_code, again.json()["confirmation"]["top"]) == (200, 5)
    assert either.code(confirm(either, name, top=4)) == "study_state"
    assert len(either.ask(name, count=100)) == 4 * 5  # fewer than five are COMPLETE: all of them
    for number in range(4, 24):
        either.tell(name, number, 0.5)
    assert confirm(either, name).status_code == 200
    assert either.code(confirm(either, name, seeds=6)) == "study_state"
    assert either.state(name) == "COMPLETED"


def test_which_studies_are_confirmed(api: Any) -> None:
    active = api.create()
    assert api.code(confirm(api, active)) == "study_state"
    nothing = api.create()
    api.verb(nothing, "stop")
    assert api.code(confirm(api, nothing)) == "study_state"
    two = api.create(directions=["maximize", "minimize"], limits={"trials": 1})
    (given,) = api.ask(two)
    api.tell(two, given["number"], 1.0, 2.0)
    assert api.code(confirm(api, two)) == "study_state"
    cancelled = searched(api)
    api.verb(cancelled, "cancel")
    assert api.code(confirm(api, cancelled)) == "study_state"
    assert confirm(api, "no-such-study").status_code == 404
    name = searched(api)
    for body in ({"top": 0}, {"top": 51}, {"seeds": 1}, {"seeds": 51}, {"top": "a"}, {"tops": 1}, {"top": True}):
        assert api.pointers(confirm(api, name, **body))[0].startswith("/")
    assert api.state(name) == "COMPLETED"
    assert api.post(f"/v1/studies/{name}:confirm").status_code == 202  # no body: the defaults


def test_pruned_and_failed_trials_are_not_confirmed(api: Any) -> None:
    name = api.create(limits={"trials": 3})
    first, second, third = api.ask(name, count=3)
    api.work(name, first["number"], "tell", state="PRUNED", values=[9.0])
    api.work(name, second["number"], "tell", state="FAIL")
    api.tell(name, third["number"], 0.1)
    assert confirm(api, name, seeds=2).status_code == 202
    assert [api.trial(name, trial["number"])["replicate_of"] for trial in api.ask(name, count=9)] == [2, 2]


def test_a_stopped_study_gives_out_its_replicates_and_nothing_else(either: Any) -> None:
    name = either.create()
    either.finish(name, 0.3, 0.6)
    either.verb(name, "stop")
    assert confirm(either, name, top=1, seeds=2).json()["state"] == "ACTIVE"
    enqueued = either.post(f"/v1/studies/{name}/trials:enqueue", {"trials": [{"params": {}}]})
    assert either.code(enqueued) == "study_state"
    either.limit(name, trials=1000)
    assert numbers(either.ask(name, count=9)) == [2, 3]
    assert either.asked(name, count=9) == {"trials": [], "study_state": "ACTIVE"}
    either.tell(name, 2, 0.5)
    either.tell(name, 3, 0.5)
    assert either.state(name) == "STOPPED"
    assert either.verb(name, "stop").status_code == 200


def test_limits_neither_count_replicates_nor_hold_them_back(either: Any) -> None:
    name = confirming(either, limits={"trials": 4, "running": 1, "target": 5.0}, seeds=3)
    given = either.ask(name, count=9)
    assert len(given) == 6
    for trial in given:
        either.tell(name, trial["number"], 9.0)  # beyond the target; the search has not reached it
    assert either.study(name)["best"]["number"] == 1
    assert either.state(name) == "COMPLETED"
    either.limit(name, trials=5)
    assert either.state(name) == "ACTIVE"
    assert numbers(either.ask(name, count=9)) == [10]
    either.tell(name, 10, 0.2)
    assert either.state(name) == "COMPLETED"
    assert either.study(name)["counts"]["COMPLETE"] == 5


def test_a_limit_raised_meanwhile_gives_out_new_trials_beside_them(either: Any) -> None:
    name = confirming(either, limits={"trials": 4, "running": 1})
    either.limit(name, trials=6)
    given = either.ask(name, count=9)
    assert numbers(given) == [4, 5, 6, 7, 8]  # one that the limit of those running allows
    for number in (4, 5, 6, 7):
        either.tell(name, number, 0.5)
    assert confirmation(either, name)["state"] == "COMPLETE"
    assert either.state(name) == "ACTIVE"
    either.tell(name, 8, 0.5)
    (last,) = either.ask(name, count=9)
    either.tell(name, last["number"], 0.5)
    assert either.state(name) == "COMPLETED"
    assert [round_["trials"] for round_ in either.study(name)["rounds"]] == [6]


def test_enqueued_trials_wait_on_and_imported_ones_are_taken(either: Any) -> None:
    name = confirming(either)
    either.enqueue(name, {"x": 0.5})
    either.imported(name, {"params": {"x": 0.1}, "state": "COMPLETE", "values": [3.0]})
    assert either.study(name)["best"]["number"] == 9
    given = either.ask(name, count=9)
    assert numbers(given) == [4, 5, 6, 7]
    for trial in given:
        either.tell(name, trial["number"], 0.5)
    assert [each["number"] for each in confirmation(either, name)["ranking"]] == [1, 3]
    assert either.state(name) == "COMPLETED"
    assert either.study(name)["counts"] == {"WAITING": 1, "RUNNING": 0, "COMPLETE": 5, "PRUNED": 0, "FAIL": 0}


def test_confirming_begins_no_round_and_narrowing_keeps_no_replicate(either: Any) -> None:
    narrowing = {"rounds": 3, "trials_per_round": 4, "keep": 0.5}
    name = confirming(either, narrowing=narrowing, seeds=3, limits={"trials": 4})
    given = either.ask(name, count=9)
    for trial in given:
        either.tell(name, trial["number"], 0.95)
    rounds = either.study(name)["rounds"]
    assert [(each["trials"], each["first_trial"]) for each in rounds] == [(4, 0)]
    assert either.state(name) == "COMPLETED"
    answer = either.post(f"/v1/studies/{name}:narrow", {"keep": 0.5})
    assert answer.json()["from_trials"] == [1, 3]


def test_a_round_that_is_due_begins_when_a_limit_is_raised(either: Any) -> None:
    name = confirming(either, narrowing={"rounds": 2, "trials_per_round": 4, "keep": 0.5}, limits={"trials": 4})
    either.limit(name, trials=8)
    given = either.ask(name, count=20)
    assert numbers(given) == list(range(4, 12))
    assert [either.trial(name, number)["round"] for number in (7, 8)] == [None, 1]


def test_a_replicate_whose_lease_runs_out_is_given_out_again_and_ends_after_its_attempts(either: Any) -> None:
    name = confirming(either, limits={"trials": 4, "attempts": 2}, lease_seconds=10, top=1)
    first, second = either.ask(name, count=2)
    either.work(name, first["number"], "report", reports=[{"step": 1, "value": 0.1}])
    either.work(name, second["number"], "release")
    either.clock.turn(11)
    assert either.state(name) == "ACTIVE"
    again = either.ask(name, count=9)
    assert [(trial["number"], trial["attempt"], trial["reports"]) for trial in again] == [(4, 2, []), (5, 2, [])]
    assert [trial["seed"] for trial in again] == [first["seed"], second["seed"]]
    assert [trial["params"] for trial in again] == [first["params"], second["params"]]
    assert either.code(either.work(name, 4, "tell", state="COMPLETE", values=[1.0])) == "lease_lost"
    either.clock.turn(11)
    assert either.trial(name, 4)["reason"] == "attempts_exhausted"
    (last,) = either.ask(name, count=9)
    assert (last["number"], last["attempt"]) == (5, 3)
    either.tell(name, 5, 0.5, attempt=3)
    study = either.study(name)
    assert (study["state"], study["confirmation"]["state"], study["confirmation"]["ranking"]) == (
        "COMPLETED",
        "COMPLETE",
        [],
    )
    assert study["counts"]["FAIL"] == 0
    ends = either.get(f"/v1/studies/{name}/trials/4/attempts").json()["items"]
    assert [attempt["end"] for attempt in ends] == ["expired", "expired"]


def test_a_replicate_is_stopped_and_retried_like_any_trial(either: Any) -> None:
    name = confirming(either, top=1, seeds=3)
    assert either.post(f"/v1/studies/{name}/trials/6:stop").json()["reason"] == "stopped"
    first, _ = either.ask(name, count=2)
    assert either.work(name, 4, "tell", state="FAIL", reason="no disk", retry=True).json()["state"] == "WAITING"
    (again,) = either.ask(name, count=2)
    assert (again["number"], again["attempt"], again["seed"]) == (4, 2, first["seed"])
    either.tell(name, 4, 0.5, attempt=2)
    either.tell(name, 5, 0.7)
    found = confirmation(either, name)
    assert (found["state"], found["ranking"][0]["failed"], found["ranking"][0]["values"]) == ("COMPLETE", 1, [0.5, 0.7])


def test_told_failures_of_replicates_pause_nothing(either: Any) -> None:
    name = confirming(either, limits={"trials": 4, "failures": 1}, top=1, seeds=3)
    for trial in either.ask(name, count=9):
        either.work(name, trial["number"], "tell", state="COMPLETE", values=["NaN"])
    study = either.study(name)
    assert (study["state"], study["confirmation"]["ranking"], study["counts"]["FAIL"]) == ("COMPLETED", [], 0)


@pytest.mark.parametrize(
    ("verb", "reason", "end"), [("stop", "study_stopped", "STOPPED"), ("cancel", "study_cancelled", "CANCELLED")]
)
def test_stop_and_cancel_end_what_waits_and_a_result_on_its_way_is_taken(
    either: Any, verb: str, reason: str, end: str
) -> None:
    name = confirming(either)
    (given,) = either.ask(name)
    either.verb(name, verb)
    assert either.trial(name, 7)["reason"] == reason
    kept = either.work(name, given["number"], "heartbeat").json()
    assert (kept["should_stop"], kept["study_state"]) == ((True, end) if verb == "cancel" else (False, "STOPPING"))
    assert confirmation(either, name)["state"] == "RUNNING"
    either.tell(name, given["number"], 0.5)
    study = either.study(name)
    assert (study["state"], study["confirmation"]["state"]) == (end, "COMPLETE")
    assert study["counts"] == {"WAITING": 0, "RUNNING": 0, "COMPLETE": 4, "PRUNED": 0, "FAIL": 0}


def test_a_paused_study_gives_out_no_replicates_until_it_is_resumed(either: Any) -> None:
    name = confirming(either)
    either.verb(name, "pause")
    assert either.asked(name) == {"trials": [], "study_state": "PAUSED"}
    either.verb(name, "resume")
    assert len(either.ask(name, count=9)) == 4


def test_a_study_is_not_deleted_while_replicates_are_held(either: Any) -> None:
    name = confirming(either)
    either.ask(name)
    assert either.code(either.call("DELETE", f"/v1/studies/{name}")) == "study_state"
    assert either.call("DELETE", f"/v1/studies/{name}?force=true").status_code == 204


@pytest.mark.parametrize(
    "sampler",
    ["tpe", *(pytest.param(name, marks=pytest.mark.slow) for name in ("random", "grid", "qmc", "cmaes", "nsgaii"))],
)
def test_replicates_teach_no_sampler_not_even_after_a_restart(sampler: str, new_file: Callable[[], Path]) -> None:
    space = {"k": {"type": "int", "low": 0, "high": 50}} if sampler == "grid" else X
    drawn = []
    for value, before_the_restart in ((0.0, 4), (99.0, 1)):
        path = new_file()
        with opened(path) as api:
            sampler_ = {"name": sampler, "seed": 3}
            name = confirming(api, *(k / 20 for k in range(20)), top=3, sampler=sampler_, search_space=space)
            for trial in api.ask(name, count=9):
                api.tell(name, trial["number"], value)
            api.limit(name, trials=24)
            params = [trial["params"] for trial in api.ask(name, count=before_the_restart)]
        with opened(path) as api:
            drawn.append(params + [trial["params"] for trial in api.ask(name, count=4)])
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 4


@pytest.fixture
def new_file(tmp_path: Path, _sqlite_template: Path) -> Callable[[], Path]:
    return lambda: Path(shutil.copy(_sqlite_template, tmp_path / f"{next(_numbers)}.db"))


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A server on this SQLite file, in process."""
    settings = Settings(database_url=f"sqlite:///{path}")
    app = create_app(settings, lambda: 1_800_000_000.0, with_reaper=False, with_keys=False)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Api(client, None)


def test_a_server_that_starts_anew_goes_on_in_the_middle(new_file: Callable[[], Path]) -> None:
    path = new_file()
    with opened(path) as api:
        name = confirming(api, search_space=X)
        first, _ = api.ask(name, count=2)
        api.tell(name, first["number"], 0.5)
        before = api.study(name)
    with opened(path) as api:
        assert api.study(name) == before
        api.tell(name, 5, 0.4)
        for trial in api.ask(name, count=9):
            api.tell(name, trial["number"], 0.5)
        study = api.study(name)
        assert (study["state"], len(study["confirmation"]["ranking"])) == ("COMPLETED", 2)


def test_a_pruner_neither_judges_replicates_nor_learns_from_them(either: Any) -> None:
    pruner = {"name": "median", "params": {"n_startup_trials": 1, "n_warmup_steps": 0}}
    name = either.create(limits={"trials": 2}, pruner=pruner)
    for trial, value in zip(either.ask(name, count=2), (0.5, 0.6), strict=True):
        either.work(name, trial["number"], "report", reports=[{"step": 1, "value": value}])
        either.tell(name, trial["number"], value)
    assert confirm(either, name, top=1, seeds=3).status_code == 202
    for trial, value in zip(either.ask(name, count=9), (0.0, 9.0, 9.0), strict=True):
        kept = either.work(name, trial["number"], "report", reports=[{"step": 1, "value": value}]).json()
        assert not kept["should_stop"]
        either.tell(name, trial["number"], value)
    either.limit(name, trials=3)
    (later,) = either.ask(name)
    kept = either.work(name, later["number"], "report", reports=[{"step": 1, "value": 0.58}]).json()
    assert not kept["should_stop"]  # above the median of 0.5 and 0.6, below that of the replicates


def test_a_replicate_is_suggested_the_params_of_its_trial(either: Any) -> None:
    name = either.create(search_space={}, define_by_run=True, limits={"trials": 3})
    asked = {"x": X["x"], "k": {"type": "int", "low": 0, "high": 9}}
    for trial in either.ask(name, count=3):
        found = either.work(name, trial["number"], "suggest", parameters=asked).json()["params"]
        either.tell(name, trial["number"], found["x"])
    best = either.study(name)["best"]
    assert confirm(either, name, top=1, seeds=2).status_code == 202
    for trial in either.ask(name, count=9):
        assert trial["params"] == best["params"]
        assert either.work(name, trial["number"], "suggest", parameters=asked).json()["params"] == best["params"]
        either.tell(name, trial["number"], 0.5)
        assert either.trial(name, trial["number"])["params"] == best["params"]
    assert confirmation(either, name)["ranking"][0]["values"] == [0.5, 0.5]
    assert either.get(f"/v1/studies/{name}/advice").status_code == 200


def test_each_result_is_an_event_of_the_study(own: Any) -> None:
    name = confirming(own, top=1)
    first, second = own.ask(name, count=2)
    before = own.client.portal.call(_events, own, name, 0)[-1][0]
    own.tell(name, first["number"], 0.5)
    own.tell(name, second["number"], 0.7)
    events = own.client.portal.call(_events, own, name, before)
    assert [kind for _, kind, _ in events] == ["trial", "trial", "study"]
    assert events[-1][2]["confirmation"]["ranking"][0]["values"] == [0.5, 0.7]
    assert events[0][2]["replicate_of"] == 1


async def _events(own: Any, name: str, after: int) -> list[Any]:
    """What a stream would send after that event: its id, kind and data."""
    from hpo_service.operations import events

    service = own.client.app.state.service
    page = await service.read(name, lambda record, study: events._since(record, study, study.id, after))
    found = []
    for event in page.events:
        kind, _, data = event.sent.decode().split("\n")[:3]
        found.append((event.revision, kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_workers_of_any_study_are_given_replicates(own: Any) -> None:
    fields: dict[str, Any] = {
        "search_space": {"learning_rate": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True}},
        "objective": {"kind": "neural_network", "epochs": 3},
    }
    name = searched(own, 0.5, 0.8, limits={"trials": 2, "running": 1}, **fields)
    assert own.ask_any()["trials"] == []
    assert confirm(own, name, seeds=2).status_code == 202
    given = own.ask_any(count=3)["trials"]
    assert [trial["number"] for trial in given] == [2, 3, 4]
    assert given[0]["objective"] == fields["objective"]
    assert own.ask_any(count=3)["trials"][0]["number"] == 5
    assert own.ask_any()["trials"] == []


def test_the_sealed_test_takes_the_first_of_the_ranking(own: Any) -> None:
    fields: dict[str, Any] = {
        "search_space": {"learning_rate": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True}},
        "objective": {"kind": "neural_network", "epochs": 3},
    }
    name = confirming(own, 0.5, 0.8, **fields)
    assert own.code(own.post(f"/v1/studies/{name}:test", {})) == "study_state"  # not before that is done
    for trial in own.ask(name, count=9):
        own.tell(name, trial["number"], 0.7 if own.trial(name, trial["number"])["replicate_of"] == 0 else 0.6)
    assert own.post(f"/v1/studies/{name}:test", {}).status_code == 202
    (job,) = own.ask_any()["trials"]
    assert job["params"] == own.trial(name, 0)["params"] != own.study(name)["best"]["params"]
    assert confirm(own, name, top=2, seeds=2).status_code == 200
    assert own.code(confirm(own, name, top=1, seeds=2)) == "study_sealed"
    other = searched(own, 0.5, 0.8, **fields)
    own.post(f"/v1/studies/{other}:test", {})
    assert own.code(confirm(own, other)) == "study_sealed"


def test_lists_and_exports_say_what_is_a_replicate_and_never_put_one_first(either: Any) -> None:
    name = confirming(either)
    for trial in either.ask(name, count=9):
        either.tell(name, trial["number"], 5.0)
    path = f"/v1/studies/{name}/trials?order_by=value&page_size=3"
    found = either.get(path).json()
    listed = found["items"]
    while found["next_page_token"]:
        found = either.get(f"{path}&page_token={found['next_page_token']}").json()
        listed += found["items"]
    assert numbers(listed) == [1, 3, 2, 0, 4, 5, 6, 7]
    assert [trial["replicate_of"] for trial in listed] == [None] * 4 + [1, 3, 1, 3]
    lines = either.get(f"/v1/studies/{name}/trials:export?format=jsonl").text.splitlines()
    assert [json.loads(line)["replicate_of"] for line in lines] == [None] * 4 + [1, 3, 1, 3]


@pytest.mark.slow
def test_optunas_tools_see_no_replicates(database_url: str) -> None:
    app = create_app(Settings(database_url=database_url), with_reaper=False, with_keys=False)
    with TestClient(app) as client:
        api = Api(client, None)
        name = confirming(api)
        for trial in api.ask(name, count=9):
            api.work(name, trial["number"], "report", reports=[{"step": 1, "value": 5.0}])
            api.tell(name, trial["number"], 5.0)
        api.limit(name, trials=5)
        api.finish(name, 0.2)
        summaries = client.get("/api/studies").json()["study_summaries"]
        (study_id,) = [summary["study_id"] for summary in summaries if summary["study_name"] == name]
        page = client.get(f"/api/studies/{study_id}").json()
        assert [trial["number"] for trial in page["trials"]] == [0, 1, 2, 3, 8]
    url = database_url.replace("postgresql://", "postgresql+psycopg://")
    study = optuna.load_study(study_name=name, storage=optuna.storages.RDBStorage(url, skip_compatibility_check=True))
    assert (study.best_trial.number, study.best_value) == (1, 0.9)
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3, 8]
    assert all(not trial.intermediate_values for trial in study.trials)
