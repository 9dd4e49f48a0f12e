"""Real worker processes and signals: how they leave, crash, are replaced, and what becomes of their trials."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from hpo_worker.shutdown import AT_ONCE
from hpo_worker.supervisor import pause_after
from tests.patience import PATIENCE_SECONDS

OBJECTIVES = """
    import multiprocessing, os, time

    def one_epoch_after_another(trial):
        for step in range(1_000_000):
            yield step, 0.5
            time.sleep(0.01)

    def one_long_epoch(trial):
        print("an objective may print")
        time.sleep(600)

    def deaf(trial):
        while True:
            try:
                time.sleep(600)
            except BaseException:
                pass

    def slow_to_let_go(trial):
        try:
            time.sleep(600)
        except BaseException:
            time.sleep(1.5)
            raise

    def quick(trial):
        return trial.params["x"]

    def crash_on_the_first_attempt(trial):
        if trial.attempt == 1:
            trial.report(0.5, 0)
            os.kill(os.getpid(), 9)
        return 0.5

    def leave_at_once_on_the_first_attempt(trial):
        if trial.attempt == 1:
            trial.report(0.5, 0)
            os._exit(3)
        return 0.5

    def square(number):
        return number * number

    def in_a_pool(trial):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            squares = pool.map(square, range(4))
        ended = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        ended.start()
        ended.terminate()
        ended.join()
        return float(sum(squares))
