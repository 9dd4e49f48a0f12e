"""Search spaces of W&B, NNI, Katib and hyperopt become study files that are taken as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpo_service.cli.study_file import read_study_file

WANDB = """
method: bayes
metric: {name: val_loss, goal: minimize}
run_cap: 30
parameters:
  lr: {distribution: log_uniform_values, min: 0.0001, max: 0.1}
  batch_size: {values: [16, 32]}
  layers: {min: 1, max: 4}
  optimizer:
    parameters:
      momentum: {min: 0.5, max: 0.9}
  seed: {distribution: normal, mu: 0, sigma: 1}
"""
NNI = """
{"lr": {"_type": "loguniform", "_value": [0.0001, 0.1]}, "batch_size": {"_type": "choice", "_value": [16, 32]},
 "layers": {"_type": "randint", "_value": [1, 5]}, "optimizer.momentum": {"_type": "uniform", "_value": [0.5, 0.9]}}
"""
KATIB = """
apiVersion: kubeflow.org/v1beta1
kind: Experiment
spec:
  objective: {type: minimize, goal: 0.01, objectiveMetricName: loss}
  algorithm: {algorithmName: random}
  maxTrialCount: 30
  parameters:
    - {name: lr, parameterType: double, feasibleSpace: {min: "0.0001", max: "0.1", distribution: logUniform}}
    - {name: batch_size, parameterType: discrete, feasibleSpace: {list: ["16", "32"]}}
    - {name: layers, parameterType: int, feasibleSpace: {min: "1", max: "4"}}
    - {name: optimizer.momentum, parameterType: double, feasibleSpace: {min: "0.5", max: "0.9"}}
"""
HYPEROPT = """
{"lr": {"type": "loguniform", "low": -9.21034, "high": -2.302585},
 "batch_size": {"type": "choice", "options": [16, 32]},
 "layers": {"type": "uniformint", "low": 1, "high": 4},
 "optimizer.momentum": {"type": "uniform", "low": 0.5, "high": 0.9}}
"""


@pytest.mark.parametrize(
    ("tool", "file", "text"),
    [
        ("wandb", "my sweep.yaml", WANDB),
        ("nni", "search_space.json", NNI),
        ("katib", "experiment.yaml", KATIB),
        ("hyperopt-json", "space.json", HYPEROPT),
    ],
)
def test_it_becomes_a_study_file(tmp_path: Path, hpo: Callable[..., Any], tool: str, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    ended = hpo("import", "--from", tool, str(tmp_path / file))
    assert ended.code == 0, ended.err
    (tmp_path / "study.toml").write_text(ended.out)
    spec = read_study_file(tmp_path / "study.toml").spec()
    space = {name: parameter.model_dump(exclude_defaults=True) for name, parameter in spec.search_space.items()}
    assert space == {
        "lr": {"low": pytest.approx(1e-4, rel=1e-4), "high": pytest.approx(0.1, rel=1e-4), "log": True},
        "batch_size": {"choices": [16, 32]},
        "layers": {"low": 1, "high": 4},
        "optimizer.momentum": {"low": 0.5, "high": 0.9},
    }
    assert spec.search_space["layers"].type == "int"
    if tool in ("wandb", "katib"):
        assert (spec.directions, spec.limits.trials) == (["minimize"], 30)
        assert "could not be said" in ended.err
    assert ("seed" in ended.err) == (tool == "wandb")


@pytest.mark.parametrize("text", ["[1]", "{}", "{", '{"a": {"_type": "normal", "_value": [0, 1]}}'])
def test_what_holds_no_search_space_is_one_sentence(tmp_path: Path, hpo: Callable[..., Any], text: str) -> None:
    (tmp_path / "space.json").write_text(text)
    ended = hpo("import", "--from", "nni", str(tmp_path / "space.json"))
    assert (ended.code, ended.out) == (1, "")
    assert "Traceback" not in ended.err
