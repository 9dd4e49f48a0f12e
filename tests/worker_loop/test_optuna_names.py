"""The trial and the study have Optuna's names and argument orders, in the SDK's loop and in a worker."""

from __future__ import annotations

import io
import os
import textwrap
import threading
import time

import optuna
import pytest

from hpo_service.client import Retry, TrialPruned
from hpo_service.client.optimizing import ProgressLine
from hpo_service.client.recorded_trial import RecordedTrial
from hpo_service.domain.errors import Invalid
from hpo_service.domain.search_space import choice, integer, log_uniform, uniform
from tests.worker_loop.real_server import create, start_worker

RANDOM = {"name": "random", "seed": 1, "params": {}}


def by_run(hpo, name, **fields):
    return hpo.create_study(name, direction="minimize", sampler=RANDOM, **fields)


@pytest.mark.slow
def test_a_trial_answers_in_the_types_that_it_was_asked_in(hpo):
    widths = [(64,), (64, 32), None]

    def objective(trial):
        rate = trial.suggest_float("rate", 1e-5, 1, log=True)
        share = trial.suggest_float("share", 0, 1, step=0.25)
        layers = trial.suggest_int("layers", 1, 4)
        batch = trial.suggest_int("batch", 16, 64, step=16)
        width = trial.suggest_categorical("width", widths)
        assert [type(each) for each in (rate, share, layers, batch)] == [float, float, int, int]
        assert width in widths
        assert width is None or isinstance(width, tuple)
        assert share in (0, 0.25, 0.5, 0.75, 1)
        assert batch % 16 == 0
        assert trial.suggest_int("layers", 1, 4) == layers, "asked again, it answers the same"
        assert list(trial.params) == ["rate", "share", "layers", "batch", "width"]
        return rate

    study = by_run(hpo, "types")
    study.optimize(objective, n_trials=6)
    space = hpo.study("types")["search_space"]
    assert space["batch"] == {"type": "int", "low": 16, "high": 64, "step": 16, "log": False, "when": None}
    assert space["layers"]["step"] is None
    assert space["width"]["choices"] == [[64], [64, 32], None]


def test_a_definition_that_contradicts_the_study_ends_the_trial_with_both(hpo):
    study = by_run(hpo, "contradicting", search_space={"x": uniform(0, 1)})
    with pytest.raises(Invalid, match=r"\[0, 2\].*\[0, 1\]"):
        study.optimize(lambda trial: trial.suggest_float("x", 0, 2))
    with pytest.raises(Invalid, match="not a parameter"):
        study.optimize(lambda trial: trial.suggest_float("y", 0, 2))
    with pytest.raises(ValueError, match=r"suggest 'x': .*below low"):
        study.optimize(lambda trial: trial.suggest_float("x", 2, 1))
    assert [trial.state for trial in study.trials] == ["FAIL"] * 3


def test_in_a_given_space_the_objective_may_ask_as_well(hpo, monkeypatch):
    space = {
        "kind": choice("svc", "forest"),
        "c": log_uniform(1e-3, 1, when={"kind": ["svc"]}),
        "depth": integer(1, 8, when={"kind": ["forest"]}),
    }
    study = hpo.create_study("given", space, sampler=RANDOM)
    calls = []
    suggest = hpo.suggest
    monkeypatch.setattr(hpo, "suggest", lambda *arguments: (calls.append(1), suggest(*arguments))[1])

    def objective(trial):
        given = dict(trial.params)
        if trial.suggest_categorical("kind", ["svc", "forest"]) == "svc":
            assert trial.suggest_float("c", 1e-3, 1, log=True) == given["c"]
            with pytest.raises(ValueError, match="does not exist in this trial"):
                trial.suggest_int("depth", 1, 8)
        else:
            assert trial.suggest_int("depth", 1, 8) == given["depth"]
        return 1.0

    study.optimize(objective, n_trials=12)
    assert study.read()["counts"]["COMPLETE"] == 12
    assert len(calls) < 12, "the server is asked once for each definition, and where a trial lacks the name"


@pytest.mark.parametrize("step", [-1, 0.5, "a", None, float("nan"), True])
def test_a_step_that_is_none_is_an_error_that_says_what_is_the_value_and_what_the_step(hpo, step):
    study = by_run(hpo, f"steps-{step}".replace(".", "-").lower())
    with pytest.raises(ValueError, match=r"report\(value, step\): the step is .* a whole number from 0 up"):
        study.optimize(lambda trial: trial.report(3, step))