"""


@pytest.fixture
def start(tmp_path, server):
    """Start `python -m hpo_worker` with one of the objectives above; end what is left of it afterwards."""
    (tmp_path / "objectives_of_the_test.py").write_text(textwrap.dedent(OBJECTIVES))
    started = []

    def run(objective, *options):
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "hpo_worker", "--server", server, "--study", "s", "--json"),
                *("--objective", objective if ":" in objective else f"objectives_of_the_test:{objective}"),
                *(options or ("--processes", "1")),
            ],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def children(process):
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        return [int(pid) for pid in file.read().split()]


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids):
    until = time.monotonic() + PATIENCE_SECONDS
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("objective", ["one_epoch_after_another", "one_long_epoch"])
def test_a_worker_told_to_leave_hands_its_trial_back(start, stand_in, objective, signum):
    process = start(objective)
    stand_in.wait_for(lambda: stand_in.running)
    process.send_signal(signum)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert stand_in.released == [(0, 1)]
    assert stand_in.waiting[0] == 0
    said = json.loads(output)["trials"]
    # Where somebody waits at a terminal, it waits but a moment for the answer.
    assert said == {"released": 1} or (signum in AT_ONCE and not said)


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "answer_takes"), [("deaf", 0), ("slow_to_let_go", 2)])
def test_a_worker_whose_objective_does_not_listen_hands_its_trial_back_all_the_same(
    start, stand_in, objective, answer_takes
):
    """Another thread does. Where the objective lets go meanwhile, to end the process would cut its calls off."""
    process = start(objective)
    stand_in.wait_for(lambda: stand_in.running)
    time.sleep(0.2)  # into the objective
    stand_in.fault = lambda verb, count: time.sleep(answer_takes)
    process.terminate()
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert stand_in.released == [(0, 1)]
    assert json.loads(output) == {"trials": {"released": 1}}


@pytest.mark.slow
def test_a_signal_that_meets_a_worker_which_ends_for_an_error_cuts_nothing_off(start, stand_in):
    batch = stand_in._batch
    process = start("one_epoch_after_another")

    def refuse_reports_and_take_back_slowly(body):
        if body["calls"][0]["call"] != "release":
            return 403, {"code": "forbidden", "detail": "not with this key"}
        os.kill(children(process)[0], signal.SIGTERM)
        time.sleep(0.3)
        return batch(body)

    stand_in._batch = refuse_reports_and_take_back_slowly
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode in (0, 4)  # on a very busy machine it has no time left to say more
    assert len(stand_in.released) == 1
    assert "Traceback" not in errors


def test_a_second_signal_ends_it_at_once(start, stand_in):
    process = start("deaf")
    stand_in.wait_for(lambda: stand_in.running)
    time.sleep(0.2)
    process.terminate()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 128 + signal.SIGINT
    assert stand_in.released == []


@pytest.mark.slow
def test_signals_of_one_moment_are_one(start, stand_in):
    """Slurm signals each process of a job, the supervisor passes it on, and a shell may, too."""
    process = start("one_long_epoch", "--processes", "2")
    stand_in.wait_for(lambda: len(stand_in.running) == 2)
    pids = [process.pid, *children(process)]
    for _ in range(2):
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert sorted(stand_in.released) == [(0, 1), (1, 1)]


@pytest.mark.slow
def test_a_worker_that_waits_for_trials_leaves_at_once_and_keeps_none(start, stand_in):
    stand_in.waiting.clear()
    process = start("quick")
    stand_in.wait_for(lambda: stand_in.count("ask") >= 1)
    with stand_in.lock:
        stand_in.waiting.append(3)  # the answer to the question it hangs up on
    process.terminate()
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert stand_in.running == {}
    assert stand_in.told == {} or stand_in.told.keys() == {3}


@pytest.mark.slow
def test_a_worker_leaves_a_server_that_does_not_answer(start, stand_in):
    process = start("one_long_epoch")
    stand_in.wait_for(lambda: stand_in.running)
    stand_in.fault = lambda verb, count: time.sleep(30) or "drop"
    process.terminate()
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0


@pytest.mark.slow
def test_a_worker_waits_for_a_server_that_is_slow_to_take_its_trial_back(start, stand_in):
    process = start("one_long_epoch")
    stand_in.wait_for(lambda: stand_in.running)
    stand_in.fault = lambda verb, count: time.sleep(2)
    process.terminate()
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert stand_in.released == [(0, 1)]
    assert json.loads(output) == {"trials": {"released": 1}}  # it has heard the answer


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["away", "drop"])
def test_a_worker_asks_a_server_again_that_is_being_replaced_to_take_its_trial_back(start, stand_in, fault):
    process = start("deaf" if fault == "drop" else "one_long_epoch")
    stand_in.wait_for(lambda: stand_in.running)
    calls = itertools.count()
    stand_in.fault = lambda verb, count: fault if verb == "batch" and next(calls) < 2 else None
    process.terminate()
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert stand_in.released == [(0, 1)]
    assert next(calls) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "waits"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_who_types_ctrl_c_waits_for_no_server_that_does_not_answer(start, stand_in, signum, waits):
    process = start("one_long_epoch")
    stand_in.wait_for(lambda: stand_in.running)
    calls, answers = [], threading.Event()
    stand_in.fault = lambda verb, count: calls.append(verb) or (answers.wait() and "drop")
    process.send_signal(signum)
    process.communicate(timeout=PATIENCE_SECONDS)
    answers.set()
    assert process.returncode == 0
    assert (len(calls) > 1) is waits  # whoever waits has given the first call up, and made it again


@pytest.mark.slow
def test_processes_end_with_the_supervisor_even_when_it_is_killed(start, stand_in):
    process = start("one_long_epoch", "--processes", "2")
    stand_in.wait_for(lambda: len(stand_in.running) == 2)
    pids = children(process)
    assert len(pids) == 2
    process.kill()
    process.wait()
    wait_until_gone(pids)
    assert sorted(stand_in.released) == [(0, 1), (1, 1)]


@pytest.mark.slow
def test_a_process_that_crashes_is_replaced(start, stand_in):
    process = start("one_long_epoch")
    stand_in.wait_for(lambda: stand_in.running)
    (pid,) = children(process)
    os.kill(pid, signal.SIGKILL)
    stand_in.wait_for(lambda: len(stand_in.running) == 2)
    assert children(process) != [pid]


@pytest.mark.slow
def test_what_an_objective_prints_is_not_in_the_answer(start, stand_in):
    process = start("one_long_epoch")
    stand_in.wait_for(lambda: stand_in.running)
    time.sleep(0.2)
    process.terminate()
    output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert "an objective may print" not in output
    assert "an objective may print" in errors


@pytest.mark.slow
def test_several_processes_share_a_study_and_their_tally(start, stand_in):
    process = start("quick", "--processes", "2", "--until-done")
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert json.loads(output) == {"trials": {"COMPLETE": 4}}
    assert {number: told["values"] for number, told in stand_in.told.items()} == {
        number: [number / 10] for number in range(4)
    }


@pytest.mark.slow
def test_the_processes_of_an_objective_end_without_the_worker(start, stand_in):
    process = start("in_a_pool", "--processes", "1", "--until-done")
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert [told["values"] for told in stand_in.told.values()] == [[14.0]] * 4


@pytest.mark.slow
def test_files_in_the_current_folder_are_the_users_and_take_no_place_of_ours(start, stand_in, tmp_path):
    (tmp_path / "worker.py").write_text("raise SystemExit('the wrong worker')")
    process = start("quick", "--processes", "1", "--until-done")
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert len(stand_in.told) == 4


@pytest.mark.slow
def test_a_file_of_the_users_own_that_is_called_worker_is_an_objective_like_any_other(start, stand_in, tmp_path):
    (tmp_path / "worker.py").write_text("def train(trial):\n    return trial.number / 10\n")
    process = start("worker:train", "--processes", "1", "--until-done")
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert sorted(told["values"] for told in stand_in.told.values()) == [[0.0], [0.1], [0.2], [0.3]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "words"),
    [("not_there", "cannot be imported"), ("os", "is no function")],
)
def test_an_objective_that_cannot_be_used_is_a_usage_error(start, stand_in, objective, words):
    process = start(objective)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2
    assert words in errors
    assert stand_in.count("ask") == 0


@pytest.mark.slow
def test_a_study_without_an_objective_is_not_trained_by_the_built_in_network(server, stand_in):
    command = [sys.executable, "-m", "hpo_worker", "--server", server, "--study", "s", "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 2
    assert "hpo worker --study s --objective package.module:function, or hpo agent s -- COMMAND" in done.stderr
    assert stand_in.count("ask") == 0


@pytest.mark.slow
def test_an_objective_without_a_study_is_a_usage_error():
    process = subprocess.run(
        [sys.executable, "-m", "hpo_worker", "--objective", "a:b"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert process.returncode == 2
    assert "--study" in process.stderr


@pytest.mark.slow
def test_a_process_that_trains_imports_no_server():
    program = "import sys, hpo_worker.child, hpo_worker.start; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"fastapi", "starlette", "optuna", "sqlalchemy", "uvicorn", "matplotlib", "scipy"} & set(loaded)
    assert "hpo_service.client" in loaded


def test_a_process_that_crashes_again_and_again_is_started_again_each_minute_at_last():
    assert [pause_after(crashes) for crashes in (0, 1, 2, 5, 6, 2_000)] == [1.0, 2.0, 4.0, 32.0, 60.0, 60.0]
