"""Studies: what creating one takes and refuses, how it reads, changes and goes."""

from __future__ import annotations

import math
from typing import Any

import pytest

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
BIG = "1" + "0" * 400

DEFAULTS: dict[str, Any] = {
    "directions": ["maximize"],
    "pruner": {"name": "none", "params": {}},
    "limits": {"trials": None, "running": None, "seconds": None, "target": None, "attempts": 3, "failures": 20},
    "lease_seconds": 60,
    "narrowing": None,
    "objective": None,
    "metadata": {},
}


def test_only_name_and_search_space_are_required_and_the_rest_has_its_default(api: Any) -> None:
    answer = api.post("/v1/studies", {"name": "defaults", "search_space": SPACE})
    assert answer.status_code == 201
    assert answer.headers["location"] == "/v1/studies/defaults"
    assert answer.headers["etag"]
    study = answer.json()
    assert {name: study[name] for name in DEFAULTS} == DEFAULTS
    assert (study["sampler"]["name"], study["sampler"]["params"]) == ("auto", {})
    assert isinstance(study["sampler"]["seed"], int)
    assert study["state"] == "ACTIVE"
    assert study["counts"] == {"WAITING": 0, "RUNNING": 0, "COMPLETE": 0, "PRUNED": 0, "FAIL": 0}
    assert (study["best"], study["test"]) == (None, None)
    (round_,) = study["rounds"]
    assert (round_["round"], round_["first_trial"], round_["trials"], round_["changes"]) == (0, None, 0, [])
    assert study["created_at"].endswith("Z")
    assert api.study("defaults")["sampler"]["seed"] == study["sampler"]["seed"]


def test_the_same_body_again_with_its_defaults_written_out_is_the_same_study(either: Any) -> None:
    body = {"name": "twice", "search_space": SPACE}
    first = either.post("/v1/studies", body)
    again = either.post("/v1/studies", body)
    written_out = either.post("/v1/studies", {**body, **DEFAULTS})
    assert (first.status_code, again.status_code, written_out.status_code) == (201, 200, 200)
    assert again.json() == written_out.json() == first.json()
    assert again.headers["etag"] == first.headers["etag"]


def test_it_is_the_body_it_was_created_with_that_counts_and_not_what_became_of_it(api: Any) -> None:
    body = {"name": "changed-since", "search_space": SPACE}
    api.post("/v1/studies", body)
    api.limit("changed-since", trials=5)
    again = api.post("/v1/studies", body)
    assert (again.status_code, again.json()["limits"]["trials"]) == (200, 5)
    other = api.post("/v1/studies", {**body, "limits": {"trials": 5}})
    assert (other.status_code, api.code(other)) == (409, "study_exists")


@pytest.mark.parametrize(
    "change",
    [
        {"search_space": {"x": {"type": "float", "low": 0.0, "high": 2.0}}},
        {"directions": ["minimize"]},
        {"metadata": {"a": 1}},
        {"lease_seconds": 61},
        {"sampler": {"name": "tpe", "seed": 5}},
    ],
)
def test_another_body_under_the_name_is_refused(api: Any, change: dict[str, Any]) -> None:
    body = {"name": "taken", "search_space": SPACE}
    api.post("/v1/studies", body)
    assert api.code(api.post("/v1/studies", {**body, **change})) == "study_exists"


@pytest.mark.parametrize("name", ["a", "0", "a-b_c", "a" * 63])
def test_names_that_are_taken(api: Any, name: str) -> None:
    assert api.post("/v1/studies", {"name": name, "search_space": SPACE}).status_code in (200, 201)
    assert api.study(name)["name"] == name


@pytest.mark.parametrize(
    "name",
    ["", "A", "-a", "a-", "_a", "a_", "a b", "a.b", "a/b", "a:b", "é", "a" * 64, "a\n", "a\u0000", 5, None, ["a"]],
)
def test_names_that_are_refused(api: Any, name: Any) -> None:
    assert api.pointers(api.post("/v1/studies", {"name": name, "search_space": SPACE})) == ["/name"]


