"""Real server, real workers, real kills: whatever dies, every trial is finished once, and by its attempt."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

import pytest

from hpo_service.client import Client, HeldTrial, log_uniform, uniform
from hpo_service.domain.errors import LeaseLost, ResultConflict

OBJECTIVES = """
    import os, time
    from pathlib import Path

    def slow_until_released(trial):
        for step in range(1_000_000):
            yield step, trial.params["x"]
            if Path(os.environ["GO_ON"]).exists():
                return
            time.sleep(0.01)

    def forty_epochs(trial):
        for step in range(40):
            yield step, trial.params["x"] + step
            time.sleep(0.02)
"""


class RealServer:
    """`hpo serve` on one port and one database, to be killed and started again."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        database = f"sqlite:///{self.folder}/hpo.db"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "hpo_service", "serve", "--no-auth"),
                *("--port", str(self.port), "--database", database),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline(), "the server did not start"

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def real_server(tmp_path_factory):
    server = RealServer(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def hpo(real_server):
    with Client(real_server.url) as client:
        yield client


@pytest.fixture
def go_on(tmp_path):
    return tmp_path / "go_on"


@pytest.fixture
def start(tmp_path, real_server, go_on):
    """Start a command of the house in the background, with the objectives above at hand."""
    (tmp_path / "objectives_for_real.py").write_text(textwrap.dedent(OBJECTIVES))
    started = []

    def run(*command: str):
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env={
                **os.environ,
                "PYTHONPATH": str(tmp_path),
                "HPO_SERVER": real_server.url,
                "GO_ON": str(go_on),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate()


def start_worker(start, study: str, objective: str, *options: str):
    module = f"objectives_for_real:{objective}"
    return start("worker", "--study", study, "--objective", module, "--processes", "1", *options)


def wait_for(happened: Callable[[], object], seconds: float = 40.0):
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.03)


def children(process):
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        return [int(pid) for pid in file.read().split()]


def create(hpo, name, trials=4, **fields):
    return hpo.create_study(
        name,
        search_space={"x": uniform(0, 1)},
        sampler={"name": "random", "seed": 1, "params": {}},
        limits={"trials": trials},
        **fields,
    )


def ends(hpo, study, number):
    return [(attempt["attempt"], attempt["end"]) for attempt in hpo.attempts(study, number)]


def kill_with_children(process):
    pids = children(process)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # else they could still hand their trials back, once alone
    process.kill()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_a_trial_whose_worker_is_killed_is_finished_by_another(hpo, start, go_on):
    study = create(hpo, "killed", trials=1, lease_seconds=1)
    killed = start_worker(start, "killed", "slow_until_released")
    wait_for(lambda: hpo.trial("killed", 0)["reports"] if study.read()["counts"]["RUNNING"] else False)
    first = hpo.trial("killed", 0)
    kill_with_children(killed)
    go_on.touch()
    other = start_worker(start, "killed", "slow_until_released", "--until-done")
    other.communicate(timeout=60)
    assert other.returncode == 0
    trial = hpo.trial("killed", 0)
    assert (trial["state"], trial["attempt"], trial["params"]) == ("COMPLETE", 2, first["params"])
    assert trial["worker_id"] != first["worker_id"]
    assert ends(hpo, "killed", 0) == [(1, "expired"), (2, "told")]
    assert study.read()["state"] == "COMPLETED"


def test_a_worker_that_is_told_to_leave_hands_its_trial_to_another(hpo, start, go_on):
    create(hpo, "handed", trials=1, lease_seconds=3600)
    leaver = start_worker(start, "handed", "slow_until_released")
    wait_for(lambda: hpo.study("handed")["counts"]["RUNNING"])
    leaver.terminate()
    leaver.communicate(timeout=30)
    assert leaver.returncode == 0
    wait_for(lambda: hpo.trial("handed", 0)["state"] == "WAITING")
    go_on.touch()
    start_worker(start, "handed", "slow_until_released", "--until-done").communicate(timeout=60)
    assert ends(hpo, "handed", 0) == [(1, "released"), (2, "told")]


def test_a_server_killed_and_started_again_loses_no_epoch(hpo, start, real_server):
    study = create(hpo, "restarted", trials=3)
    worker = start_worker(start, "restarted", "forty_epochs", "--until-done")
    wait_for(lambda: study.read()["counts"]["RUNNING"])
    for _ in range(2):
        real_server.kill()
        time.sleep(0.3)
        real_server.start()
        time.sleep(0.3)
    worker.communicate(timeout=60)
    assert worker.returncode == 0
    trials = list(study.trials())
    assert [trial["state"] for trial in trials] == ["COMPLETE"] * 3
    for trial in trials:
        assert [report["step"] for report in trial["reports"]] == list(range(40))
        assert trial["values"] == [trial["params"]["x"] + 39]
        assert trial["attempt"] == 1


def test_a_trial_stopped_by_a_person_ends_with_that_reason(hpo, start):
    create(hpo, "stopped", trials=1)
    worker = start_worker(start, "stopped", "slow_until_released", "--until-done")
    wait_for(lambda: hpo.study("stopped")["counts"]["RUNNING"])
    hpo.stop_trial("stopped", 0)
    worker.communicate(timeout=60)
    trial = hpo.trial("stopped", 0)
    assert (trial["state"], trial["reason"]) == ("FAIL", "stopped")


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
    worker = start("worker", "--processes", "2", "--until-done", "--json")
    output, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert json.loads(output) == {"trials": {"COMPLETE": 4}}
    study = hpo.study("network")
    assert study["state"] == "COMPLETED"
    assert all(len(trial["reports"]) == 3 for trial in hpo.trials("network"))
    hpo.test("network", ensemble=2)
    start("worker", "--processes", "1", "--until-done").communicate(timeout=60)
    test = hpo.study("network")["test"]
    assert test["state"] == "COMPLETE"
    assert test["ensemble"] == len(test["members"]) == 2
    assert hpo.test("network", ensemble=2)["test"] == test


def test_named_studies_are_trained_side_by_side_and_others_left_alone(hpo, start, go_on):
    go_on.touch()
    for name in ("left", "right", "other"):
        create(hpo, name, trials=3)
    worker = start_worker(start, "left", "slow_until_released", "--study", "right", "--until-done")
    worker.communicate(timeout=60)
    assert worker.returncode == 0
    states = {name: hpo.study(name)["state"] for name in ("left", "right", "other")}
    assert states == {"left": "COMPLETED", "right": "COMPLETED", "other": "ACTIVE"}
    assert list(hpo.trials("other")) == []


def test_a_worker_that_left_while_it_waited_is_given_nothing(hpo, start):
    create(hpo, "paused")
    hpo.pause("paused")
    known = hpo.workers()
    worker = start_worker(start, "paused", "forty_epochs")
    before = {each["worker_id"] for each in known}
    wait_for(lambda: {each["worker_id"] for each in hpo.workers()} - before)
    worker.terminate()
    worker.communicate(timeout=30)
    hpo.resume("paused")
    time.sleep(1)
    assert hpo.study("paused")["counts"]["RUNNING"] == 0


def test_a_study_that_is_not_there_is_exit_code_3(start):
    worker = start_worker(start, "nowhere", "forty_epochs")
    _, errors = worker.communicate(timeout=30)
    assert worker.returncode == 3
    assert "nowhere" in errors


# The SDK


def test_an_objective_is_optimized_in_a_loop(hpo):
    study = create(hpo, "optimized", trials=10)

    def objective(trial: HeldTrial) -> float:
        trial.report(0, trial.params["x"] / 2)
        return trial.params["x"]

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


def test_an_objective_that_raises_fails_its_trial_and_is_heard_of(hpo):
    study = create(hpo, "raising", trials=3)

    def objective(trial: HeldTrial) -> float:
        raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        study.optimize(objective)
    study.optimize(objective, catch=(ValueError,))
    assert [trial["reason"] for trial in study.trials()] == ["ValueError: no luck"] * 3


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
        second.report(0, 0.1)
    (again,) = study.ask()
    assert (again.number, again.attempt, again.params) == (second.number, 2, second.params)


def test_a_pruned_trial_that_obeys_is_told_as_pruned(hpo):
    study = create(hpo, "pruned", trials=1, pruner={"name": "threshold", "params": {"lower": 0.5}})

    def objective(trial: HeldTrial) -> float | None:
        for step in range(100):
            if trial.report(step, 0.1):
                return None
        return 1.0

    study.optimize(objective)
    (trial,) = study.trials()
    assert (trial["state"], trial["values"]) == ("PRUNED", [0.1])


# The agent


@pytest.fixture
def program(tmp_path):
    """A training program in a file of its own, that knows nothing of this house."""
    path = tmp_path / "train.py"
    path.write_text(
        textwrap.dedent("""
            import json, os, sys, time
            what, x = sys.argv[1], float(sys.argv[2])
            assert os.environ["HPO_PARAM_X"] == sys.argv[2]
            print("starting", flush=True)
            if what == "fails" and os.environ["HPO_TRIAL"] == "1":
                print("out of memory", file=sys.stderr)
                sys.exit(3)
            for step in range(3):
                print(json.dumps({"step": step, "value": x * step}), flush=True)
            if what == "hangs":
                open(os.environ["GO_ON"] + ".pid", "w").write(str(os.getpid()))
                time.sleep(600)
            if what == "tells":
                print(json.dumps({"value": x, "metrics": {"f1": 0.5}}))
        """)
    )
    return path


def test_a_command_trains_trials(hpo, start, program):
    create(hpo, "commanded", trials=4)
    command = (sys.executable, str(program), "tells", "{x}")
    agent = start("hpo_service", "agent", "commanded", "--workers", "2", "--json", "--", *command)
    output, errors = agent.communicate(timeout=60)
    assert agent.returncode == 0, errors
    assert json.loads(output) == {"trials": {"COMPLETE": 4}}
    assert errors.count("starting") == 4
    for trial in hpo.trials("commanded"):
        assert trial["values"] == [trial["params"]["x"]]
        assert len(trial["reports"]) == 3
        assert trial["metrics"] == {"f1": 0.5}


def test_a_command_that_fails_gives_its_last_words(hpo, start, program):
    create(hpo, "failing", trials=2)
    agent = start("hpo_service", "agent", "failing", "--", sys.executable, str(program), "fails", "{x}")
    agent.communicate(timeout=60)
    assert agent.returncode == 0
    told = [(trial["state"], trial["reason"]) for trial in hpo.trials("failing")]
    assert told == [("COMPLETE", None), ("FAIL", "exit code 3: out of memory")]
    assert hpo.trial("failing", 0)["values"] == [2 * hpo.trial("failing", 0)["params"]["x"]]


@pytest.mark.parametrize("how", ["leave", "stop"])
def test_a_command_ends_with_its_trial_and_with_the_agent(hpo, start, program, go_on, how):
    name = f"ended-by-{how}"
    create(hpo, name, trials=1)
    agent = start("hpo_service", "agent", name, "--", sys.executable, str(program), "hangs", "{x}")
    pid_file = go_on.with_suffix(".pid")
    wait_for(lambda: pid_file.exists() and pid_file.read_text())
    pid = int(pid_file.read_text())
    if how == "leave":
        agent.terminate()
    else:
        hpo.stop_trial(name, 0)
    agent.communicate(timeout=60)
    assert agent.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    trial = hpo.trial(name, 0)
    if how == "leave":
        assert trial["state"] == "WAITING"
        assert ends(hpo, name, 0) == [(1, "released")]
    else:
        assert (trial["state"], trial["reason"]) == ("FAIL", "stopped")


def test_an_unknown_placeholder_is_a_usage_error_and_nothing_is_asked(hpo, start, program):
    create(hpo, "misspelt", trials=1)
    agent = start("hpo_service", "agent", "misspelt", "--", sys.executable, str(program), "tells", "{y}")
    _, errors = agent.communicate(timeout=30)
    assert agent.returncode == 2
    assert "no parameter of this study" in " ".join(errors.replace("│", " ").split())
    assert hpo.study("misspelt")["counts"]["RUNNING"] == 0
    assert list(hpo.trials("misspelt")) == []


# Companies: four trials of the article's network in one process


def create_company(hpo, name, trials=8, epochs=100_000, samples=100, **fields):
    return hpo.create_study(
        name,
        search_space={"learning_rate": log_uniform(1e-3, 1e-2)},
        sampler={"name": "random", "seed": 1, "params": {}},
        limits={"trials": trials},
        objective={"kind": "neural_network", "samples": samples, "epochs": epochs, "hidden_sizes": [20]},
        **fields,
    )


def start_company(start, study, *options):
    return start("worker", "--study", study, "--processes", "1", *options)


def all_training(hpo, study, trials):
    return lambda: sum(bool(trial["reports"]) for trial in hpo.trials(study, state="RUNNING")) == trials


def test_a_worker_that_is_told_to_leave_hands_its_whole_company_back(hpo, start):
    create_company(hpo, "company_leaves", lease_seconds=3600)
    worker = start_company(start, "company_leaves")
    wait_for(all_training(hpo, "company_leaves", 4))
    worker.terminate()
    worker.communicate(timeout=30)
    assert worker.returncode == 0
    counts = hpo.study("company_leaves")["counts"]
    assert (counts["RUNNING"], counts["WAITING"]) == (0, 4)
    assert [ends(hpo, "company_leaves", number) for number in range(4)] == [[(1, "released")]] * 4


def test_a_killed_workers_company_is_given_out_again_and_reports_the_same_bits(hpo, start):
    slow = {"trials": 4, "epochs": 30, "samples": 4000}
    create_company(hpo, "company_killed", **slow, lease_seconds=1)
    create_company(hpo, "company_spared", **slow)
    killed = start_company(start, "company_killed")
    wait_for(all_training(hpo, "company_killed", 4))
    kill_with_children(killed)
    for study in ("company_killed", "company_spared"):
        worker = start_company(start, study, "--until-done")
        worker.communicate(timeout=60)
        assert worker.returncode == 0
    again, spared = (list(hpo.trials(study)) for study in ("company_killed", "company_spared"))
    assert {trial["attempt"] for trial in again} == {2}
    assert [trial["reports"] for trial in again] == [trial["reports"] for trial in spared]


def test_companies_of_two_processes_give_out_each_trial_once_and_no_more(hpo, start):
    create_company(hpo, "company_limit", trials=20, epochs=50)
    worker = start("worker", "--study", "company_limit", "--processes", "2", "--until-done", "--json")
    output, _ = worker.communicate(timeout=60)
    assert json.loads(output) == {"trials": {"COMPLETE": 20}}
    trials = list(hpo.trials("company_limit"))
    assert [trial["number"] for trial in trials] == list(range(20))
    assert {trial["attempt"] for trial in trials} == {1}
