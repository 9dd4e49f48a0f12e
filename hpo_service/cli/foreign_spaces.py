"""`hpo import --from wandb|nni|katib|hyperopt-json FILE`: another tool's search space as a study file of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo_service.cli.exits import CommandFailed
from hpo_service.cli.imported_names import near_name
from hpo_service.domain import other_words

Json = Mapping[str, Any]


@dataclass
class StudyText:
    """lines: of the study file; left: what a study file has no equivalent for."""

    lines: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def study_text(tool: str, path: Path) -> StudyText:
    """Translate a tool's search space into a study file. Raise CommandFailed."""
    document = _document(path)
    spec = document.get("spec", document) if tool == "katib" else document
    text = StudyText([f"name = {json.dumps(near_name(path.stem) or 'study')}"])
    goal = _goal(tool, spec)
    if goal is not None:
        text.lines.append(f'directions = ["{goal}"]')
    text.lines += ["", "[search_space]"]
    found = 0
    for name, given in _parameters(tool, spec):
        said = given if _is_ours(given) else other_words.in_our_words(given)
        if said is None:
            text.left.append(f"{name}: {json.dumps(given, default=str)[:100]}")
            continue
        found += 1
        text.lines.append(other_words.as_toml(name, said))
    if not found:
        raise CommandFailed(f"{path}: no parameter was found that {tool} would search", *text.left)
    text.lines += _limits(tool, spec)
    text.left += [key for key in spec if key in ("method", "early_terminate", "algorithm", "tuner", "assessor")]
    return text


def _document(path: Path) -> dict[str, Any]:
    try:
        content = path.read_text(encoding="utf-8")
        read = json.loads(content) if path.suffix == ".json" else _yaml(content)
    except OSError as error:
        raise CommandFailed(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CommandFailed(f"{path}: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(read, dict):
        raise CommandFailed(f"{path}: it holds no search space, but {type(read).__name__}")
    return read


def _yaml(content: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(f"no YAML: {error}") from None


def _parameters(tool: str, spec: Json) -> Iterator[tuple[str, Any]]:
    if tool == "katib":
        for given in spec.get("parameters") or ():
            yield given.get("name", ""), {key: value for key, value in given.items() if key != "name"}
    elif tool == "wandb":
        yield from _nested("", spec.get("parameters") or {})
    else:
        yield from (spec.get("searchSpace") or spec.get("search_space") or spec).items()


def _nested(before: str, parameters: Json) -> Iterator[tuple[str, Any]]:
    """Flatten W&B's nested parameters: the outer name, a dot, the inner name."""
    for name, given in parameters.items():
        if isinstance(given, Mapping) and isinstance(given.get("parameters"), Mapping):
            yield from _nested(f"{before}{name}.", given["parameters"])
        else:
            yield f"{before}{name}", given


def _is_ours(given: Any) -> bool:
    return isinstance(given, Mapping) and given.get("type") == "categorical" and "choices" in given


def _goal(tool: str, spec: Json) -> str | None:
    said = spec.get("metric") if tool == "wandb" else spec.get("objective")
    goals = (said.get("goal"), said.get("type")) if isinstance(said, Mapping) else ()
    return next((str(goal) for goal in goals if goal in ("minimize", "maximize")), None)


def _limits(tool: str, spec: Json) -> list[str]:
    names = {"trials": ("maxTrialCount", "run_cap", "maxTrialNumber"), "running": ("parallelTrialCount",)}
    found = {ours: spec[key] for ours, keys in names.items() for key in keys if isinstance(spec.get(key), int)}
    return ["", "[limits]", *(f"{name} = {value}" for name, value in found.items())] if found else []