def a(**fields: Any) -> dict[str, Any]:
    return {"search_space": {"a": {"type": "float", "low": 0, "high": 1, **fields}}}


def whole(**fields: Any) -> dict[str, Any]:
    return {"search_space": {"a": {"type": "int", "low": 0, "high": 10, **fields}}}


def choices(*values: Any) -> dict[str, Any]:
    return {"search_space": {"a": {"type": "categorical", "choices": list(values)}}}


ON = {"type": "categorical", "choices": ["on", "off"]}
AT = "/search_space/a"


def conditional(**when: Any) -> dict[str, Any]:
    return {"search_space": {"a": {"type": "float", "low": 0, "high": 1, "when": when}, "c": ON, "n": SPACE["x"]}}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"colour": 1}, "/colour"),
        ({"search_space": {}}, "/search_space"),
        ({"search_space": {f"p{i}": SPACE["x"] for i in range(101)}}, "/search_space"),
        ({"search_space": []}, "/search_space"),
        ({"search_space": None}, "/search_space"),
        ({"search_space": {"a": {"type": "real", "low": 0, "high": 1}}}, f"{AT}/type"),
        ({"search_space": {"a": {"low": 0, "high": 1}}}, f"{AT}/type"),
        ({"search_space": {"a": 5}}, AT),
        (a(low=2), f"{AT}/high"),
        (a(low="0"), f"{AT}/low"),
        (a(low=True), f"{AT}/low"),
        (a(low=None), f"{AT}/low"),
        (a(log=True), f"{AT}/low"),
        (a(low=0.1, log=True, step=0.1), f"{AT}/step"),
        (a(step=0), f"{AT}/step"),
        (a(step=-0.1), f"{AT}/step"),
        (a(step=2), f"{AT}/step"),
        (a(log="yes"), f"{AT}/log"),
        (a(colour=1), f"{AT}/colour"),
        (a(choices=[1]), f"{AT}/choices"),
        (a(low=-1.7e308, high=1.7e308), f"{AT}/high"),
        (a(low=0, high=1e10, step=1e-300), f"{AT}/step"),
        (whole(low=0.5), f"{AT}/low"),
        (whole(low=11), f"{AT}/high"),
        (whole(log=True), f"{AT}/low"),
        (whole(step=0), f"{AT}/step"),
        (whole(step=0.5), f"{AT}/step"),
        (whole(high=2**80), f"{AT}/high"),
        (choices(), f"{AT}/choices"),
        (choices(*range(1001)), f"{AT}/choices"),
        (choices([[[[1]]]]), f"{AT}/choices/0"),
        (choices({"a": 1}), f"{AT}/choices/0"),
        (choices("a", "a"), f"{AT}/choices/1"),
        (choices(1, 1.0), f"{AT}/choices/1"),
        (choices(2**80), f"{AT}/choices/0"),
        (conditional(nothing=["on"]), f"{AT}/when/nothing"),
        (conditional(n=[0.5]), f"{AT}/when/n"),
        (conditional(c=["on", "dim"]), f"{AT}/when/c/1"),
        (conditional(c=[]), f"{AT}/when/c"),
        (conditional(c="on"), f"{AT}/when/c"),
        (
            {"search_space": {"a": {**ON, "when": {"b": ["on"]}}, "b": {**ON, "when": {"a": ["on"]}}}},
            f"{AT}/when",
        ),
        ({"search_space": {"a": {**ON, "when": {"a": ["on"]}}}}, f"{AT}/when"),
        ({"search_space": {"a/b~c": {"type": "float", "low": 1, "high": 0}}}, "/search_space/a~1b~0c/high"),
        ({"search_space": {"float": {"type": "float", "low": 1, "high": 0}}}, "/search_space/float/high"),
        ({"search_space": {"int": {"type": "float", "low": 1}}}, "/search_space/int/high"),
        ({"search_space": {"categorical": {"type": "categorical"}}}, "/search_space/categorical/choices"),
        ({"search_space": {"": SPACE["x"]}}, "/search_space/"),
        ({"directions": []}, "/directions"),
        ({"directions": ["up"]}, "/directions/0"),
        ({"directions": "maximize"}, "/directions"),
        ({"sampler": {"name": "magic"}}, "/sampler/name"),
        ({"sampler": {"name": "tpe", "seed": -1}}, "/sampler/seed"),
        ({"sampler": {"name": "tpe", "seed": 2**80}}, "/sampler/seed"),
        ({"sampler": {"name": "tpe", "colour": 1}}, "/sampler/colour"),
        ({"sampler": {"name": "tpe", "params": {"colour": 1}}}, "/sampler/params/colour"),
        ({"sampler": {"name": "random", "params": {"a/b": 1}}}, "/sampler/params/a~1b"),
        ({"sampler": {"name": "grid"}}, "/search_space/x"),
        ({"sampler": {"name": "cmaes"}, **choices(1, 2)}, AT),
        ({"sampler": {"name": "cmaes"}, "directions": ["maximize", "minimize"]}, "/directions"),
        ({"sampler": {"name": "nsgaii", "params": {"population_size": 1}}}, "/sampler/params/population_size"),
        ({"sampler": None}, "/sampler"),
        ({"pruner": {"name": "magic"}}, "/pruner/name"),
        ({"pruner": {"name": "median", "params": {"colour": 1}}}, "/pruner/params/colour"),
        ({"pruner": {"name": "median"}, "directions": ["maximize", "maximize"]}, "/pruner/name"),
        ({"pruner": {"name": "threshold"}}, "/pruner/params"),
        ({"limits": {"trials": 0}}, "/limits/trials"),
        ({"limits": {"trials": -1}}, "/limits/trials"),
        ({"limits": {"trials": 1.5}}, "/limits/trials"),
        ({"limits": {"trials": "5"}}, "/limits/trials"),
        ({"limits": {"trials": True}}, "/limits/trials"),
        ({"limits": {"trials": 2**80}}, "/limits/trials"),
        ({"limits": {"running": 0}}, "/limits/running"),
        ({"limits": {"seconds": 0}}, "/limits/seconds"),
        ({"limits": {"target": "Infinity"}}, "/limits/target"),
        ({"limits": {"attempts": 0}}, "/limits/attempts"),
        ({"limits": {"attempts": 101}}, "/limits/attempts"),
        ({"limits": {"failures": 0}}, "/limits/failures"),
        ({"limits": {"failures": 1.5}}, "/limits/failures"),
        ({"limits": {"colour": 1}}, "/limits/colour"),
        ({"lease_seconds": 0.5}, "/lease_seconds"),
        ({"lease_seconds": 86_401}, "/lease_seconds"),
        ({"narrowing": {"rounds": 0, "trials_per_round": 4}}, "/narrowing/rounds"),
        ({"narrowing": {"rounds": 2}}, "/narrowing/trials_per_round"),
        ({"narrowing": {"rounds": 2, "trials_per_round": 4, "keep": 0}}, "/narrowing/keep"),
        ({"narrowing": {"rounds": 2, "trials_per_round": 4, "keep": 1.1}}, "/narrowing/keep"),
        ({"narrowing": {"rounds": 2, "trials_per_round": 4, "expand": 1}}, "/narrowing/expand"),
        ({"narrowing": {"rounds": 2, "trials_per_round": 4}, "limits": {"trials": 9}}, "/limits/trials"),
        ({"narrowing": {"rounds": 2, "trials_per_round": 4}, "directions": ["maximize", "minimize"]}, "/narrowing"),
        ({"objective": {}}, "/objective/kind"),
        ({"objective": {"kind": 5}}, "/objective/kind"),
        ({"objective": []}, "/objective"),
        ({"objective": {"kind": "neural_network"}}, "/search_space/x"),
        ({"metadata": None}, "/metadata"),
        ({"metadata": []}, "/metadata"),
    ],
)
def test_a_wrong_body_is_refused_where_it_is_wrong(api: Any, body: dict[str, Any], pointer: str) -> None:
    found = api.pointers(api.post("/v1/studies", {"name": "refused", "search_space": SPACE, **body}))
    assert pointer in found
    assert api.get("/v1/studies/refused").status_code == 404


