"""Real server, real workers, real kills: whatever dies, every trial is finished once, and by its attempt."""

from __future__ import annotations

import json
import time

import pytest

from hpo_service.client import log_uniform
from tests.patience import PATIENCE_SECONDS
from tests.worker_loop.real_server import create, ends, kill_with_children, start_worker, wait_for


@pytest.mark.slow
def test_a_trial_whose_worker_is_killed_is_finished_by_another(hpo, start, go_on):
    study = create(hpo, "killed", trials=1, lease_seconds=1)
    killed = start_worker(start, "killed", "slow_until_released")
    wait_for(lambda: hpo.trial("killed", 0)["reports"] if study.read()["counts"]["RUNNING"] else False)
    first = hpo.trial("killed", 0)
    kill_with_children(killed)
    go_on.touch()
    other = start_worker(start, "killed", "slow_until_released", "--until-done")
    other.communicate(timeout=PATIENCE_SECONDS)
    assert other.returncode == 0
    trial = hpo.trial("killed", 0)
    assert (trial["state"], trial["attempt"], trial["params"]) == ("COMPLETE", 2, first["params"])
    assert trial["worker_id"] != first["worker_id"]
    assert ends(hpo, "killed", 0) == [(1, "expired"), (2, "told")]
    assert study.read()["state"] == "COMPLETED"


@pytest.mark.slow
def test_a_worker_that_is_told_to_leave_hands_its_trial_to_another(hpo, start, go_on):
    create(hpo, "handed", trials=1, lease_seconds=3600)
    leaver = start_worker(start, "handed", "slow_until_released")
    wait_for(lambda: hpo.study("handed")["counts"]["RUNNING"])
    leaver.terminate()
    leaver.communicate(timeout=PATIENCE_SECONDS)
    assert leaver.returncode == 0
    wait_for(lambda: hpo.trial("handed", 0)["state"] == "WAITING")
    go_on.touch()
    start_worker(start, "handed", "slow_until_released", "--until-done").communicate(timeout=PATIENCE_SECONDS)
    assert ends(hpo, "handed", 0) == [(1, "released"), (2, "told")]


@pytest.mark.slow
def test_a_server_killed_and_started_again_loses_no_epoch(hpo, start, real_server):
    study = create(hpo, "restarted", trials=3)
    worker = start_worker(start, "restarted", "forty_epochs", "--until-done")
    wait_for(lambda: study.read()["counts"]["RUNNING"])
    for _ in range(2):
        real_server.kill()
        time.sleep(0.3)
        real_server.start()
        time.sleep(0.3)
    worker.communicate(timeout=PATIENCE_SECONDS)
    assert worker.returncode == 0
    trials = list(study.trials())
    assert [trial["state"] for trial in trials] == ["COMPLETE"] * 3
    for trial in trials:
        assert [report["step"] for report in trial["reports"]] == list(range(40))
        assert trial["values"] == [trial["params"]["x"] + 39]
        assert trial["attempt"] == 1


@pytest.mark.slow
def test_a_trial_stopped_by_a_person_ends_with_that_reason(hpo, start):
    create(hpo, "stopped", trials=1)
    worker = start_worker(start, "stopped", "slow_until_released", "--until-done")
    wait_for(lambda: hpo.study("stopped")["counts"]["RUNNING"])
    hpo.stop_trial("stopped", 0)
    worker.communicate(timeout=PATIENCE_SECONDS)
    trial = hpo.trial("stopped", 0)
    assert (trial["state"], trial["reason"]) == ("FAIL", "stopped")


@pytest.mark.slow
def test_the_network_is_searched_and_its_test_set_opened_once(hpo, start):
    hpo.create(
        {
            "name": "network",
            "search_space": {"learning_rate": log_uniform(1e-3, 1e-1)},
            "sampler": {"name": "random", "seed": 1},
            "limits": {"trials": 4},
            "objective": {"kind": "neural_network", "samples": 100, "epochs": 3, "hidden_sizes": [20]},
        }
    )
    worker = start("hpo_worker", "--processes", "2", "--until-done", "--json")
    output, _ = worker.communicate(timeout=PATIENCE_SECONDS)
    assert worker.returncode == 0
    assert json.loads(output) == {"trials": {"COMPLETE": 4}}
    study = hpo.study("network")
    assert study["state"] == "COMPLETED"
    assert all(len(trial["reports"]) == 3 for trial in hpo.trials("network"))
    hpo.test("network", ensemble=2)
    start("hpo_worker", "--processes", "1", "--until-done").communicate(timeout=PATIENCE_SECONDS)
    test = hpo.study("network")["test"]
    assert test["state"] == "COMPLETE"
    assert test["ensemble"] == len(test["members"]) == 2
    assert hpo.test("network", ensemble=2)["test"] == test


@pytest.mark.slow
def test_named_studies_are_trained_side_by_side_and_others_left_alone(hpo, start, go_on):
    go_on.touch()
    for name in ("left", "right", "other"):
        create(hpo, name, trials=3)
    worker = start_worker(start, "left", "slow_until_released", "--study", "right", "--until-done")
    worker.communicate(timeout=PATIENCE_SECONDS)
    assert worker.returncode == 0
    states = {name: hpo.study(name)["state"] for name in ("left", "right", "other")}
    assert states == {"left": "COMPLETED", "right": "COMPLETED", "other": "ACTIVE"}
    assert list(hpo.trials("other")) == []


@pytest.mark.slow
def test_a_worker_that_left_while_it_waited_is_given_nothing(hpo, start):
    create(hpo, "paused")
    hpo.pause("paused")
    known = hpo.workers()
    worker = start_worker(start, "paused", "forty_epochs")
    before = {each["worker_id"] for each in known}
    wait_for(lambda: {each["worker_id"] for each in hpo.workers()} - before)
    worker.terminate()
    worker.communicate(timeout=PATIENCE_SECONDS)
    hpo.resume("paused")
    time.sleep(1)
    assert hpo.study("paused")["counts"]["RUNNING"] == 0


@pytest.mark.slow
def test_a_study_that_is_not_there_is_exit_code_3(start):
    worker = start_worker(start, "nowhere", "forty_epochs")
    _, errors = worker.communicate(timeout=PATIENCE_SECONDS)
    assert worker.returncode == 3
    assert "nowhere" in errors
