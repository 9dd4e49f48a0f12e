"""Commands tell what failed from what came through, and look for data before anything is trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from hpo_service.cli.live_view import Snapshot, line
from hpo_service.client import uniform
from tests.cli.canned import a_study

STUDY = """\
name = "{name}"
[search_space]
learning_rate = {{ type = "float", low = 1e-3, high = 1e-1 }}
[objective]
kind = "neural_network"
samples = 100
epochs = 1
{more}
"""


@pytest.fixture
def failed(client):
    """A study of which two trials failed, and which paused."""
    name = "failed-here"
    study = client.create_study(name, {"x": uniform(0, 1)}, limits={"trials": 9, "failures": 2})
    for trial in study.ask(count=2):
        trial.tell(state="FAIL", reason="no GPU here")
    yield name
    client.delete(name, force=True)


def test_the_list_tells_failed_trials_from_complete_ones_and_why_a_study_paused(hpo, server, failed):
    out = hpo("study", "list", "--server", server).out
    header, *rows, reason = out.splitlines()
    cells = dict(zip(header.split(), next(row for row in rows if failed in row).split(), strict=True))
    assert (cells["STATE"], cells["LIMIT"], cells["COMPLETE"], cells["FAIL"]) == ("PAUSED", "9", "0", "2")
    assert reason.startswith(f"{failed}: 2 trials have failed")
    assert "no GPU here" in reason


@pytest.mark.slow
def test_show_and_the_verbs_tell_how_many_failed_and_why(hpo, server, failed):
    shown = hpo("study", "show", failed, "--server", server).out
    assert "2 of 9 trials finished, 2 of them failed" in shown
    assert "2 trials failed: no GPU here" in shown
    assert "2 trials have failed since" in shown
    assert "2 of them failed" in hpo("study", "pause", failed, "--server", server).out
    limits = hpo("study", "limits", failed, "--failures", "3", "--server", server)
    assert limits.code == 0
    assert json.loads(hpo("study", "show", failed, "--json", "--server", server).out)["limits"]["failures"] == 3


def test_who_watches_reads_how_many_failed_and_why(client):
    counts = {"WAITING": 0, "RUNNING": 0, "COMPLETE": 0, "PRUNED": 0, "FAIL": 20}
    watched = line(Snapshot(a_study(state="PAUSED", state_reason="20 trials have failed", counts=counts, best=None)))
    assert "PAUSED (20 trials have failed)" in watched
    assert "20/40 trials (20 failed)" in watched


# hpo run and its data


def run(folder, text, *options, **environment):
    (folder / "study.toml").write_text(text)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HPO_")}
    return subprocess.run(
        [sys.executable, "-m", "hpo_service", "run", "study.toml", "--workers", "1", "--no-test", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**clean, **environment},
        check=False,
    )


def write_dataset(path):
    import numpy as np

    random = np.random.default_rng(1)
    arrays: dict[str, Any] = {}
    for part, size in (("train", 150), ("test", 20)):
        arrays[f"x_{part}"] = random.integers(0, 255, (size, 4, 4), dtype=np.uint8)
        arrays[f"t_{part}"] = np.arange(size) % 3
    np.savez(path, **arrays)


OWN = STUDY.format(name="own", more='dataset = "ours"\n[limits]\ntrials = 2')


@pytest.mark.slow
def test_a_data_set_that_is_missing_is_said_before_anything_is_started(tmp_path):
    ended = run(tmp_path, OWN)
    assert ended.returncode == 1
    assert "'ours'" in ended.stderr
    assert "--data" in ended.stderr
    assert "ours.npz" in ended.stderr
    assert not (tmp_path / "hpo.db").exists()


@pytest.mark.slow
@pytest.mark.parametrize("given", ["option", "variable"])
def test_a_run_takes_its_data_from_a_folder(tmp_path, given):
    (tmp_path / "data").mkdir()
    write_dataset(tmp_path / "data" / "ours.npz")
    option, variable = (("--data", "data"), {}) if given == "option" else ((), {"HPO_DATA": "data"})
    ended = run(tmp_path, OWN, "--json", *option, **variable)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["counts"]["COMPLETE"] == 2


@pytest.mark.slow
def test_a_run_of_which_nothing_comes_through_ends_and_says_why(tmp_path):
    diverging = STUDY.format(name="diverging", more="[limits]\nfailures = 2")
    ended = run(tmp_path, diverging.replace("low = 1e-3, high = 1e-1", "low = 1e20, high = 1e30"))
    assert ended.returncode == 1
    assert "diverging is paused: " in ended.stderr
    assert "diverged" in ended.stderr


# hpo doctor


def about_data(hpo, monkeypatch, folder):
    monkeypatch.delenv("HPO_DATA", raising=False)
    if folder is not None:
        monkeypatch.setenv("HPO_DATA", str(folder))
    findings = json.loads(hpo("doctor", "--json").out)["items"]
    (finding,) = [each for each in findings if each["what"] == "data"]
    return finding["state"], finding["detail"]


@pytest.mark.slow
def test_the_doctor_lists_the_data_folder(hpo, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    state, says = about_data(hpo, monkeypatch, None)
    assert (state, "HPO_DATA" in says) == ("ok", True)
    state, says = about_data(hpo, monkeypatch, tmp_path / "nowhere")
    assert (state, "cannot be read" in says) == ("bad", True)
    (tmp_path / "data").mkdir()
    state, says = about_data(hpo, monkeypatch, tmp_path / "data")
    assert (state, "no dataset in it" in says) == ("note", True)
    write_dataset(tmp_path / "data" / "ours.npz")
    (tmp_path / "data" / "digits").mkdir()
    (tmp_path / "data" / "notes.txt").touch()
    assert about_data(hpo, monkeypatch, tmp_path / "data") == ("ok", f"{tmp_path / 'data'}: digits, ours.npz")