LEARNING_RATE = {"learning_rate": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True}}


@pytest.mark.parametrize(
    ("space", "objective", "pointer"),
    [
        ({"learning_rat": LEARNING_RATE["learning_rate"]}, {}, "/search_space/learning_rat"),
        (LEARNING_RATE, {"learning_rate": 0.1}, "/search_space/learning_rate"),
        (LEARNING_RATE, {"colour": 1}, "/objective/colour"),
        (LEARNING_RATE, {"epochs": 0}, "/objective/epochs"),
        ({"dropout": {"type": "float", "low": 0, "high": 1.5}}, {}, "/search_space/dropout/high"),
        ({"optimizer": {"type": "categorical", "choices": ["sgd", "magic"]}}, {}, "/search_space/optimizer/choices/1"),
        ({"hidden_units": {"type": "float", "low": 32, "high": 64}}, {}, "/search_space/hidden_units/type"),
    ],
)
def test_what_the_network_cannot_take_is_refused_at_creation(
    api: Any, space: Any, objective: Any, pointer: str
) -> None:
    body = {"name": "network", "search_space": space, "objective": {"kind": "neural_network", **objective}}
    assert pointer in api.pointers(api.post("/v1/studies", body))


@pytest.mark.parametrize(
    "body",
    [
        '{"pruner": {"name": "threshold", "params": {"upper": %s}}}',
        '{"pruner": {"name": "patient", "params": {"patience": 1, "min_delta": %s}}}',
        '{"sampler": {"name": "nsgaii", "params": {"mutation_prob": %s}}}',
        '{"sampler": {"name": "tpe", "params": {"n_startup_trials": %s}}}',
        '{"pruner": {"name": "hyperband", "params": {"max_resource": %s}}}',
        '{"limits": {"seconds": %s}}',
        '{"limits": {"target": %s}}',
        '{"objective": {"kind": "neural_network", "learning_rate": %s}}',
    ],
)
def test_an_integer_beyond_a_double_is_refused(api: Any, body: str) -> None:
    text = '{"name": "huge", "search_space": {"x": {"type": "float", "low": 0, "high": 1}}, ' + (body % BIG)[1:]
    answer = api.post("/v1/studies", content=text, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text


def test_patch_merges_limits_and_replaces_metadata(either: Any) -> None:
    name = either.create(limits={"trials": 5, "running": 2}, metadata={"a": 1, "b": 2})
    either.limit(name, trials=7)
    either.patch(f"/v1/studies/{name}", {"metadata": {"c": 3}})
    study = either.study(name)
    assert study["limits"] == DEFAULTS["limits"] | {"trials": 7, "running": 2}
    assert study["metadata"] == {"c": 3}
    either.limit(name, running=None)
    assert either.study(name)["limits"]["running"] is None


def test_the_tag_changes_with_limits_metadata_and_state_and_not_with_a_trial(api: Any) -> None:
    name = api.create(limits={"trials": 5})

    def tag() -> str:
        return str(api.get(f"/v1/studies/{name}").headers["etag"])

    seen = [tag()]
    api.finish(name, 0.5)
    api.enqueue(name, {"x": 0.5})
    assert tag() == seen[0]
    for change in (
        lambda: api.limit(name, trials=6),
        lambda: api.patch(f"/v1/studies/{name}", {"metadata": {"a": 1}}),
        lambda: api.verb(name, "pause"),
        lambda: api.verb(name, "resume"),
    ):
        answer = change()
        assert answer.headers["etag"] == tag()
        assert tag() not in seen
        seen.append(tag())


def test_a_stale_tag_changes_nothing(either: Any) -> None:
    name = either.create()
    tag = either.get(f"/v1/studies/{name}").headers["etag"]
    first = either.patch(f"/v1/studies/{name}", {"limits": {"trials": 3}}, headers={"If-Match": tag})
    assert first.status_code == 200
    stale = either.patch(f"/v1/studies/{name}", {"limits": {"trials": 4}}, headers={"If-Match": tag})
    assert (stale.status_code, either.code(stale)) == (412, "precondition_failed")
    assert either.study(name)["limits"]["trials"] == 3
    for accepted in ("*", f'"other", {first.headers["etag"]}'):
        answer = either.patch(f"/v1/studies/{name}", {"limits": {"trials": 3}}, headers={"If-Match": accepted})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"limits": {"trials": 0}}, "/limits/trials"),
        ({"limits": {"attempts": 101}}, "/limits/attempts"),
        ({"limits": {"trials": 2**80}}, "/limits/trials"),
        ({"limits": {"colour": 1}}, "/limits/colour"),
        ({"limits": None}, "/limits"),
        ({"metadata": None}, "/metadata"),
        ({"name": "other"}, "/name"),
        ({"search_space": SPACE}, "/search_space"),
        ({"state": "PAUSED"}, "/state"),
        ([], ""),
    ],
)
def test_a_wrong_patch_is_refused_where_it_is_wrong(api: Any, body: Any, pointer: str) -> None:
    name = api.create()
    before = api.study(name)
    assert pointer in api.pointers(api.patch(f"/v1/studies/{name}", body))
    assert api.study(name) == before