def test_a_step_may_be_whole_in_any_form(hpo):
    import numpy as np

    study = by_run(hpo, "whole-steps")

    def objective(trial):
        trial.report(np.float32(0.5), np.int64(3))
        trial.report(0.25, step=4.0)
        return

    study.optimize(objective, n_trials=1)
    assert study.trials[0].intermediate_values == {3: 0.5, 4: 0.25}
    assert study.best_value == 0.25


@pytest.mark.parametrize("pruned", [TrialPruned, optuna.TrialPruned])
def test_whoever_raises_trial_pruned_is_pruned(hpo, pruned):
    study = by_run(hpo, f"raising-{pruned.__module__.split('.')[0].replace('_', '-')}")

    def objective(trial):
        trial.report(0.5, 0)
        trial.set_user_attr("why", "hopeless")
        raise pruned("no use")

    study.optimize(objective, n_trials=2)
    assert [(trial.state, trial.value, trial.user_attrs) for trial in study.trials] == [
        ("PRUNED", 0.5, {"why": "hopeless"})
    ] * 2


def test_a_trial_that_should_be_pruned_knows_it_after_its_report(hpo):
    study = by_run(hpo, "should-prune", pruner={"name": "threshold", "params": {"upper": 0.5}})

    def objective(trial):
        assert not trial.should_prune()
        trial.report(0.1, 0)
        assert not trial.should_prune()
        trial.report(0.9, 1)
        if trial.should_prune():
            raise optuna.TrialPruned
        return 0.0

    study.optimize(objective, n_trials=1)
    assert study.trials[0].state == "PRUNED"


def test_who_was_stopped_by_a_person_is_not_taken_for_pruned(hpo):
    study = by_run(hpo, "stopped-by-hand")

    def objective(trial):
        hpo.stop_trial("stopped-by-hand", trial.number)
        trial.report(0.1, 0)
        if trial.should_prune():
            raise TrialPruned
        return 0.0

    study.optimize(objective, n_trials=1)
    assert (study.trials[0].state, study.trials[0]["reason"]) == ("FAIL", "stopped")


def test_user_attributes_are_kept_whatever_becomes_of_the_trial(hpo):
    study = by_run(hpo, "attributes")

    def objective(trial):
        trial.set_user_attr("number", trial.number)
        assert trial.user_attrs == {"number": trial.number}
        if trial.number == 1:
            raise ValueError("no luck")
        return "high" if trial.number == 2 else 0.5

    study.optimize(objective, n_trials=3, catch=ValueError)
    assert [(trial.state, trial.user_attrs["number"]) for trial in study.trials] == [
        ("COMPLETE", 0),
        ("FAIL", 1),
        ("FAIL", 2),
    ]
    with pytest.raises(TypeError, match="no form in JSON"):
        study.optimize(lambda trial: trial.set_user_attr("model", object()))
    assert study.trials[-1].state == "FAIL"


def test_what_is_too_large_to_be_kept_fails_its_trial_and_the_next_one_is_trained(hpo):
    study = by_run(hpo, "too-large")

    def objective(trial):
        trial.set_user_attr("weights", "x" * (600_000 if trial.number == 0 else 10))
        return 0.5

    study.optimize(objective, n_trials=2)
    assert [trial.state for trial in study.trials] == ["FAIL", "COMPLETE"]
    assert "384" in study.trials[0]["reason"] or "393,216" in study.trials[0]["reason"]


def test_a_study_knows_its_best_by_optunas_names(hpo):
    study = by_run(hpo, "best-of-all")
    with pytest.raises(ValueError, match="COMPLETE"):
        study.best_value  # noqa: B018
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=5)
    best = min(study.trials, key=lambda trial: trial.value)
    assert study.best_trial.number == best.number
    assert (study.best_value, study.best_params) == (best.value, best.params)
    assert [trial.number for trial in study.best_trials] == [best.number]
    assert len(study.trials) == 5
    assert study.trials[-1].number == 4
    assert [trial.number for trial in study.trials[1:3]] == [1, 2]
    with pytest.raises(IndexError):
        study.trials[5]
    assert len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE])) == 5
    assert study.get_trials(states=["FAIL"]) == []
    assert best.datetime_complete >= best.datetime_start
    assert dict(best)["values"] == best["values"] == [best.value]
    assert "attempt" in best
    assert best.get("unheard-of") is None
    assert best.duration.total_seconds() >= 0


