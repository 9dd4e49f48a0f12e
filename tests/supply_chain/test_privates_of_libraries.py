"""What is used of other packages that is none of their interface stands in one file each, and bounds their versions."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = [*(ROOT / "hpo_service").rglob("*.py"), *(ROOT / "worker").rglob("*.py")]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

# By package: the file for its privates, and what is private in the name of a module or of what is imported from it.
PRIVATE = {
    "optuna": ("hpo_service/tuning/optuna_study.py", re.compile(r"(^|\.)_(?!_)")),
    "uvicorn": ("hpo_service/api/uvicorn_protocol.py", re.compile(r"^uvicorn\.protocols")),
}
# Attributes and methods of Optuna's that a subclass or a caller reaches by an underscore.
OPTUNAS = re.compile(r"\b(_gamma|_init_optimizer|_restore_optimizer|_get_trials|_SearchSpaceTransform)\b")


def imported(file: Path, package: str) -> Iterator[str]:
    """Dotted names of what the file imports from the package."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.partition(".")[0] == package)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == package:
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.slow
@pytest.mark.parametrize("package", PRIVATE)
def test_privates_are_imported_by_one_file(package: str) -> None:
    home, private = PRIVATE[package]
    where = {file.relative_to(ROOT).as_posix() for file in PRODUCT if any(map(private.search, imported(file, package)))}
    assert where == {home}


def test_private_names_of_optuna_are_used_in_one_file() -> None:
    tuning = [file for file in PRODUCT if file.parent.name == "tuning"]
    found = {file.relative_to(ROOT).as_posix() for file in tuning if OPTUNAS.search(file.read_text(encoding="utf-8"))}
    assert found == {PRIVATE["optuna"][0]}


@pytest.mark.parametrize("package", PRIVATE)
def test_the_next_minor_release_is_not_taken(package: str) -> None:
    """The installed one is, and it is the newest that is: whoever raises the bound has to try it."""
    (wanted,) = (each for each in EXTRAS["server"] if re.match(rf"{package}\b(?!-)", each))
    (least,) = re.findall(r">=(\d+)\.(\d+)", wanted)
    (bound,) = re.findall(r"<(\d+)\.(\d+)", wanted)
    major, minor = map(int, version(package).split(".")[:2])
    assert tuple(map(int, least)) <= (major, minor)
    assert tuple(map(int, bound)) == (major, minor + 1)
