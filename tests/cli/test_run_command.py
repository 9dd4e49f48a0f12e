"""`hpo run`, the whole job: real server, real workers, real signals."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hpo_service.cli import local_service, parent_death_pipe
from tests.patience import PATIENCE_SECONDS

STUDY = """\
name = "tiny"
sampler = {{ name = "random", seed = 1 }}
[search_space]
learning_rate = {{ type = "float", low = 1e-3, high = 1e-1, log = true }}
weight_decay = {{ type = "float", low = 1e-8, high = 1e-4, log = true }}
[objective]
kind = "neural_network"
samples = 100
hidden_layers = 2
epochs = {epochs}
{more}
"""
MANY = 40  # many times what two workers train at once, four each: in the middle of it when a signal comes
SHORT = STUDY.format(epochs=2, more="[limits]\ntrials = 6")
FIGURE = """\
[metadata.figure]
kind = "rounds"
claim = "Each round is better than the one before."
expected = [{ measure = "value", round = 1, reference = [0.1, 0.0, 1.0] }]
"""
ROUNDS = STUDY.format(epochs=2, more=f"[narrowing]\nrounds = 2\ntrials_per_round = 5\nexpand = true\n{FIGURE}")
CONFIRMED = STUDY.format(epochs=2, more="[limits]\ntrials = 6\n[metadata.confirm]\ntop = 3\nseeds = 3")
SLOWLY_CONFIRMED = STUDY.format(epochs=60, more="[limits]\ntrials = 4\n[metadata.confirm]\ntop = 4\nseeds = 10")
WITH_GPU = STUDY.format(epochs=2, more="[limits]\ntrials = 4\n[requires]\ngpu = 'a100'")
LONG = STUDY.format(epochs=200, more=f"[limits]\ntrials = {MANY}")
ENDLESS = STUDY.format(epochs=200, more="")  # for what must still run when the test has done what it does


class Run:
    """`hpo run` in a folder of its own."""

    process: subprocess.Popen[str]

    def __init__(self, folder):
        self.folder = folder

    def start(self, text, *options):
        (self.folder / "study.toml").write_text(text)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hpo_service", "run", "study.toml", "--workers", "2", *options],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("HPO_")},
        )
        return self

    def end(self):
        out, err = self.process.communicate(timeout=2 * PATIENCE_SECONDS)
        return self.process.returncode, out, err

    def descendants(self):
        """The processes that it has started, and those that these have."""
        found = [self.process.pid]
        for process in found:
            found += [child for child, parent in parents().items() if parent == process]
        return found[1:]

    def finished(self):
        """How many trials the database says are finished."""
        try:
            with sqlite3.connect(f"file:{self.folder}/hpo.db?mode=ro", uri=True) as database:
                return database.execute("SELECT count(*) FROM hpo_trials WHERE state = 'COMPLETE'").fetchone()[0]
        except sqlite3.OperationalError:
            return 0

    def wait_for(self, condition):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path)
    yield run
    if run.process is not None and run.process.poll() is None:
        run.process.terminate()
        run.process.communicate(timeout=PATIENCE_SECONDS)


def parents():
    """Every process that still runs, with its parent; what has ended and waits to be collected does not run."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(stat.parent.name)] = int(parent)
    return found


def words(process):
    """The command line of a process."""
    return Path(f"/proc/{process}/cmdline").read_text().split("\0")


def gone(processes, seconds=PATIENCE_SECONDS):
    deadline = time.monotonic() + seconds
    while (alive := set(processes) & set(parents())) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not alive


@pytest.mark.slow
def test_one_command_searches_draws_tests_and_sums_up(run):
    code, out, err = run.start(ROUNDS).end()

    assert code == 0, err
    for part in (
        "tiny: COMPLETED, 10 of 10 trials finished",
        "Best: trial",
        "round 1",
        "What mattered",
        "Test accuracy",
        "Each round is better than the one before.",
        "value, round 1",
        "pictures/tiny.png",
        "hpo serve",
    ):
        assert part in out
    assert (run.folder / "pictures" / "tiny.png").read_bytes().startswith(b"\x89PNG")
    assert "tiny: COMPLETED, 10/10 trials" in err