def test_rounds_bound_the_trials_also_when_patched(api: Any) -> None:
    name = api.create(narrowing={"rounds": 2, "trials_per_round": 4})
    assert api.study(name)["limits"]["trials"] == 8
    assert api.pointers(api.limit(name, trials=9)) == ["/limits/trials"]
    assert api.limit(name, trials=6).json()["limits"]["trials"] == 6


def test_deleting_asks_first_while_leases_are_held(either: Any) -> None:
    name = either.create()
    either.ask(name)
    refused = either.call("DELETE", f"/v1/studies/{name}")
    assert (refused.status_code, either.code(refused)) == (409, "study_state")
    assert either.call("DELETE", f"/v1/studies/{name}?force=false").status_code == 409
    gone = either.call("DELETE", f"/v1/studies/{name}?force=true")
    assert (gone.status_code, gone.content) == (204, b"")
    assert either.get(f"/v1/studies/{name}").status_code == 404
    assert either.call("DELETE", f"/v1/studies/{name}").status_code == 404


def test_a_lease_that_ran_out_does_not_keep_a_study(api: Any) -> None:
    name = api.create()
    api.ask(name)
    api.clock.turn(61)
    assert api.call("DELETE", f"/v1/studies/{name}").status_code == 204


def test_a_study_of_a_deleted_ones_name_begins_anew(either: Any) -> None:
    name = either.create(metadata={"first": True})
    tag = either.get(f"/v1/studies/{name}").headers["etag"]
    request = {"request_id": "kept", "worker_id": "w"}
    assert either.post(f"/v1/studies/{name}/trials:ask", request).json()["trials"]
    either.call("DELETE", f"/v1/studies/{name}?force=true")
    assert either.post("/v1/studies", {"name": name, "search_space": SPACE}).status_code == 201
    study = either.study(name)
    assert (study["counts"]["RUNNING"], study["metadata"]) == (0, {})
    stale = either.patch(f"/v1/studies/{name}", {"metadata": {}}, headers={"If-Match": tag})
    assert stale.status_code == 412
    (given,) = either.post(f"/v1/studies/{name}/trials:ask", request).json()["trials"]
    assert (given["number"], given["attempt"]) == (0, 1)


