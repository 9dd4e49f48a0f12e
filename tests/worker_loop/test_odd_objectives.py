"""Whatever an objective returns, raises or does to its process, its own trial ends rightly and the worker goes on."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest

from hpo_service.client import as_values, write_json
from hpo_service.domain.errors import Invalid
from hpo_worker.objective import import_objective

RETURNED = [
    (0.5, [0.5]),
    (np.float32(0.5), [0.5]),
    (np.array(0.5), [0.5]),
    (np.array([0.5]), [0.5]),
    (np.array([[0.5]]), [0.5]),
    (np.array([0.25, 0.5]), [0.25, 0.5]),
    ([0.25, np.float64(0.5)], [0.25, 0.5]),
    ((1,), [1.0]),
    ("0.5", [0.5]),
    (" 1e-3\n", [0.001]),
    ("-inf", [float("-inf")]),
    (float("inf"), [float("inf")]),
    (True, [1.0]),
]

NO_VALUES = [
    {"loss": 1},
    {0.5},
    [],
    np.array([]),
    "",
    "high",
    b"0.5",
    [0.5, None],
    [[0.25, 0.5]],
    np.array([[0.25, 0.5]]),
    open,
    1j,
    pytest.param(10**400, id="1e400"),
    ValueError("returned, not raised"),
]

NO_TRIAL: Any = None  # for objectives that ask nothing of it


@pytest.mark.parametrize(("returned", "values"), RETURNED, ids=lambda value: ascii(value)[:30])
def test_what_is_a_number_is_told_as_one(returned, values):
    assert as_values(returned) == values


@pytest.mark.parametrize("returned", NO_VALUES, ids=lambda value: ascii(value)[:30])
def test_what_is_no_number_fails_its_trial_and_no_older_report_takes_its_place(work, stand_in, returned):
    def objective(trial):
        trial.report(0.9, 0)
        return returned if trial.number == 1 else 0.5

    assert work(objective) == {"COMPLETE": 3, "FAIL": 1}
    assert "the objective returned" in stand_in.told[1]["reason"]


def test_nan_is_told_as_nan(work, stand_in):
    def objective(trial):
        trial.report(0.9, 0)
        return float("nan")

    work(objective)
    assert [told["values"] for told in stand_in.told.values()] == [["NaN"]] * 4


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("cannot be said")


RAISED = [
    (OSError("no file " + os.fsdecode(b"caf\xe9.csv")), "OSError: no file caf\ufffd.csv"),
    (ValueError("a\x00b\nc"), "ValueError: a\ufffdb c"),
    (ValueError("x" * 10_000), "ValueError: " + "x" * 488),
    (Unprintable(), "Unprintable"),
    (SystemExit(3), "SystemExit: 3"),
    (GeneratorExit(), "GeneratorExit"),
    (type("Odd", (BaseException,), {})("odd"), "Odd: odd"),
    (MemoryError(), "MemoryError"),
    (RecursionError("deep"), "RecursionError: deep"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("error", "reason"), RAISED, ids=lambda value: ascii(value)[:30])
def test_what_is_raised_is_the_reason_of_its_trial_in_whole_letters(work, stand_in, error, reason):
    def objective(trial):
        if trial.number == 1:
            raise error
        return 0.5

    assert work(objective) == {"COMPLETE": 3, "FAIL": 1}
    assert (stand_in.told[1]["state"], stand_in.told[1]["reason"]) == ("FAIL", reason)


@pytest.mark.parametrize("metrics", [{"a": print}, {"a": [open]}, {"a": "x" * 2_000_000}, {"a": {"b": object}}])
def test_metrics_that_cannot_be_sent_fail_their_trial(work, stand_in, metrics):
    def objective(trial):
        if trial.number == 1:
            trial.metrics = metrics
        if trial.number == 2:
            trial.report(0.5, 0, metrics)
        return 0.5

    assert work(objective) == {"COMPLETE": 2, "FAIL": 2}


def test_half_a_character_in_metrics_is_replaced():
    assert write_json({"a\udce9": ["\ud83d", {"b": "c\udcff"}]}) == '{"a�":["�",{"b":"c�"}]}'.encode()


def test_a_study_that_is_deleted_leaves_the_others_to_be_trained(work, stand_in):
    assert work(lambda trial: 0.5, studies=("gone", "s")) == {"COMPLETE": 4}


@pytest.mark.slow
@pytest.mark.parametrize("returns", [0.7, None])
def test_an_objective_that_never_looks_trains_to_its_end_and_keeps_its_result(work, stand_in, returns):
    stand_in.study["pruner"] = {"name": "median", "params": {}}
    stand_in.stops[1] = "pruned"

    def objective(trial):
        for step in range(30):
            trial.report(0.5, step)
            time.sleep(0.02)
        assert stand_in.reports[trial.number], "it was told to stop"
        return returns

    assert work(objective) == {"COMPLETE": 4}
    assert stand_in.told[1]["values"] == [0.7 if returns else 0.5]


LOOKS = {
    "if": lambda trial: bool(trial.report(0.5, 0)),
    "while": lambda trial: next((True for _ in range(1) if trial.report(0.5, 0)), False),
    "property": lambda trial: (trial.report(0.5, 0), trial.should_stop)[1],
}


@pytest.mark.parametrize("how", LOOKS)
def test_an_objective_that_looks_and_returns_was_pruned(work, stand_in, how):
    stand_in.study["pruner"] = {"name": "median", "params": {}}
    stand_in.stops[1] = "pruned"

    def objective(trial):
        for _ in range(500 if trial.number == 1 else 1):
            if LOOKS[how](trial):
                break
            time.sleep(0.02)
        return 0.7

    assert work(objective) == {"COMPLETE": 3, "PRUNED": 1}


MODULES = {
    "broken.py": ("def train(trial)\n", "SyntaxError"),
    "leaves.py": ("import sys\nsys.exit(4)\n", "ends the program \\(exit code 4\\)"),
    "raises.py": ("raise RuntimeError('no GPU')\n", "RuntimeError: no GPU"),
    "lacks.py": ("import a_module_that_is_not_there\n", "a_module_that_is_not_there"),
    "another.py": ("def other(trial): ...\n", "has no attribute 'train'"),
    "number.py": ("train = 3\n", "is no function, but int"),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("form", ["module", "file"])
def test_a_module_that_cannot_be_used_is_refused_in_a_sentence(tmp_path, monkeypatch, name, form):
    text, words = MODULES[name]
    (tmp_path / f"own_{form}_{name}").write_text(text)
    monkeypatch.chdir(tmp_path)
    place = f"own_{form}_{name}" if form == "file" else f"own_{form}_{name}".removesuffix(".py")
    with pytest.raises(Invalid, match=words):
        import_objective(f"{place}:train")


def test_a_script_that_reads_its_arguments_at_the_top_is_imported_as_if_it_had_none(tmp_path, monkeypatch):
    (tmp_path / "with_arguments.py").write_text(
        "import argparse\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_argument('--epochs', type=int, default=3)\n"
        "arguments = parser.parse_args()\n"
        "def train(trial):\n"
        "    return arguments.epochs\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hpo", "worker", "--study", "s"])
    assert import_objective("with_arguments:train")(NO_TRIAL) == 3


def test_a_path_names_a_module_too(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "beside_the_path.py").write_text("VALUE = 0.25\n")
    (tmp_path / "folder" / "by_path.py").write_text(
        "from beside_the_path import VALUE\ndef train(trial):\n    return VALUE\n"
    )
    monkeypatch.chdir(tmp_path)
    assert import_objective("folder/by_path.py:train")(NO_TRIAL) == 0.25
    with pytest.raises(Invalid, match="there is no file folder/nowhere"):
        import_objective("folder/nowhere.py:train")
