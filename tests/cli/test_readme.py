"""What the README tells a newcomer to type works, as it stands there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpo_service.cli.starter_files import SKLEARN_CODE
from hpo_service.client import Client, TrialPruned
from tests.patience import PATIENCE_SECONDS

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    return [line.removeprefix("$ ").split("  #")[0].strip() for line in lines]


HPO = [line.removeprefix(".venv/bin/hpo ") for line in commands() if line.startswith(".venv/bin/hpo ")]


def hpo(server: str, folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpo_service", *arguments]
    surroundings = {**os.environ, "HPO_SERVER": server}
    return subprocess.run(
        command, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )


@pytest.mark.slow
def test_the_script_on_the_page_about_optuna_runs(server: str, tmp_path: Path) -> None:
    page = (PROJECT / "docs" / "from-optuna.md").read_text(encoding="utf-8")
    code, _ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = code.replace("http://127.0.0.1:8000", server)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'x'" in done.stdout


def test_the_callback_on_the_page_about_optuna_reports_what_lightgbm_says_and_prunes(client: Client) -> None:
    page = (PROJECT / "docs" / "from-optuna.md").read_text(encoding="utf-8")
    _, code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)

    def objective(trial: Any) -> float:
        found: dict[str, Any] = {"trial": trial, "TrialPruned": TrialPruned}
        exec(code, found)
        for iteration in range(3):
            # as LightGBM calls it: (data, metric, value, whether higher is better)
            evaluated = [("valid_0", "auc", -float(trial.number), True)]
            found["prune"](SimpleNamespace(iteration=iteration, evaluation_result_list=evaluated))
        return -float(trial.number)

    pruner = {"name": "median", "params": {"n_startup_trials": 1}}
    study = client.create_study("as-lightgbm", direction="maximize", pruner=pruner)
    study.optimize(objective, n_trials=3)
    states = [(trial.state, trial.intermediate_values) for trial in study.trials]
    assert states[0] == ("COMPLETE", {0: 0.0, 1: 0.0, 2: 0.0})
    assert states[1:] == [("PRUNED", {0: -1.0}), ("PRUNED", {0: -2.0})]


@pytest.mark.slow
def test_the_example_in_python_optimizes_a_function(server: str, tmp_path: Path) -> None:
    (code,) = blocks("python")
    code = code.replace("http://127.0.0.1:8000", server)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    shown = hpo(server, tmp_path, ["study", "show", "mine", "--json"])
    counts = json.loads(shown.stdout)["counts"]
    assert counts["COMPLETE"] + counts["PRUNED"] == 50


@pytest.mark.slow
def test_the_commands_on_studies_and_keys_work_as_written(server: str, tmp_path: Path) -> None:
    (tmp_path / "studies").symlink_to(PROJECT / "studies")
    for line in HPO:
        words = shlex.split(line)
        if words[0] not in ("study", "token"):
            continue
        done = hpo(server, tmp_path, words)
        assert done.returncode == 0, (line, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in HPO if not line.startswith(("study", "token"))])
def test_the_commands_that_stay_have_the_options_that_are_shown(line: str, tmp_path: Path) -> None:
    words = shlex.split(line)
    done = hpo("http://127.0.0.1:9", tmp_path, [words[0], "--help"])
    assert done.returncode == 0
    for option in (word for word in words if word.startswith("--")):
        assert option in done.stdout


@pytest.mark.slow
def test_the_training_that_the_tutorial_shows_is_what_init_writes_and_what_it_prunes_runs(client: Client) -> None:
    tutorial = (PROJECT / "docs" / "tutorial" / "your-model.md").read_text(encoding="utf-8")
    written, pruned = re.findall(r"```python\n(.*?)```", tutorial, re.DOTALL)
    assert written == SKLEARN_CODE
    found: dict[str, Any] = {}
    exec(pruned, found)
    found["time"] = SimpleNamespace(sleep=lambda seconds: None)
    (file,) = re.findall(r"```toml\n(.*?)```", tutorial, re.DOTALL)
    study = client.create_study(**tomllib.loads(file))
    study.optimize(found["objective"])
    counts = client.study(study.name)["counts"]
    assert counts["COMPLETE"] + counts["PRUNED"] == 20
    assert counts["PRUNED"] >= 1


@pytest.mark.slow
def test_the_study_file_shown_is_taken(server: str, tmp_path: Path) -> None:
    (text,) = blocks("toml")
    (tmp_path / "shown.toml").write_text(text.replace('name = "mnist"', 'name = "shown"'), encoding="utf-8")
    done = hpo(server, tmp_path, ["study", "create", "shown.toml"])
    assert done.returncode == 0, done.stderr


def test_every_make_target_named_exists() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    for line in commands():
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE), line