@pytest.mark.slow
def test_on_postgresql_with_json_stdout_is_the_study_and_nothing_else_and_a_second_run_changes_nothing(
    run, postgres_url
):
    job = (SHORT, "--json", "--database", postgres_url)
    first_code, first, _ = run.start(*job).end()
    second_code, second, err = run.start(*job).end()

    study = json.loads(first)
    assert (first_code, second_code) == (0, 0)
    assert (study["state"], study["counts"]["COMPLETE"]) == ("COMPLETED", 6)
    assert study["test"]["state"] == "COMPLETE"
    assert json.loads(second) == study
    assert "6 trials finished before" in err


@pytest.mark.slow
def test_without_the_test_the_study_stays_open(run):
    code, out, _ = run.start(SHORT, "--no-test", "--json", "-o", "here.png").end()

    assert code == 0
    assert json.loads(out)["test"] is None
    assert (run.folder / "here.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_with_all_it_started_and_goes_on_the_next_time(number, run):
    run.start(LONG, "--no-test")
    run.wait_for(lambda: run.finished() >= 1)
    children = run.descendants()
    run.process.send_signal(number)

    code, out, err = run.end()

    assert (code, out) == (1, "")
    assert "interrupted; " in err
    assert "go on: hpo run study.toml" in err
    assert gone(children)
    before = run.finished()
    assert 1 <= before < MANY
    with sqlite3.connect(run.folder / "hpo.db") as database:
        states = dict(database.execute("SELECT state, count(*) FROM hpo_trials GROUP BY state"))
    assert "FAIL" not in states  # RUNNING are those that a busy machine has left no time to hand back

    code, out, err = run.start(LONG, "--no-test", "--json").end()

    assert code == 0, err
    assert "trials finished before" in err
    assert json.loads(out)["counts"] == {"WAITING": 0, "RUNNING": 0, "COMPLETE": MANY, "PRUNED": 0, "FAIL": 0}


@pytest.mark.slow
def test_the_best_are_confirmed_before_the_test_where_the_file_asks_for_it(run):
    code, out, err = run.start(CONFIRMED).end()

    assert code == 0, err
    assert "confirming the best 3 trials with 3 seeds" in err
    for part in (
        "tiny: COMPLETED, 6 of 6 trials finished (6 COMPLETE)",
        "Confirmed: trial",
        "had told",
        "Test accuracy",
    ):
        assert part in out
    code, out, err = run.start(CONFIRMED, "--json").end()
    study = json.loads(out)
    assert (study["confirmation"]["state"], len(study["confirmation"]["ranking"])) == ("COMPLETE", 3)
    assert study["test"]["number"] == study["confirmation"]["ranking"][0]["number"]
    assert study["counts"]["COMPLETE"] == 6


@pytest.mark.slow
def test_interrupted_while_it_confirms_it_goes_on_with_that(run):
    def replicates(*states):
        with suppress(sqlite3.Error), sqlite3.connect(f"file:{run.folder}/hpo.db?mode=ro", uri=True) as database:
            query = "SELECT state, count(*) FROM hpo_trials WHERE replicate_of IS NOT NULL GROUP BY state"
            return sum(count for state, count in database.execute(query) if state in states)
        return 0

    run.start(SLOWLY_CONFIRMED, "--no-test")
    run.wait_for(lambda: replicates("COMPLETE") >= 1)
    run.process.send_signal(signal.SIGINT)
    code, out, _ = run.end()
    assert (code, out) == (1, "")
    assert replicates("COMPLETE") < 40
    code, out, err = run.start(SLOWLY_CONFIRMED, "--no-test", "--json").end()

    assert code == 0, err
    study = json.loads(out)
    assert (study["state"], study["confirmation"]["state"]) == ("COMPLETED", "COMPLETE")
    assert [len(each["values"]) for each in study["confirmation"]["ranking"]] == [10] * 4
    assert replicates("COMPLETE", "FAIL", "WAITING", "RUNNING") == 40


@pytest.mark.slow
def test_killed_it_leaves_no_child_behind(run):
    run.start(ENDLESS)
    run.wait_for(lambda: run.finished() >= 1)
    children = run.descendants()
    assert len(children) >= 3

    run.process.kill()

    assert gone(children)
    run.end()


@pytest.mark.slow
def test_a_child_started_without_a_lifeline_does_outlive_its_parent(run, monkeypatch, tmp_path):
    """The switch that breaks the guarantee: the test above would see it."""
    sitecustomize = tmp_path / "sitecustomize.py"
    sitecustomize.write_text("import os, sys\nif 'serve' in sys.orig_argv: os.environ.pop('HPO_LIFELINE', None)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run.start(ENDLESS)
    run.wait_for(lambda: run.finished() >= 1)
    servers = [child for child in run.descendants() if "serve" in words(child)]

    run.process.kill()

    assert servers
    assert not gone(servers, 4)
    for server in servers:
        os.kill(server, signal.SIGTERM)
    assert gone(servers)
    run.end()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["serve", "worker"])
def test_a_child_that_is_killed_is_started_again_and_the_job_is_done(victim, run):
    run.start(LONG, "--no-test", "--json")
    run.wait_for(lambda: run.finished() >= 1)
    os.kill(next(child for child in run.descendants() if victim in words(child)), signal.SIGKILL)

    code, out, err = run.end()

    assert code == 0, err
    assert f"the {victim.replace('serve', 'server')}" in err
    assert "ended unexpectedly (signal SIGKILL)" in err
    assert json.loads(out)["counts"]["COMPLETE"] == MANY


@pytest.mark.slow
def test_a_database_that_another_server_holds_is_refused_with_how_to_use_that_server(run):
    run.start(ENDLESS, "--no-test")
    run.wait_for(lambda: run.finished() >= 1)
    (run.folder / "other").mkdir()
    other = Run(run.folder / "other").start(SHORT, "--database", f"sqlite:///{run.folder}/hpo.db")

    code, out, err = other.end()

    assert (code, out) == (1, "")
    assert "another server" in err
    assert "hpo study create STUDY_FILE" in err


@pytest.mark.slow
def test_a_study_that_nobody_here_can_train_is_refused_at_once_with_what_to_do(run):
    text = 'name = "mine"\nsearch_space.x = { type = "float", low = 0.0, high = 1.0 }\n'

    code, out, err = run.start(text).end()

    assert (code, out) == (1, "")
    assert "mine has no objective" in err
    assert "hpo run study.toml --objective package.module:function" in err
    assert "hpo run study.toml -- python train.py --x {x}" in err
    assert not (run.folder / "hpo.db").exists()


OWN = """\
name = "own"
direction = "minimize"
limits = {{ trials = {trials} }}
search_space.x = {{ type = "float", low = -1.0, high = 1.0 }}
"""
SCRIPT = """\
import json, sys, time
x = float(sys.argv[1].partition("=")[2])
for step in range(3):
    print(json.dumps({{"step": step, "value": x * x + 1 / (step + 1)}}), flush=True)
    time.sleep({pause})
print(json.dumps({{"value": x * x}}))
"""
COMMAND = ("--", sys.executable, "train.py", "--x={x}")


@pytest.mark.slow
def test_a_command_of_ones_own_is_trained_with_picture_and_summary_and_nothing_is_sealed(run):
    (run.folder / "train.py").write_text(SCRIPT.format(pause=0))

    code, out, err = run.start(OWN.format(trials=6), *COMMAND).end()

    assert code == 0, err
    assert "own: COMPLETED, 6 of 6 trials finished (6 COMPLETE)" in out
    assert "Best: trial" in out
    assert "Test" not in out
    assert (run.folder / "pictures" / "own.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = run.start(OWN.format(trials=6), "--json", *COMMAND).end()
    study = json.loads(out)
    assert (study["counts"]["COMPLETE"], study["test"]) == (6, None)


@pytest.mark.slow
def test_a_command_interrupted_leaves_nothing_behind_and_goes_on_the_next_time(run):
    (run.folder / "train.py").write_text(SCRIPT.format(pause=0.3))
    run.start(OWN.format(trials=12), *COMMAND)
    run.wait_for(lambda: run.finished() >= 1)
    children = run.descendants()
    run.process.send_signal(signal.SIGINT)

    code, out, err = run.end()

    assert (code, out) == (1, "")
    assert "go on: hpo run study.toml -- " in err
    assert gone(children)
    before = run.finished()
    assert 1 <= before < 12
    code, out, err = run.start(OWN.format(trials=12), "--json", *COMMAND).end()
    assert code == 0, err
    assert json.loads(out)["counts"] == {"WAITING": 0, "RUNNING": 0, "COMPLETE": 12, "PRUNED": 0, "FAIL": 0}


@pytest.mark.slow
def test_a_function_that_defines_by_run_is_trained(run):
    (run.folder / "own.py").write_text("def objective(trial):\n    return trial.suggest_float('x', -1, 1) ** 2\n")
    text = 'name = "own"\ndirection = "minimize"\nlimits = { trials = 5 }\ndefine_by_run = true\n'

    code, out, err = run.start(text, "--json", "--objective", "own:objective").end()

    assert code == 0, err
    study = json.loads(out)
    assert study["counts"]["COMPLETE"] == 5
    assert study["search_space"]["x"]["high"] == 1


@pytest.mark.slow
def test_a_function_that_cannot_be_imported_ends_the_run_at_once_and_says_why(run):
    (run.folder / "own.py").write_text("def objective(trial): return 1\n")

    code, out, err = run.start(OWN.format(trials=5), "--objective", "own.py:missing").end()

    assert (code, out) == (1, "")
    assert "has no attribute 'missing'" in err
    assert "started again" not in err


@pytest.mark.slow
def test_a_study_that_requires_something_is_trained_where_there_is_such_a_thing(run):
    code, out, err = run.start(WITH_GPU, "--label", "gpu=a100").end()

    assert code == 0, err
    assert run.finished() == 4
    assert "test accuracy" in out.lower()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        (OWN.format(trials=5), ("--", sys.executable, "--x={y}"), "{y} is no parameter of this study; it has x"),
        (OWN.format(trials=5), ("--", "no-such-program"), "'no-such-program' is no program"),
        (OWN.format(trials=5), ("--objective", "f", *COMMAND), "not both"),
        (OWN.format(trials=5), ("--objective", "nowhere:f"), "there is no module nowhere"),
        (OWN.format(trials=5), ("--objective", "nowhere.py:f"), "there is no file nowhere.py"),
        (OWN.format(trials=5), ("--objective", "own"), "is not of the form"),
        (SHORT, COMMAND, "which hpo trains itself"),
        (SHORT, ("--objective", "own:f"), "take [objective] out of the file"),
        (WITH_GPU, (), 'requires {"gpu": "a100"}'),
        (WITH_GPU, ("--label", "gpu=h100"), "study.toml --label gpu=a100"),
    ],
)
def test_what_cannot_train_the_study_is_refused_before_anything_is_started(text, options, says, run):
    code, out, err = run.start(text, *options).end()

    assert (code, out) == (2, "")
    assert says in err
    assert not (run.folder / "hpo.db").exists()


@pytest.mark.slow
def test_a_server_that_cannot_start_says_why_and_the_password_stays_hidden(run):
    code, out, err = run.start(SHORT, "--database", "postgresql://u:secret@127.0.0.1:1/x").end()

    assert (code, out) == (1, "")
    assert "the server could not start: postgresql://u:***@127.0.0.1:1/x" in err
    assert "secret" not in err


def test_the_grace_of_a_child_is_as_long_as_its_parent_waits():
    assert parent_death_pipe.GRACE_SECONDS == local_service.STOP_SECONDS
