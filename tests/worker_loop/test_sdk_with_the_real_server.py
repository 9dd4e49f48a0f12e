"""The SDK on a real server: trials asked for, reported and told by somebody else's program."""

from __future__ import annotations

import math
import time

import pytest

from hpo_service.client import HeldTrial
from hpo_service.domain.errors import LeaseLost, ResultConflict
from hpo_service.domain.search_space import choice, uniform
from tests.worker_loop.real_server import create, ends, start_worker


@pytest.mark.slow
def test_an_objective_is_optimized_in_a_loop(hpo):
    study = create(hpo, "optimized", trials=10)

    def objective(trial: HeldTrial) -> float:
        x = trial.params["x"]
        assert isinstance(x, float)
        trial.report(x / 2, 0)
        return x

    study.optimize(objective, n_trials=4)
    assert study.read()["counts"]["COMPLETE"] == 4
    study.optimize(objective)
    assert study.read()["state"] == "COMPLETED"
    trials = list(study.trials(order_by="value"))
    assert study.best is not None
    assert study.best["number"] == trials[0]["number"]
    assert [trial["values"][0] for trial in trials] == sorted((t["params"]["x"] for t in trials), reverse=True)


def test_a_result_and_the_ask_for_the_next_trial_are_one_call(hpo, monkeypatch):
    study = create(hpo, "in_one_call", trials=10)
    asks = []
    ask = hpo.ask
    monkeypatch.setattr(hpo, "ask", lambda *arguments, **options: (asks.append(1), ask(*arguments, **options))[1])
    study.optimize(lambda trial: trial.params["x"], n_trials=4)
    assert len(asks) == 1
    counts = study.read()["counts"]
    assert (counts["COMPLETE"], counts["RUNNING"], counts["WAITING"]) == (4, 0, 0)


def test_the_best_are_confirmed_by_the_same_objective(hpo):
    study = create(hpo, "confirmed", trials=4)

    def objective(trial: HeldTrial) -> float:
        x = trial.params["x"]
        assert isinstance(x, float)
        return x + trial.seed % 2

    study.optimize(objective)
    best = study.best
    assert study.confirm(top=2, seeds=3)["state"] == "RUNNING"
    study.optimize(objective)
    confirmation = study.read()["confirmation"]
    assert (confirmation["state"], confirmation["top"], confirmation["seeds"]) == ("COMPLETE", 2, 3)
    assert len(confirmation["ranking"]) == 2
    assert confirmation["tied"] == []  # the seeds are shared: the one with the greater x is better with each
    assert study.best == best
    assert sum(trial["replicate_of"] is not None for trial in study.trials()) == 6


def test_an_objective_that_raises_fails_its_trial_and_is_heard_of(hpo):
    study = create(hpo, "raising", trials=3)

    def objective(trial: HeldTrial) -> float:
        raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        study.optimize(objective)
    study.optimize(objective, catch=(ValueError,))
    assert [trial["reason"] for trial in study.trials()] == ["ValueError: no luck"] * 3


ODD = {"empty": [], "mapping": {"loss": 1}, "text": "high", "too-many": [0.5, 0.5], "nothing": None}


@pytest.mark.parametrize("kind", ODD)
def test_what_cannot_be_a_result_fails_its_trial_and_the_next_one_is_trained(hpo, kind):
    study = create(hpo, f"returned-{kind}", trials=2)
    study.optimize(lambda trial: ODD[kind] if trial.number == 0 else "0.5")
    first, second = study.trials()
    assert (first["state"], second["state"], second["values"]) == ("FAIL", "COMPLETE", [0.5])
    assert first["reason"]


def test_a_program_that_ends_inside_an_objective_fails_its_trial(hpo):
    study = create(hpo, "ending", trials=2)

    def objective(trial: HeldTrial) -> float:
        raise SystemExit(4)

    with pytest.raises(SystemExit):
        study.optimize(objective)
    assert [trial["reason"] for trial in study.trials()] == ["SystemExit: 4"]


