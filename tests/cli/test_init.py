"""`hpo init`: what it writes runs as it is, by the command that it prints."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hpo_service.cli.init import study_name
from hpo_service.cli.study_file import read_study_file
from tests.patience import PATIENCE_SECONDS

KINDS = ("--sklearn", "--command", "--network")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_a_study_and_nothing_is_overwritten(kind, hpo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = json.loads(hpo("init", "My Study.toml", kind, "--json").out)

    spec = read_study_file(Path("My Study.toml")).spec()
    assert spec.name == "my-study"
    assert {str(path) for path in Path().iterdir()} == set(said["files"])
    before = {path: path.read_bytes() for path in Path().iterdir()}
    again = hpo("init", "My Study.toml", kind)
    assert (again.code, again.out) == (1, "")
    assert "left as it is" in again.err
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def test_neither_file_is_written_where_one_of_them_is_there(hpo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("study.py").write_text("mine")

    assert hpo("init", "--sklearn").code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["study.py"]


@pytest.mark.parametrize("arguments", [(), ("--sklearn", "--command"), ("x.json", "--network")])
def test_what_is_not_clear_is_a_usage_error(arguments, hpo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hpo("init", *arguments).code == 2
    assert not list(tmp_path.iterdir())


def test_a_files_name_becomes_a_name_that_a_study_may_have():
    assert list(map(study_name, map(Path, ("a.toml", "Übung 1.toml", "-.toml", "x" * 80 + ".toml")))) == [
        "a",
        "bung-1",
        "study",
        "x" * 63,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_runs_by_the_command_that_is_printed(kind, hpo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, *words = shlex.split(json.loads(hpo("init", kind, "--json").out)["run"])
    file = Path("study.toml")
    file.write_text(file.read_text().replace("trials = 40", "trials = 4").replace("trials = 60", "trials = 6"))
    file.write_text(file.read_text().replace("trials_per_round = 20", "trials_per_round = 2"))

    done = subprocess.run(
        [sys.executable, "-m", "hpo_service", words[0], "--json", *words[1:]],
        env={name: value for name, value in os.environ.items() if not name.startswith("HPO_")},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_SECONDS,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    study = json.loads(done.stdout)
    assert (study["state"], study["counts"]["FAIL"]) == ("COMPLETED", 0)
    assert study["best"]
