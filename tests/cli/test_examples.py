"""Each example of training of one's own runs as its README says."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.patience import PATIENCE_SECONDS

ALL = Path(__file__).parents[2] / "examples"
EXAMPLES = ALL / "own_training"
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
needs_r = pytest.mark.skipif(shutil.which("Rscript") is None, reason="there is no R")
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("HPO_")}


@pytest.fixture
def run(tmp_path):
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)

    def run(*command, server=None):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=PLAIN if server is None else PLAIN | {"HPO_SERVER": server},
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def run_hpo(run, *arguments):
    return run(sys.executable, "-m", "hpo_service", "run", "--workers", "2", "--json", *arguments)


def hpo_run(run, *arguments):
    study = json.loads(run_hpo(run, *arguments))
    assert (study["state"], study["counts"]["COMPLETE"]) == ("COMPLETED", 8)
    return study


def test_the_readme_names_every_example():
    named = set(re.findall(r"^\| `(.*?)`", (EXAMPLES / "README.md").read_text(), re.MULTILINE))
    assert named == {file.name for file in EXAMPLES.iterdir() if file.suffix not in (".toml", ".md", "")}


@pytest.mark.slow
def test_a_shell_script(run):
    best = hpo_run(run, "parabola.toml", "--", "sh", "parabola.sh", "{x}", "{y}")["best"]
    x, y = best["params"]["x"], best["params"]["y"]
    assert best["values"][0] == pytest.approx((x - 1) ** 2 + (y + 2) ** 2, rel=1e-6)


@needs_cc
@pytest.mark.slow
def test_a_program_in_c(run):
    run("cc", "-o", "parabola", "parabola.c")
    best = hpo_run(run, "parabola.toml", "--", "./parabola", "{x}", "{y}")["best"]
    x, y = best["params"]["x"], best["params"]["y"]
    assert best["values"][0] == pytest.approx((x - 1) ** 2 + (y + 2) ** 2, rel=1e-6)


@needs_cc
@pytest.mark.slow
def test_a_program_in_c_by_an_agent(run, server, client):
    run("cc", "-o", "parabola", "parabola.c")
    client.create(tomllib.loads((EXAMPLES / "parabola.toml").read_text()) | {"name": "by-agent"})
    run(sys.executable, "-m", "hpo_service", "agent", "by-agent", "--", "./parabola", "{x}", "{y}", server=server)
    assert client.study("by-agent")["counts"]["COMPLETE"] == 8
    assert [report["step"] for report in client.trial("by-agent", 7)["reports"]] == [1, 2, 3]


@needs_r
@pytest.mark.slow
def test_a_program_in_r(run):
    best = hpo_run(run, "parabola.toml", "--", "Rscript", "parabola.R", "{x}", "{y}")["best"]
    x, y = best["params"]["x"], best["params"]["y"]
    assert best["values"][0] == pytest.approx((x - 1) ** 2 + (y + 2) ** 2, rel=1e-6)


@needs_curl
@pytest.mark.slow
def test_curl_alone(run, server, client):
    out = run("sh", "curl_alone.sh", "by-curl", server=server)
    study = client.study("by-curl")
    assert len(out.splitlines()) == study["counts"]["COMPLETE"] == 5
    assert study["best"]["values"][0] == pytest.approx(study["best"]["params"]["x"] ** 2, rel=1e-4)


@pytest.mark.slow
def test_a_scikit_learn_model_as_a_function_and_as_a_command(run):
    assert hpo_run(run, "digits.toml", "--objective", "digits_objective.py:objective")["best"]["values"][0] > 0.5
    python = ("--", sys.executable, "digits_command.py", "{C}", "{gamma}")
    database = ("--database", "sqlite:///by_command.db")
    assert hpo_run(run, "digits.toml", *database, *python)["best"]["values"][0] > 0.5


@pytest.mark.slow
def test_a_scikit_learn_model_by_the_sdk(run, server):
    assert float(run(sys.executable, "digits_sdk.py", server=server).split()[0]) > 0.5


@needs_torch
@pytest.mark.slow
def test_a_network_of_pytorch(run):
    study = json.loads(run_hpo(run, "digits_torch.toml", "--objective", "digits_torch.py:objective"))
    counts = study["counts"]
    assert (study["state"], counts["COMPLETE"] + counts["PRUNED"]) == ("COMPLETED", 8)
    assert study["best"]["values"][0] > 0.8


@needs_torch
@pytest.mark.slow
def test_a_network_of_pytorch_goes_on_from_its_checkpoint(client, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    training = importlib.import_module("digits_torch")
    file = tomllib.loads((EXAMPLES / "digits_torch.toml").read_text())
    study = client.create_study("torch-again", file["search_space"], direction="maximize", limits={"trials": 1})
    params = {"lr": 0.1, "hidden": 32, "dropout": 0.0}
    (first,) = study.ask()
    first.params = params
    first.report = lambda value, step: step == 4
    training.objective(first)
    first.release("taken away")
    (again,) = study.ask()
    again.params = params
    assert training.objective(again) > 0.8
    steps = [report["step"] for report in client.trial("torch-again", 0)["reports"]]
    assert steps == list(range(5, training.EPOCHS))


@pytest.mark.slow
def test_a_notebook(server, client, monkeypatch):
    # Imported here: each process of the tests imports every module of theirs, and these take as long as the server.
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("HPO_SERVER", server)
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    NotebookClient(notebook, timeout=PATIENCE_SECONDS, kernel_name="python3").execute()
    study = client.study("in-a-notebook")
    assert (study["state"], study["counts"]["COMPLETE"] + study["counts"]["PRUNED"]) == ("COMPLETED", 20)
    shown = str([cell.get("outputs") for cell in notebook.cells])
    assert repr(study["best"]["params"]["lr"]) in shown
    assert "params_optimizer" in shown


@pytest.mark.slow
def test_two_machines_train_what_the_compose_file_starts(server, client, tmp_path):
    composed = subprocess.run(
        [Path(sys.executable).parent / "docker-compose", "-f", "workers.yml", "config"],
        cwd=ALL / "several_machines",
        env=PLAIN | {"HPO_SERVER": server, "HPO_TOKEN": "", "COMPOSE_ANSI": "never"},
        capture_output=True,
        text=True,
        check=True,
    )
    worker = yaml.safe_load(composed.stdout)["services"]["worker"]
    study = tomllib.loads((ALL / "several_machines" / "curve.toml").read_text())
    client.create(study)
    client.pause("curve")
    machines = []
    for name in ("a", "b"):
        shutil.copytree(ALL / "several_machines", tmp_path / name)
        command = [sys.executable, "-m", "hpo_service", *worker["command"]]
        surroundings = PLAIN | worker["environment"]
        machines.append(subprocess.Popen(command, cwd=tmp_path / name, env=surroundings, stderr=subprocess.DEVNULL))
    until = time.monotonic() + PATIENCE_SECONDS
    before = {each["worker_id"] for each in client.workers() if each["told"]}
    while len({each["worker_id"] for each in client.workers()} - before) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    client.resume("curve")
    assert [machine.wait(PATIENCE_SECONDS) for machine in machines] == [0, 0]
    done = client.study("curve")
    assert done["state"] == "COMPLETED"
    assert done["counts"]["COMPLETE"] + done["counts"]["PRUNED"] == study["limits"]["trials"]
    assert len({trial["worker_id"] for trial in client.trials("curve")}) == 2