VERBS = ("pause", "resume", "stop", "cancel")
# state before -> state after each verb; None is 409 study_state
AFTER: dict[str, tuple[str | None, ...]] = {
    #            pause     resume    stop        cancel
    "ACTIVE": ("PAUSED", "ACTIVE", "STOPPING", "CANCELLED"),
    "PAUSED": ("PAUSED", "ACTIVE", "STOPPING", "CANCELLED"),
    "STOPPING": (None, None, "STOPPING", "CANCELLED"),
    "STOPPED": (None, None, "STOPPED", "CANCELLED"),
    "COMPLETED": (None, None, None, "CANCELLED"),
    "CANCELLED": (None, None, None, "CANCELLED"),
}


def brought_to(api: Any, state: str) -> str:
    """A study in that state, with a trial RUNNING where the state allows it."""
    name: str = api.create(limits={"trials": 1} if state == "COMPLETED" else {})
    if state == "COMPLETED":
        api.finish(name, 0.5)
    elif state == "STOPPED":
        api.verb(name, "stop")
    else:
        api.ask(name)
        verb = {"PAUSED": "pause", "STOPPING": "stop", "CANCELLED": "cancel"}.get(state)
        if verb is not None:
            api.verb(name, verb)
    assert api.state(name) == state
    return name


