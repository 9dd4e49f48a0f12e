"""A name stands for one thing: the files and the classes of the product are told apart by their names alone."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
MODULES = [*(HERE / "hpo_service").rglob("*.py"), *(HERE / "worker" / "hpo_worker").rglob("*.py")]


def twice(names: list[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def test_each_file_has_a_name_of_its_own() -> None:
    assert twice([path.name for path in MODULES if not path.stem.startswith("__")]) == []


def test_each_class_has_a_name_of_its_own() -> None:
    nodes = [node for path in MODULES for node in ast.walk(ast.parse(path.read_text()))]
    assert twice([node.name for node in nodes if isinstance(node, ast.ClassDef)]) == []