def test_with_several_directions_there_is_a_front(hpo):
    study = hpo.create_study("a-front", directions=["minimize", "maximize"], sampler=RANDOM)
    study.optimize(lambda trial: (x := trial.suggest_float("x", 0, 1), x), n_trials=4)
    assert len(study.best_trials) == 4
    with pytest.raises(RuntimeError, match="best_trials"):
        study.best_trial  # noqa: B018
    with pytest.raises(RuntimeError, match="values"):
        study.trials[0].value  # noqa: B018


def test_callbacks_see_each_trial_as_it_was_told_and_may_end_the_search(hpo):
    study, seen = by_run(hpo, "called-back"), []

    def look(called, trial):
        assert called == study
        seen.append((trial.number, trial.state.name, trial.value, trial.params))
        if trial.number == 2:
            called.stop()

    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=9, callbacks=[look])
    assert [number for number, *_ in seen] == [0, 1, 2], "none was asked for beforehand"
    assert all(state == "COMPLETE" and params["x"] == value for _, state, value, params in seen)
    assert study.read()["state"] == "STOPPED"


def test_after_the_time_nothing_is_begun(hpo):
    study = by_run(hpo, "time-is-over")

    def objective(trial):
        time.sleep(0.2)
        return 0.5

    study.optimize(objective, timeout=0.3)
    counts = study.read()["counts"]
    assert 1 <= counts["COMPLETE"] <= 3
    assert counts["RUNNING"] == counts["WAITING"] == 0


def test_several_threads_train_as_many_trials_as_were_asked_for(hpo):
    study, at_once, most = by_run(hpo, "threads"), [], []
    both = threading.Barrier(2, timeout=30)

    def objective(trial):
        at_once.append(trial.number)
        if trial.number < 2:
            both.wait()
        most.append(len(at_once))
        at_once.remove(trial.number)
        return trial.suggest_float("x", 0, 1)

    study.optimize(objective, n_trials=7, n_jobs=2)
    assert study.read()["counts"]["COMPLETE"] == 7
    assert max(most) == 2


def test_what_one_thread_raises_ends_them_all(hpo):
    study = by_run(hpo, "one-raises")

    def objective(trial):
        if trial.number == 3:
            raise ZeroDivisionError("of no use")
        return 0.5

    with pytest.raises(ZeroDivisionError):
        study.optimize(objective, n_jobs=3, n_trials=100)
    counts = study.read()["counts"]
    assert counts["FAIL"] == 1
    assert counts["COMPLETE"] < 20
    assert counts["RUNNING"] == 0


def test_a_machine_that_fails_is_tried_again_by_the_same_loop(hpo, monkeypatch):
    monkeypatch.setattr("hpo_service.client.optimizing.RETRY_SECONDS", 0.01)
    study = by_run(hpo, "machine-fails")
    drawn = []

    def objective(trial):
        drawn.append(trial.suggest_float("x", 0, 1))
        if trial.attempt == 1:
            raise Retry("out of memory")
        return 0.5

    study.optimize(objective, n_trials=1)
    assert study.trials[0].state == "COMPLETE"
    assert drawn[0] == drawn[1]


def test_a_study_is_paused_and_resumed(hpo):
    study = by_run(hpo, "steered")
    assert study.pause()["state"] == "PAUSED"
    assert study.resume()["state"] == "ACTIVE"
    assert study.stop()["state"] == "STOPPED"
    assert study.cancel()["state"] == "CANCELLED"


def test_a_trial_asked_for_by_hand_suggests_and_is_told(hpo):
    study = by_run(hpo, "by-hand-too")
    [trial] = study.ask()
    x = trial.suggest_float("x", 0, 1)
    trial.set_user_attr("note", "by hand")
    told = study.tell(trial, x)
    assert (told.state, told.value, told.user_attrs) == ("COMPLETE", x, {"note": "by hand"})
    [other] = study.ask()
    assert study.tell(other, state=optuna.trial.TrialState.PRUNED).state == "PRUNED"


