"""A worker whose trials all fail ends and says why; what the machine has failed in is tried again."""

from __future__ import annotations

import json
import random
import sys

import pytest

from hpo_service.client import Client, HeldTrial, Retry
from hpo_worker.datasets import DatasetMissing
from hpo_worker.failure_limit import FailureLimit, TooManyFailures
from hpo_worker.heartbeat import HeartbeatSender
from hpo_worker.loop import Worker
from hpo_worker.objective import NeuralNetwork
from hpo_worker.outbox import Outbox
from tests.worker_loop.conftest import SOON, StandIn
from tests.worker_loop.real_server import create, ends, start_worker

MANY = 12


@pytest.fixture
def stand_in():
    return StandIn([{"x": number / 10} for number in range(MANY)])


@pytest.fixture
def worker(server):
    def make(objective, max_failures=5):
        outbox = Outbox()
        heartbeat = HeartbeatSender(Client(server, retries=SOON), outbox)
        heartbeat.start()
        return Worker(
            Client(server, retries=SOON),
            heartbeat,
            outbox,
            objective,
            worker_id="me",
            studies=("s",),
            until_done=True,
            failure_limit=FailureLimit(max_failures),
            rng=random.Random(1),
        )

    return make


def failing(trial):
    raise RuntimeError("CUDA out of memory")


@pytest.mark.parametrize("max_failures", [1, 5])
def test_failures_in_a_row_end_the_worker_with_the_reason(worker, stand_in, max_failures):
    with pytest.raises(TooManyFailures, match="RuntimeError: CUDA out of memory"):
        worker(failing, max_failures).run()
    assert len(stand_in.told) == max_failures


def test_zero_never_ends_it(worker, stand_in):
    worker(failing, 0).run()
    assert len(stand_in.told) == MANY


@pytest.mark.parametrize("saves", ["result", "report"])
def test_a_result_or_a_report_breaks_the_row(worker, stand_in, saves):
    def objective(trial):
        if trial.number % 5 == 4:
            if saves == "result":
                return 0.5
            trial.report(0.5, 0)
        raise RuntimeError("no")

    worker(objective).run()
    assert len(stand_in.told) == MANY


@pytest.mark.slow
def test_trials_that_were_stopped_are_no_failures_of_the_worker(worker, stand_in):
    stand_in.stops.update(dict.fromkeys(range(MANY), "stopped"))
    stand_in.lease_seconds = 0.03

    def objective(trial):
        while not trial.should_stop:
            pass

    work = worker(objective)
    work.run()
    assert dict(work.outcome_counts) == {"FAIL": MANY}


def test_a_network_that_diverges_is_a_finding_and_no_failure_of_the_worker(worker, stand_in):
    stand_in.study["objective"] = {"kind": "neural_network", "samples": 100, "epochs": 3}
    stand_in.params[:] = [{"learning_rate": 1e5}] * MANY
    worker(NeuralNetwork(None)).run()
    assert {told["reason"] for told in stand_in.told.values()} == {"diverged"}


def test_a_study_whose_data_is_not_here_is_refused_before_anything_is_asked(worker, stand_in):
    stand_in.study["objective"] = {"kind": "neural_network", "dataset": "nowhere"}
    work = worker(NeuralNetwork(None))
    work.check_studies()
    with pytest.raises(DatasetMissing, match=r"'nowhere' .* name one with --data or HPO_DATA"):
        work.run()
    assert stand_in.count("ask") == 0


def test_a_retry_is_told_as_one_and_counted_nowhere(worker, stand_in, monkeypatch):
    monkeypatch.setattr("hpo_worker.loop.RETRY_SECONDS", 0.01)

    def objective(trial):
        raise Retry("the disk is full")

    work = worker(objective)
    work.run()
    assert {json.dumps(told["reason"]) for told in stand_in.told.values()} == {'"the disk is full"'}
    assert all(told["retry"] for told in stand_in.told.values())
    assert (work.failure_limit.failed, work.failure_limit.successes) == (0, 0)


# With the real server

OBJECTIVES = """
    from hpo_service.client import Retry

    def failing(trial):
        raise RuntimeError("CUDA out of memory")

    def nan(trial):
        return float("nan") if trial.number == 0 else 0.5

    def full_at_first(trial):
        if trial.attempt == 1:
            raise Retry("the disk is full")
        return 0.5
"""


@pytest.fixture
def with_objectives(tmp_path, start):
    (tmp_path / "failing_objectives.py").write_text("\n".join(line[4:] for line in OBJECTIVES.splitlines()))
    return start


def run_worker(start, study, objective, *options):
    process = start(
        *("hpo_worker", "--study", study, "--objective", f"failing_objectives:{objective}"),
        *("--processes", "1", "--until-done", "--json", *options),
    )
    out, errors = process.communicate(timeout=90)
    return process.returncode, json.loads(out)["trials"], errors


