"""The types of the SDK hold in a user's own program, under mypy's strictest rules."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import hpo_service

PROGRAM = """
    from hpo_service.client import Client, ObjectiveTrial, RecordedTrial, RemoteStudy, Retry, TrialPruned
    from hpo_service.domain.search_space import log_uniform


    def objective(trial: ObjectiveTrial) -> float:
        rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
        layers: int = trial.suggest_int("layers", 1, 4)
        kind: str = trial.suggest_categorical("kind", ["a", "b"])
        trial.report(rate, 0)
        if trial.should_prune():
            raise TrialPruned
        if layers > 9:
            raise Retry("out of memory")
        trial.set_user_attr("kind", kind)
        return rate * layers


    def look(study: RemoteStudy, trial: RecordedTrial) -> None:
        if trial.value is not None and trial.value < 0.1:
            study.stop()


    with Client("http://127.0.0.1:8000") as hpo:
        study = hpo.create_study("mine", direction="minimize")
        study.optimize(objective, n_trials=50, timeout=60.0, n_jobs=2, catch=(ValueError,), callbacks=[look])
        best: float = study.best_value
        numbers: list[int] = [trial.number for trial in study.trials]
        states = {trial.state.name for trial in study.trials(state="COMPLETE", order_by="value")}
        first, second = study.ask(count=2)
        first.tell(0.9)
        given = hpo.create_study("given", {"lr": log_uniform(1e-5, 1e-1)})
"""
WRONG = [
    'trial.report(0, "loss")',
    'trial.suggest_int("n", 1, 4, True)',
    "study.best_value + 'a'",
    "study.trials[0] = 1",
]


def check(program: str, folder: Path) -> str:
    (folder / "mine.py").write_text(textwrap.dedent(program))
    source = Path(hpo_service.__file__).parents[1]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(folder / "cache"), "mine.py"],
        cwd=folder,
        env={"MYPYPATH": str(source), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "error: Cannot find implementation" not in checked.stdout
    return "\n".join(line for line in checked.stdout.splitlines() if line.startswith("mine.py"))


@pytest.mark.slow
def test_a_program_of_a_users_own_passes_and_its_slips_are_found(tmp_path):
    assert check(PROGRAM, tmp_path) == ""
    in_objective = "".join(f"\n    {line}" for line in WRONG[:2])
    at_the_end = "".join(f"    {line}\n" for line in WRONG[2:])
    slips = textwrap.dedent(PROGRAM).replace("\n    trial.report(rate, 0)", in_objective) + at_the_end
    found = check(slips, tmp_path)
    assert found.count("error:") >= len(WRONG), found
