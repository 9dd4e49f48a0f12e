"""Scripts in the shapes of Optuna's examples run with Optuna alone, and here with another line creating the study."""

from __future__ import annotations

import difflib
import runpy
import warnings
from pathlib import Path

import pytest

SHAPES = Path(__file__).parents[2] / "examples" / "optuna_shapes"
NAMES = sorted(path.stem for path in SHAPES.glob("*.py") if not path.stem.endswith("_ported"))
MORE_LINES = {"by_hand": 1}  # study.ask() returns a list


def lines(name: str) -> list[str]:
    """Without empty ones, which a formatter puts between imports."""
    return [line for line in (SHAPES / f"{name}.py").read_text().splitlines() if line.strip()]


def changed_lines(name: str) -> int:
    """How many lines of the ported script are new, or other than they were."""
    diff = difflib.ndiff(lines(name), lines(f"{name}_ported"))
    return sum(line.startswith("+ ") for line in diff)


def test_there_are_at_least_twelve_shapes():
    assert len(NAMES) >= 12


@pytest.mark.parametrize("name", NAMES)
def test_only_the_import_and_the_creation_of_the_study_change(name):
    assert changed_lines(name) == 2 + MORE_LINES.get(name, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_script_runs_with_optuna_and_with_the_service(hpo, real_server, monkeypatch, capsys, name):
    monkeypatch.setenv("HPO_SERVER", real_server.url)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_path(str(SHAPES / f"{name}.py"), run_name="__main__")
        with_optuna = capsys.readouterr().out
        runpy.run_path(str(SHAPES / f"{name}_ported.py"), run_name="__main__")
    with_the_service = capsys.readouterr().out
    assert with_optuna.strip()
    assert with_the_service.strip()
    study = hpo.study(name.replace("_", "-"))
    assert study["define_by_run"] is True
    assert study["search_space"], "it has grown by what the script's trials have suggested"
    assert study["counts"]["COMPLETE"] > 0
    assert study["counts"]["RUNNING"] == 0