@pytest.mark.slow
def test_a_worker_ends_after_five_failures_with_exit_code_1(hpo, with_objectives):
    create(hpo, "five-failures", trials=50)
    code, trials, errors = run_worker(with_objectives, "five-failures", "failing")
    assert (code, trials) == (1, {"FAIL": 5})
    assert "5 trials in a row" in errors
    assert "CUDA out of memory" in errors


@pytest.mark.slow
def test_as_many_failures_as_are_said_end_all_its_processes(hpo, with_objectives):
    create(hpo, "two-failures", trials=50)
    code, trials, _ = run_worker(with_objectives, "two-failures", "failing", "--max-failures", "2", "-p", "2")
    assert code == 1
    assert 2 <= trials["FAIL"] <= 4


@pytest.mark.slow
def test_trials_that_all_fail_are_no_success(hpo, with_objectives):
    create(hpo, "all-fail", trials=3)
    assert run_worker(with_objectives, "all-fail", "failing")[:2] == (1, {"FAIL": 3})


@pytest.mark.slow
def test_nan_counts_as_what_the_trial_became(hpo, with_objectives):
    create(hpo, "nan-counts", trials=2)
    assert run_worker(with_objectives, "nan-counts", "nan")[:2] == (0, {"FAIL": 1, "COMPLETE": 1})


@pytest.mark.slow
def test_a_trial_whose_machine_failed_is_trained_again(hpo, with_objectives):
    create(hpo, "full-disk", trials=2)
    assert run_worker(with_objectives, "full-disk", "full_at_first")[:2] == (0, {"retried": 2, "COMPLETE": 2})
    assert ends(hpo, "full-disk", 0) == [(1, "told"), (2, "told")]


@pytest.mark.slow
def test_a_worker_of_a_paused_study_says_why_it_waits(hpo, start):
    study = create(hpo, "why-paused", trials=50)
    hpo.patch("why-paused", limits={"failures": 1})
    study.ask()[0].tell(state="FAIL", reason="no GPU here")
    worker = start_worker(start, "why-paused", "forty_epochs")
    line = ""
    while "no GPU here" not in line:
        line = worker.stderr.readline()
        assert line, "it has ended"
    assert "paused" in line


AGENT = """
import os, sys
what = sys.argv[1]
if what == "fails":
    sys.exit("a module is missing")
if what == "tempfail" and not os.path.exists("tried"):
    open("tried", "w").close()
    print("the disk is full", file=sys.stderr)
    sys.exit(75)
print('{"value": 0.5}')
"""


def run_agent(start, tmp_path, study, what, *options):
    (tmp_path / "train.py").write_text(AGENT.replace('"tried"', repr(str(tmp_path / "tried"))))
    command = (sys.executable, str(tmp_path / "train.py"), what)
    process = start("hpo_service", "agent", study, "--json", *options, "--", *command)
    out, errors = process.communicate(timeout=90)
    return process.returncode, json.loads(out)["trials"], errors


@pytest.mark.slow
@pytest.mark.parametrize(("options", "failed"), [((), 5), (("--max-failures", "2"), 2)])
def test_an_agent_ends_after_so_many_failures_with_exit_code_1(hpo, start, tmp_path, options, failed):
    create(hpo, f"agent-{failed}", trials=50)
    code, trials, errors = run_agent(start, tmp_path, f"agent-{failed}", "fails", *options)
    assert (code, trials) == (1, {"FAIL": failed})
    assert "exit code 1: a module is missing" in errors.splitlines()[-1]


@pytest.mark.slow
def test_an_agent_whose_trials_all_fail_does_not_succeed(hpo, start, tmp_path):
    create(hpo, "agent-all", trials=3)
    code, trials, errors = run_agent(start, tmp_path, "agent-all", "fails", "--max-failures", "0")
    assert (code, trials) == (1, {"FAIL": 3})
    assert "3 trials failed and none came through" in errors


@pytest.mark.slow
def test_exit_code_75_of_a_command_has_the_trial_given_out_again(hpo, start, tmp_path):
    create(hpo, "tempfail", trials=1)
    assert run_agent(start, tmp_path, "tempfail", "tempfail")[:2] == (0, {"retried": 1, "COMPLETE": 1})
    assert ends(hpo, "tempfail", 0) == [(1, "told"), (2, "told")]


def test_in_the_sdk_a_retry_is_given_out_again_and_the_loop_goes_on(hpo, monkeypatch):
    monkeypatch.setattr("hpo_service.client.optimizing.RETRY_SECONDS", 0.01)
    study = create(hpo, "sdk-retry", trials=4)

    def objective(trial: HeldTrial) -> float:
        if trial.attempt == 1 or trial.number == 1:
            raise Retry("out of memory")
        return 0.5

    study.optimize(objective, n_trials=2)
    first, second = hpo.trial("sdk-retry", 0), hpo.trial("sdk-retry", 1)
    assert (first["state"], first["attempt"]) == ("COMPLETE", 2)
    assert (second["state"], second["reason"]) == ("FAIL", "attempts_exhausted: out of memory")
    assert len(list(study.trials())) == 2