@pytest.mark.parametrize(
    ("state", "verb", "expected"),
    [(state, verb, after) for state, row in AFTER.items() for verb, after in zip(VERBS, row, strict=True)],
)
def test_each_verb_on_each_state_leads_where_it_is_drawn_and_may_be_repeated(
    api: Any, state: str, verb: str, expected: str | None
) -> None:
    name = brought_to(api, state)
    for _ in range(2):
        answer = api.verb(name, verb)
        if expected is None:
            assert (answer.status_code, api.code(answer)) == (409, "study_state")
            assert api.state(name) == state
        else:
            assert (answer.status_code, answer.json()["state"]) == (200, expected)
            assert answer.headers["etag"]


def test_a_paused_study_gives_out_nothing_and_its_running_trials_go_on(either: Any) -> None:
    name = either.create()
    either.ask(name, count=2)
    either.work(name, 1, "release")
    either.verb(name, "pause")
    assert either.asked(name) == {"trials": [], "study_state": "PAUSED"}
    assert either.work(name, 0, "heartbeat").json()["should_stop"] is False
    either.tell(name, 0, 0.5)
    either.verb(name, "resume")
    assert either.ask(name)[0]["number"] == 1


def test_stopping_ends_what_waits_and_what_comes_back(either: Any) -> None:
    name = either.create()
    either.ask(name, count=4)
    either.work(name, 3, "release")
    either.enqueue(name, {"x": 0.5})
    assert either.verb(name, "stop").json()["state"] == "STOPPING"
    assert [either.trial(name, n)["reason"] for n in (3, 4)] == ["study_stopped"] * 2
    assert either.work(name, 0, "heartbeat").json() == {
        **either.work(name, 0, "heartbeat").json(),
        "should_stop": False,
        "study_state": "STOPPING",
    }
    either.tell(name, 0, 0.5)
    released = either.work(name, 1, "release").json()
    assert (released["state"], released["reason"]) == ("FAIL", "study_stopped")
    assert either.state(name) == "STOPPING"
    either.clock.turn(61)
    assert either.trial(name, 2)["reason"] == "study_stopped"
    study = either.study(name)
    assert (study["state"], study["counts"]["FAIL"], study["counts"]["COMPLETE"]) == ("STOPPED", 4, 1)


def test_cancelling_tells_the_workers_and_still_takes_what_they_tell(either: Any) -> None:
    name = either.create()
    either.ask(name, count=4)
    either.enqueue(name, {"x": 0.5})
    assert either.verb(name, "cancel").json()["state"] == "CANCELLED"
    assert either.trial(name, 4)["reason"] == "study_cancelled"
    kept = either.work(name, 0, "report", reports=[{"step": 1, "value": 0.5}]).json()
    assert (kept["should_stop"], kept["reason"], kept["study_state"]) == (True, "study_cancelled", "CANCELLED")
    assert either.tell(name, 0, 0.7)["state"] == "COMPLETE"
    assert either.work(name, 1, "release").json()["reason"] == "study_cancelled"
    either.clock.turn(61)
    assert either.trial(name, 2)["reason"] == "study_cancelled"
    assert either.state(name) == "CANCELLED"
    assert either.study(name)["best"]["values"] == [0.7]