def test_who_is_interrupted_hands_the_trial_back(hpo):
    study = create(hpo, "interrupted", trials=2)

    def objective(trial: HeldTrial) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.optimize(objective)
    assert [trial["state"] for trial in study.trials()] == ["WAITING"]


@pytest.mark.slow
def test_the_lease_is_kept_while_the_objective_thinks(hpo):
    study = create(hpo, "thinking", trials=1, lease_seconds=1)

    def objective(trial: HeldTrial) -> float:
        time.sleep(2.5)
        return 0.5

    study.optimize(objective)
    assert ends(hpo, "thinking", 0) == [(1, "told")]


def test_trials_are_asked_for_and_told_by_hand(hpo):
    study = create(hpo, "by_hand", trials=3)
    first, second = study.ask(count=2)
    assert first.tell(0.9)["values"] == [0.9]
    assert first.tell(0.9)["values"] == [0.9]
    with pytest.raises(ResultConflict):
        first.tell(0.8)
    second.release("lunch")
    with pytest.raises(LeaseLost):
        second.report(0.1, 0)
    (again,) = study.ask()
    assert (again.number, again.attempt, again.params) == (second.number, 2, second.params)


def test_a_pruned_trial_that_obeys_is_told_as_pruned(hpo):
    study = create(hpo, "pruned", trials=1, pruner={"name": "threshold", "params": {"lower": 0.5}})

    def objective(trial: HeldTrial) -> float | None:
        for step in range(100):
            if trial.report(0.1, step):
                return None
        return 1.0

    study.optimize(objective)
    (trial,) = study.trials()
    assert (trial["state"], trial["values"]) == ("PRUNED", [0.1])


def test_an_objective_that_never_looks_keeps_its_result(hpo):
    study = create(hpo, "never-looks", trials=1, pruner={"name": "threshold", "params": {"lower": 0.5}})

    def objective(trial: HeldTrial) -> float:
        for step in range(5):
            trial.report(0.1, step)
        return 0.9

    study.optimize(objective)
    (trial,) = study.trials()
    assert (trial["state"], trial["values"], len(trial["reports"])) == ("COMPLETE", [0.9], 5)


@pytest.mark.slow
def test_a_spike_prunes_in_the_worker_as_it_does_in_the_loop(hpo, start):
    """A worker gathers the reports of a tenth of a second into one call."""
    pruner = {"name": "threshold", "params": {"upper": 10}}
    create(hpo, "spikes", trials=3, pruner=pruner)
    worker = start_worker(start, "spikes", "one_spike", "--until-done")
    worker.communicate(timeout=60)
    assert [trial["state"] for trial in hpo.trials("spikes")] == ["PRUNED"] * 3


def test_infinity_comes_back_as_a_float_and_lists_as_lists(hpo):
    choices = [[64], [64, 64]]
    study = hpo.create_study(
        "infinite", {"layers": choice(*map(tuple, choices)), "x": uniform(0, 1)}, sampler={"name": "random"}
    )
    study.enqueue({"layers": (64.0, 64)})
    values = iter([float("inf"), float("-inf"), 0.5])

    def objective(trial: HeldTrial) -> float:
        assert trial.params["layers"] in choices
        trial.report(float("nan"), 0)
        return next(values)

    study.optimize(objective, n_trials=3)
    assert [trial["values"] for trial in study.trials()] == [[float("inf")], [float("-inf")], [0.5]]
    assert next(study.trials())["params"]["layers"] == [64, 64]
    assert study.best["values"] == [float("inf")]
    assert study.read()["best"]["values"] == [float("inf")]
    assert all(math.isnan(trial["reports"][0]["value"]) for trial in study.trials())
    (asked,) = study.ask()
    assert asked.tell(float("inf"))["values"] == [float("inf")]
