"""`hpo trial` and `hpo workers`: trials looked at and steered one by one, and who trains them."""

from __future__ import annotations

import json
import math

import pytest

from hpo_service.cli.trial_commands import curve

SPACE = {
    "lr": {"type": "float", "low": 0.001, "high": 1.0, "log": True},
    "kind": {"type": "categorical", "choices": ["1", 1, True, None, "sgd"]},
}


@pytest.fixture
def study(request, client):
    """One with a trial that has reported and told, one enqueued, and one that failed."""
    name = f"trials-{abs(hash(request.node.name))}"
    client.create({"name": name, "search_space": SPACE, "sampler": {"name": "random", "seed": 1}})
    given = client.ask("gpu-3", name, count=2)["trials"]
    first, second = ((each["number"], each["attempt"]) for each in given)
    client.report(name, *first, [{"step": step, "value": step / 8} for step in range(5)])
    client.tell(name, *first, "COMPLETE", values=[0.4], metrics={"accuracy": 0.75})
    client.tell(name, *second, "FAIL", reason="disk full")
    return name


@pytest.fixture
def at(hpo, server):
    def call(*arguments):
        return hpo(*arguments, "--server", server)

    return call


@pytest.mark.slow
def test_trials_are_listed_by_state_and_best_first(study, at, client):
    listed = at("trial", "list", study)
    assert listed.code == 0
    lines = listed.out.splitlines()
    assert lines[0].split() == ["N", "STATE", "VALUE", "STEPS", "PARAMS"]
    assert lines[1].split()[:4] == ["0", "COMPLETE", "0.4", "5"]
    assert lines[2].split()[:4] == ["1", "FAIL", "-", "0"]

    failed = at("trial", "list", study, "--state", "FAIL", "--json")
    assert [trial["number"] for trial in json.loads(failed.out)["items"]] == [1]
    best = at("trial", "list", study, "--order-by", "value", "--json")
    assert json.loads(best.out) == {"items": list(client.trials(study, order_by="value"))}


def test_a_trial_is_shown_with_who_drew_it_its_curve_metrics_and_attempts(study, at, client):
    shown = at("trial", "show", study, "0")
    assert shown.code == 0
    for part in (
        f"trial 0 of {study}: COMPLETE, value 0.4",
        "random",
        "0 ▁▃▅▇█ 0.5",
        "accuracy  0.75",
        "gpu-3",
        "told",
    ):
        assert part in shown.out
    assert "disk full" in at("trial", "show", study, "1").out
    assert json.loads(at("trial", "show", study, "0", "--json").out) == client.trial(study, 0)


@pytest.mark.slow
def test_a_trial_with_given_params_is_given_out_next_and_the_others_are_drawn(study, at, client):
    queued = at("trial", "enqueue", study, "lr=0.5", "kind=1")

    assert (queued.code, queued.out.split(":")[0]) == (0, f"trial 2 of {study} is WAITING")
    assert client.trial(study, 2)["params"] == {"lr": 0.5, "kind": "1"}  # as the choices have it
    for number, (text, value) in enumerate([("true", True), ("null", None), ("sgd", "sgd")], start=3):
        trial = json.loads(at("trial", "enqueue", study, f"kind={text}", "--json").out)
        assert (trial["number"], trial["params"]["kind"]) == (number, value)
    (given,) = client.ask("w", study)["trials"]
    assert (given["number"], given["params"]["lr"]) == (2, 0.5)


def test_a_waiting_trial_is_stopped_and_a_running_one_is_told(study, at, client):
    client.enqueue(study, [{"params": {"lr": 0.5}}])
    assert "is FAIL (stopped)" in at("trial", "stop", study, "2").out
    (given,) = client.ask("w", study)["trials"]
    assert "is told to stop" in at("trial", "stop", study, str(given["number"])).out
    assert client.report(study, given["number"], given["attempt"], [{"step": 0, "value": 1}])["should_stop"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("show", "STUDY", "99"), 3),
        (("list", "nobody-has-this-name"), 3),
        (("stop", "STUDY", "0"), 1),
        (("enqueue", "STUDY", "lr"), 2),
        (("enqueue", "STUDY", "lr=1", "lr=1"), 2),
        (("enqueue", "STUDY", "momentum=0.9"), 1),
        (("show", "STUDY", "-1"), 2),
    ],
)
def test_what_cannot_be_ends_with_the_code_that_says_so(arguments, code, study, at):
    ended = at("trial", *(study if each == "STUDY" else each for each in arguments))

    assert (ended.code, ended.out) == (code, "")
    assert ended.err


def test_workers_are_listed_and_drained(study, at, client):
    listed = at("workers")
    assert listed.code == 0
    assert "gpu-3" in listed.out
    assert {worker["worker_id"] for worker in json.loads(at("workers", "--json").out)["items"]} >= {"gpu-3"}
    client.ask("goes-home", study)
    drained = json.loads(at("workers", "--drain", "goes-home", "--json").out)
    assert (drained["worker_id"], drained["draining"]) == ("goes-home", True)
    assert client.ask("goes-home", study)["drain"]


def test_a_long_curve_fits_a_line_and_what_is_not_finite_leaves_a_gap():
    reports = [{"step": step, "value": math.sin(step / 100)} for step in range(1000)]
    assert len(curve(reports)) < 120
    values = [1.0, "Infinity", "NaN", -1e308, 1e308]
    assert curve([{"step": step, "value": value} for step, value in enumerate(values)]).startswith("1 ▅  ▁█")
