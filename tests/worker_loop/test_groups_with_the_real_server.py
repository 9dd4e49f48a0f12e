"""Companies on a real server: four trials of the article's network in one process."""

from __future__ import annotations

import json

import pytest

from hpo_service.client import log_uniform
from tests.patience import PATIENCE_SECONDS
from tests.worker_loop.real_server import ends, kill_with_children, wait_for


def create_group(hpo, name, trials=8, epochs=100_000, samples=100, **fields):
    return hpo.create_study(
        name,
        search_space={"learning_rate": log_uniform(1e-3, 1e-2)},
        sampler={"name": "random", "seed": 1, "params": {}},
        limits={"trials": trials},
        objective={"kind": "neural_network", "samples": samples, "epochs": epochs, "hidden_sizes": [20]},
        **fields,
    )


def start_group(start, study, *options):
    return start("hpo_worker", "--study", study, "--processes", "1", *options)


def all_training(hpo, study, trials):
    return lambda: sum(bool(trial["reports"]) for trial in hpo.trials(study, state="RUNNING")) == trials


@pytest.mark.slow
def test_a_worker_that_is_told_to_leave_hands_its_whole_group_back(hpo, start):
    create_group(hpo, "company_leaves", lease_seconds=3600)
    worker = start_group(start, "company_leaves")
    wait_for(all_training(hpo, "company_leaves", 4))
    worker.terminate()
    worker.communicate(timeout=PATIENCE_SECONDS)
    assert worker.returncode == 0
    counts = hpo.study("company_leaves")["counts"]
    assert (counts["RUNNING"], counts["WAITING"]) == (0, 4)
    assert [ends(hpo, "company_leaves", number) for number in range(4)] == [[(1, "released")]] * 4


@pytest.mark.slow
def test_a_killed_workers_group_is_given_out_again_and_reports_the_same_bits(hpo, start):
    slow = {"trials": 4, "epochs": 30, "samples": 4000}
    create_group(hpo, "company_killed", **slow, lease_seconds=1)
    create_group(hpo, "company_spared", **slow)
    killed = start_group(start, "company_killed")
    wait_for(all_training(hpo, "company_killed", 4))
    kill_with_children(killed)
    for study in ("company_killed", "company_spared"):
        worker = start_group(start, study, "--until-done")
        worker.communicate(timeout=PATIENCE_SECONDS)
        assert worker.returncode == 0
    again, spared = (list(hpo.trials(study)) for study in ("company_killed", "company_spared"))
    assert {trial["attempt"] for trial in again} == {2}
    assert [trial["reports"] for trial in again] == [trial["reports"] for trial in spared]


@pytest.mark.slow
def test_companies_of_two_processes_give_out_each_trial_once_and_no_more(hpo, start):
    create_group(hpo, "company_limit", trials=20, epochs=50)
    worker = start("hpo_worker", "--study", "company_limit", "--processes", "2", "--until-done", "--json")
    output, _ = worker.communicate(timeout=PATIENCE_SECONDS)
    assert json.loads(output) == {"trials": {"COMPLETE": 20}}
    trials = list(hpo.trials("company_limit"))
    assert [trial["number"] for trial in trials] == list(range(20))
    assert {trial["attempt"] for trial in trials} == {1}