def test_a_study_that_is_not_there_is_404_on_every_route(api: Any) -> None:
    base = "/v1/studies/nothing"
    bodies: dict[str, Any] = {
        "/trials:ask": {"worker_id": "w", "request_id": "r"},
        "/trials:enqueue": {"trials": [{"params": {}}]},
        "/trials:import": {"trials": [{"params": {}, "state": "FAIL"}]},
        "/trials/0:report": {"attempt": 1, "reports": []},
        "/trials/0:heartbeat": {"attempt": 1},
        "/trials/0:tell": {"attempt": 1, "state": "FAIL"},
        "/trials/0:release": {"attempt": 1},
        "/trials/0:stop": None,
        "/test:heartbeat": {"attempt": 1},
        "/test:tell": {"attempt": 1, "state": "FAIL"},
        "/test:release": {"attempt": 1},
        **{f":{verb}": None for verb in VERBS},
        ":narrow": {},
        ":test": {},
    }
    for path, body in bodies.items():
        assert api.post(base + path, body).status_code == 404, path
    for path in ("", "/trials", "/trials/0", "/trials/0/attempts", "/events", "/importances", "/trials:export"):
        assert api.get(base + path).status_code == 404, path
    assert api.patch(base, {}).status_code == 404
    assert api.call("DELETE", base).status_code == 404


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "qmc", "grid", "nsgaii"])
def test_every_sampler_gives_params_within_the_space_and_repeats_itself_by_its_seed(api: Any, sampler: str) -> None:
    space: dict[str, Any] = {
        "n": {"type": "int", "low": 1, "high": 64, "log": True},
        "k": {"type": "int", "low": 0, "high": 10, "step": 5},
        "s": {"type": "float", "low": 0.0, "high": 1.0, "step": 0.25},
    }
    if sampler != "grid":
        space["f"] = {"type": "float", "low": 1e-6, "high": 1e-2, "log": True}
    if sampler != "cmaes":
        space["c"] = {"type": "categorical", "choices": ["a", 1, True, None, 1.5]}
        space["d"] = {"type": "float", "low": 0, "high": 1, "step": 0.5, "when": {"c": ["a", True]}}
    drawn = []
    for _ in range(2):
        name = api.create(search_space=space, sampler={"name": sampler, "seed": 7})
        for value in range(12):
            (given,) = api.ask(name)
            api.tell(name, given["number"], math.sin(value))
            drawn.append(given["params"])
    assert drawn[:12] == drawn[12:]
    for params in drawn:
        assert set(params) - {"d"} == set(space) - {"d"}
        assert params["n"] in range(1, 65)
        assert params["k"] in (0, 5, 10)
        assert params["s"] in (0, 0.25, 0.5, 0.75, 1)
        if "c" in space:
            there = any(params["c"] is choice for choice in (True,)) or params["c"] == "a"
            assert ("d" in params) is there
        if "f" in space:
            assert 1e-6 <= params["f"] <= 1e-2


def test_an_exhausted_grid_completes_the_study(api: Any) -> None:
    name = api.create(search_space={"x": {"type": "int", "low": 1, "high": 3}}, sampler={"name": "grid"})
    given = api.ask(name, count=10)
    assert sorted(trial["params"]["x"] for trial in given) == [1, 2, 3]
    assert api.asked(name) == {"trials": [], "study_state": "ACTIVE"}
    for trial in given:
        api.tell(name, trial["number"], 0.5)
    assert api.state(name) == "COMPLETED"


def test_a_parameter_in_another_tools_words_is_refused_with_ours(api: Any) -> None:
    space = {"lr": {"type": "loguniform", "min": 1e-5, "max": 0.1}}
    answer = api.post("/v1/studies", {"name": "theirs", "search_space": space})
    assert api.pointers(answer) == ["/search_space/lr/type"]
    assert 'write {"type": "float", "low": 1e-05, "high": 0.1, "log": true}' in answer.json()["detail"]
