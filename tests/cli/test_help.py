"""What a shell and a terminal of 80 columns show of the commands."""

from __future__ import annotations

import re

import pytest

from hpo_service.cli import COMMANDS, COMMANDS_THAT_TRAIN, GROUPS


@pytest.mark.parametrize("command", ["", *COMMANDS, *COMMANDS_THAT_TRAIN, *GROUPS])
def test_help_fits_80_columns_and_nothing_is_cut_off(command, hpo, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    ended = hpo(*filter(None, [command, "--help"]))

    assert ended.code == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", ended.out).splitlines()
    assert max(map(len, lines)) <= 80
    several = re.compile(r"(COMMAND|NAME=VALUE)…")  # as they are meant
    assert not [line for line in lines if re.search(r"[A-Za-z0-9]…\s*│", several.sub("", line))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("hpo tri", {"trial"}),
        ("hpo trial ", {"list", "show", "enqueue", "stop"}),
        ("hpo worker --unt", {"--until-done"}),
        ("hpo plot --kind ti", {"timeline"}),
    ],
)
def test_a_shell_completes_commands_options_and_choices(line, completed, hpo, monkeypatch):
    monkeypatch.setenv("_HPO_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))

    assert set(hpo().out.split()) == completed
