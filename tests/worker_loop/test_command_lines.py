"""A command's arguments and environment."""

from __future__ import annotations

import sys

import pytest

from hpo_service.domain.errors import Invalid
from hpo_worker.command import check_placeholders, environment_of, fill_in
from hpo_worker.objective import TrainingTrial
from hpo_worker.outbox import HeldJob, Outbox

NAMES = ["learning_rate", "optimizer", "momentum", "weight decay"]


@pytest.mark.parametrize(
    ("command", "params", "arguments"),
    [
        ("train --lr {learning_rate}", {"learning_rate": 1e-05}, "train --lr 1e-05"),
        ("train --lr={learning_rate} {optimizer}", {"learning_rate": 0.1, "optimizer": "sgd"}, "train --lr=0.1 sgd"),
        ("train {optimizer}-{optimizer}", {"optimizer": True}, "train true-true"),
        ("train {{optimizer}} {optimizer}", {"optimizer": None}, "train {optimizer} null"),
        ('train {"a":{"b":1}}', {}, 'train {"a":{"b":1}}'),
    ],
)
def test_placeholders_are_filled(command, params, arguments):
    assert fill_in(command.split(), params, list(params)) == arguments.split()


def test_a_parameter_that_does_not_exist_in_this_trial_takes_its_option_along():
    command = ["train", "--momentum", "{momentum}", "--momentum={momentum}", "--optimizer", "{optimizer}"]
    assert fill_in(command, {"optimizer": "sgd"}, NAMES) == ["train", "--optimizer", "sgd"]


def test_an_unknown_placeholder_is_refused_with_the_names_there_are():
    with pytest.raises(Invalid, match=r"\{lr\} is no parameter of this study; it has learning_rate, optimizer"):
        check_placeholders([sys.executable, "train.py", "--lr", "{lr}"], NAMES)
    check_placeholders([sys.executable, "--lr", "{learning_rate}", "{weight decay}", '{"a": 1}', "{{lr}}"], NAMES)


def test_a_program_that_is_not_there_is_refused_before_anything_is_asked():
    with pytest.raises(Invalid, match="no-such-program"):
        check_placeholders(["no-such-program"], NAMES)


def test_parameters_are_in_the_environment_too_and_the_workers_key_is_not():
    given_out = {
        "study": "mine",
        "number": 7,
        "attempt": 1,
        "params": {"weight decay": 0.1, "optimizer": "sgd"},
        "seed": 5,
        "objective": None,
    }
    job = HeldJob("mine", 7, 1, 60, 1, 0, 0)
    around = {"PATH": "/bin", "HPO_TOKEN": "a key", "HPO_TOKEN_FILE": "/run/key"}
    assert environment_of(TrainingTrial(given_out, job, Outbox(), 0), around) == {
        "PATH": "/bin",
        "PYTHONUNBUFFERED": "1",
        "HPO_PARAM_WEIGHT_DECAY": "0.1",
        "HPO_PARAM_OPTIMIZER": "sgd",
        "HPO_STUDY": "mine",
        "HPO_TRIAL": "7",
        "HPO_SEED": "5",
    }


@pytest.mark.parametrize("buffered", ["", "0", "x"])
def test_how_python_buffers_is_the_users_own_where_it_is_said(buffered):
    given_out = {"study": "s", "number": 0, "attempt": 1, "params": {}, "seed": 5, "objective": None}
    trial = TrainingTrial(given_out, HeldJob("s", 0, 1, 60, 1, 0, 0), Outbox(), 0)
    assert environment_of(trial, {"PYTHONUNBUFFERED": buffered})["PYTHONUNBUFFERED"] == buffered
