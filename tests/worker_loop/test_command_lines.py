"""A command's arguments and environment."""

from __future__ import annotations

import sys

import pytest

from hpo_service.client import Client
from hpo_service.domain.errors import Invalid
from hpo_worker.command import environment_of
from hpo_worker.objective import TrainingTrial
from hpo_worker.outbox import HeldJob, Outbox
from hpo_worker.placeholders import check_placeholders, fill_in, variables

NAMES = ["learning_rate", "optimizer", "momentum", "weight decay"]
SPACE = {name: {"type": "float", "low": 0, "high": 1} for name in NAMES} | {
    "amsgrad": {"type": "categorical", "choices": [True, False]},
    "layers": {"type": "categorical", "choices": [[64], [64, 64]]},
    "offset": {"type": "float", "low": -1, "high": 1},
}


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


@pytest.mark.parametrize(
    ("command", "params", "arguments"),
    [
        (["{--amsgrad:amsgrad}", "-v"], {"amsgrad": True}, ["--amsgrad", "-v"]),
        (["{--amsgrad:amsgrad}", "-v"], {"amsgrad": False}, ["-v"]),
        (["{--amsgrad:amsgrad}", "-v"], {}, ["-v"]),
        (["{-a:amsgrad}"], {"amsgrad": True}, ["-a"]),
        (["--layers", "{layers*}", "-v"], {"layers": [64, 32]}, ["--layers", "64", "32", "-v"]),
        (
            ["--layers", "{layers*}"],
            {"layers": [[3, 3], "same", 1.5, True]},
            ["--layers", "[3, 3]", "same", "1.5", "true"],
        ),
        (["--layers", "{layers*}", "-v"], {"layers": []}, ["--layers", "-v"]),
        (["--layers", "{layers*}", "-v"], {}, ["-v"]),
        (["--layers={layers}"], {"layers": [64, 32]}, ["--layers=[64, 32]"]),
        (["--lr", "{learning_rate*}"], {"learning_rate": 0.1}, ["--lr", "0.1"]),
        (["--offset={offset}"], {"offset": -1e-05}, ["--offset=-1e-05"]),
    ],
)
def test_booleans_lists_and_negative_numbers_become_arguments(command, params, arguments):
    check_placeholders([sys.executable, *command], SPACE)
    assert fill_in(["train", *command], params, list(SPACE)) == ["train", *arguments]


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        ("{--lr:lr}", "names 'lr', which is no parameter of this study; it has learning_rate"),
        ("{--lr:learning_rate}", r"learning_rate is not true or false: use --lr \{learning_rate\}"),
        ("-x{--amsgrad:amsgrad}", "has to be an argument by itself"),
        ("--layers={layers*}", "becomes several arguments and has to stand by itself"),
        ("{sizes*}", "names 'sizes', which is no parameter of this study"),
    ],
)
def test_a_placeholder_that_no_trial_can_fill_is_refused(argument, why):
    with pytest.raises(Invalid, match=why):
        check_placeholders([sys.executable, argument], SPACE)


def test_a_parameter_whose_name_ends_in_a_star_is_meant_by_it():
    space = {"a*": {"type": "float", "low": 0, "high": 1}, "a": {"type": "float", "low": 0, "high": 1}}
    assert fill_in(["train", "{a*}"], {"a*": 0.5, "a": 0.1}, list(space)) == ["train", "0.5"]


def test_each_parameter_has_an_environment_variable_of_its_own():
    assert variables(["lr", "weight decay"]) == {"lr": "HPO_PARAM_LR", "weight decay": "HPO_PARAM_WEIGHT_DECAY"}
    korean = variables(["lr", "학습률", "배치수"])
    assert korean == {"lr": "HPO_PARAM_LR", "학습률": "HPO_PARAM_____2", "배치수": "HPO_PARAM_____3"}
    alike = variables(["a-b", "a_b", "A.B", "a_b_1"])
    assert len(set(alike.values())) == 4
    assert alike["a_b_1"] == "HPO_PARAM_A_B_1"


def test_an_unknown_placeholder_is_refused_with_the_names_there_are():
    with pytest.raises(Invalid, match=r"\{lr\} is no parameter of this study; it has learning_rate, optimizer"):
        check_placeholders([sys.executable, "train.py", "--lr", "{lr}"], SPACE)
    check_placeholders([sys.executable, "--lr", "{learning_rate}", "{weight decay}", '{"a": 1}', "{{lr}}"], SPACE)


def test_a_program_that_is_not_there_is_refused_before_anything_is_asked():
    with pytest.raises(Invalid, match="no-such-program"):
        check_placeholders(["no-such-program"], SPACE)


def nothing_suggested(job, parameters):
    raise AssertionError("a command suggests nothing")


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
    assert environment_of(
        TrainingTrial(given_out, job, Outbox(), 0, nothing_suggested, {}, Client("http://127.0.0.1:1")), around, NAMES
    ) == {
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
    trial = TrainingTrial(
        given_out, HeldJob("s", 0, 1, 60, 1, 0, 0), Outbox(), 0, nothing_suggested, {}, Client("http://127.0.0.1:1")
    )
    assert environment_of(trial, {"PYTHONUNBUFFERED": buffered}, [])["PYTHONUNBUFFERED"] == buffered
