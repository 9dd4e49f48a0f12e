"""A study of Optuna's own database comes over whole, and only once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from hpo_service.cli.import_studies import parts
from hpo_service.client import Client


@pytest.fixture
def foreign(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/optuna.db"
    study = optuna.create_study(study_name="My Search!", storage=url, direction="maximize")
    for number in range(6):
        trial = study.ask()
        rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
        trial.suggest_int("units", 8, 64, step=8)
        if trial.suggest_categorical("kind", ["a", 1, None]) == "a":
            trial.suggest_float("only_a", 0, 1)
        trial.report(rate, 1)
        trial.report(math.nan, 2)
        if number == 4:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        elif number == 5:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, math.inf if number == 3 else rate)
    study.ask()
    return url


@pytest.mark.slow
def test_its_trials_are_there_with_params_values_and_reports(
    foreign: str, server: str, client: Client, hpo: Callable[..., Any]
) -> None:
    ended = hpo("import", foreign, "--server", server, "--json")
    assert ended.code == 0, ended.err
    (study,) = json.loads(ended.out)["items"]
    assert (study["name"], study["directions"]) == ("my-search", ["maximize"])
    assert study["counts"] == {"WAITING": 0, "RUNNING": 0, "COMPLETE": 4, "PRUNED": 1, "FAIL": 1}
    originals = optuna.load_study(study_name="My Search!", storage=foreign).trials[:6]
    for trial, original in zip(client.trials("my-search"), originals, strict=True):
        assert trial["params"] == original.params
        assert trial["state"] == original.state.name
        assert [report["step"] for report in trial["reports"]] == [1, 2]
    assert study["best"]["values"] == ["Infinity"]
    again = hpo("import", foreign, "--server", server)
    assert (again.code, "6 trials imported, 1 unfinished" in again.out) == (0, True)
    assert client.study("my-search")["counts"]["COMPLETE"] == 4


def test_what_is_no_database_of_optunas_is_said_in_a_line(tmp_path: Path, server: str, hpo: Callable[..., Any]) -> None:
    ended = hpo("import", f"sqlite:///{tmp_path}/nothing.db", "--server", server)
    assert (ended.code, ended.out) == (1, "")
    assert "no database of Optuna's" in ended.err


def test_a_call_holds_no_more_than_the_server_takes() -> None:
    trials = [{"params": {"x": 0.5}, "state": "COMPLETE", "values": [number]} for number in range(2500)]
    large = [{"params": {"x": 0.5}, "state": "FAIL", "reports": [{"step": s, "value": 0.1} for s in range(9000)]}] * 3
    divided = list(parts([*trials, *large]))
    assert [trial for part in divided for trial in part] == [*trials, *large]
    assert max(map(len, divided)) <= 1000
    assert max(len(json.dumps(part)) for part in divided) < 2**20