@pytest.mark.slow
def test_the_same_trial_is_given_to_an_objective_by_a_worker(hpo, start, tmp_path):
    study = by_run(hpo, "by-a-worker", limits={"trials": 3})
    (tmp_path / "ported.py").write_text(
        textwrap.dedent("""
            import optuna

            def objective(trial):
                x = trial.suggest_float("x", 0.0, 1.0)
                kind = trial.suggest_categorical("kind", ["a", "b"])
                trial.set_user_attr("kind_was", kind)
                trial.report(x, 0)
                if trial.number == 1:
                    raise optuna.TrialPruned()
                return x
        """)
    )
    worker = start("hpo_worker", "--study", study.name, "--objective", "ported:objective", "--until-done")
    worker.communicate(timeout=60)
    assert [trial.state for trial in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert all(trial.user_attrs == {"kind_was": trial.params["kind"]} for trial in study.trials)
    assert all(trial.value == trial.params["x"] for trial in study.trials)


@pytest.mark.slow
def test_a_worker_says_what_its_objective_defines_otherwise(hpo, start):
    create(hpo, "by-a-worker-otherwise", trials=1)
    worker = start_worker(start, "by-a-worker-otherwise", "suggests_otherwise", "--until-done")
    worker.communicate(timeout=60)
    (trial,) = hpo.trials("by-a-worker-otherwise")
    assert trial["state"] == "FAIL"
    assert "defined here as" in trial["reason"]


def test_a_forked_process_does_not_share_its_parents_connections(hpo):
    study = by_run(hpo, "forked")
    assert hpo.study("forked")["state"] == "ACTIVE"
    child = os.fork()
    if child == 0:
        failed = 1
        try:
            study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=20)
            failed = 0
        finally:
            os._exit(failed)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=20)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert study.read()["counts"]["COMPLETE"] == 40


def test_the_table_of_trials_has_optunas_columns(hpo):
    study = by_run(hpo, "table-of-all")

    def objective(trial):
        kind = trial.suggest_categorical("kind", ["a", "b"])
        trial.set_user_attr("length", len(kind))
        if trial.number == 1:
            raise ValueError("no luck")
        if trial.number == 2:
            trial.report(0.25, 0)
            raise optuna.TrialPruned
        return trial.suggest_float("x", 0, 1) if kind == "a" else 1.0

    study.optimize(objective, n_trials=6, catch=ValueError)
    theirs = optuna.create_study()
    theirs.optimize(objective, n_trials=6, catch=ValueError)
    table = study.trials_dataframe()
    expected = [name for name in theirs.trials_dataframe().columns if not name.startswith("system_attrs")]
    assert set(table.columns) <= set(expected) | {"params_x"}
    assert list(table["number"]) == list(range(6))
    assert list(table["state"]) == ["COMPLETE", "FAIL", "PRUNED", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert list(table["value"].isna()) == [state == "FAIL" for state in table["state"]]
    assert list(table["params_x"].notna()) == [
        (kind == "a") and state == "COMPLETE" for kind, state in zip(table["params_kind"], table["state"], strict=True)
    ]
    assert study.trials_dataframe(attrs=("number", "value")).columns.tolist() == ["number", "value"]


def test_the_table_of_trials_has_the_curves_a_column_a_step_as_optunas(hpo):
    study, theirs = by_run(hpo, "table-of-curves"), optuna.create_study()

    def objective(trial):
        for step in range(3 + 9 * trial.number):
            trial.report(float(step * trial.number), step)
        return 0.0

    for each in (study, theirs):
        each.optimize(objective, n_trials=2)
    attrs = ("number", "intermediate_values")
    table, expected = study.trials_dataframe(attrs), theirs.trials_dataframe(attrs)
    assert table.columns.tolist() == expected.columns.tolist()
    assert table.equals(expected)


def test_progress_is_a_line_with_the_best_so_far():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    told = {"study": "s", "number": 0, "state": "COMPLETE", "values": [0.5], "params": {}}
    screen, file = Terminal(), io.StringIO()
    for stream in (screen, file):
        progress = ProgressLine(3, ["minimize"], stream)
        for number, (state, values) in enumerate([("COMPLETE", [0.5]), ("FAIL", None), ("COMPLETE", [0.25])]):
            progress.show(RecordedTrial({**told, "number": number, "state": state, "values": values}))
        progress.end()
    assert "3/3 trials (1 failed), best 0.25 (trial 2, minimized)" in screen.getvalue()
    assert screen.getvalue().count("\r") == 3
    assert file.getvalue().count("\n") == 1, "in a file it is a line now and then, and the last one"
