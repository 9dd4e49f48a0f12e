"""Writes docs/reference/study-file.md from the models that check a study: `python -m tests.docs.study_file_page`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpo_service.domain.neural_network import EXCLUDES, NEVER_SEARCHED, SETTINGS
from hpo_service.domain.study import StudySpec

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "study-file.md"

HEAD = """\
# The study file

A study file is the JSON body of `POST /v1/studies` as TOML, or as JSON. An unknown field, or a value out of its range,
is refused with its line, its rule and what to do, before anything runs. `hpo init` writes one to begin with.

*Written from the models that check a study (`python -m tests.docs.study_file_page`); a test compares the two.*
"""
# What a word of the schema does not say, by section and field; a field that is not there says it by its name and range.
MEANING: Mapping[str, str] = {
    "name": "by which it is found; another study never has it",
    "directions": "what becomes of each of the values that a trial is told",
    "search_space": "parameters by name, up to 100: see below",
    "lease_seconds": "how long a worker may be silent before its trial is given to another",
    "objective": "what the built-in objective trains, or anything for workers of your own",
    "metadata": "anything of yours; `figure`, `confirm` and `test` in it are read by `hpo run` and `hpo plot`",
    "SamplerConfig.name": "who draws",
    "SamplerConfig.seed": "drawn and kept when left out",
    "SamplerConfig.params": "the algorithm's own options; an unknown one is refused with those that there are",
    "PrunerConfig.name": "who ends hopeless trials early",
    "PrunerConfig.params": "the algorithm's own options",
    "Limits.trials": "given out in all; a retry does not count again",
    "Limits.running": "at one time",
    "Limits.seconds": "since its creation",
    "Limits.target": "a first value that is good enough; what runs then ends as usual",
    "Limits.attempts": "how many leases of a trial may run out before it FAILs",
    "Narrowing.rounds": "how often, the first range included",
    "Narrowing.trials_per_round": "after so many finished trials the next round begins",
    "Narrowing.keep": "the share of the best trials that spans the next ranges",
    "Narrowing.expand": "move a side outwards where the best trials crowd it",
    "low": "the lowest value, included",
    "high": "the highest value, included",
    "log": "draw its logarithm: as many trials between 0.001 and 0.01 as between 0.01 and 0.1",
    "step": "only low, low + step, …; not with log",
    "when": "exists only where each of these categorical parameters has one of these choices",
    "choices": "strings, numbers, booleans, null, or lists of these",
}
SECTIONS = {
    "SamplerConfig": "[sampler]",
    "PrunerConfig": "[pruner]",
    "Limits": "[limits]",
    "Narrowing": "[narrowing]",
    "FloatParameter": "[search_space] of type float",
    "IntParameter": "[search_space] of type int",
    "CategoricalParameter": "[search_space] of type categorical",
}


def page() -> str:
    schema = StudySpec.model_json_schema()
    lines = [HEAD, "## The study", "", *_table("", schema)]
    for model, title in SECTIONS.items():
        definition = schema["$defs"][model]
        lines += ["", f"## {title}", "", definition["description"], "", *_table(model, definition)]
    return "\n".join([*lines, "", *_network()]) + "\n"


def _table(model: str, definition: Mapping[str, Any]) -> Iterator[str]:
    yield "| field | takes | default | |"
    yield "|---|---|---|---|"
    required = definition.get("required", ())
    for name, field in definition["properties"].items():
        default = "required" if name in required else f"`{_json(field['default'])}`" if "default" in field else ""
        meaning = MEANING.get(f"{model}.{name}".lstrip(".")) or field.get("description") or MEANING.get(name, "")
        yield f"| `{name}` | {_takes(name, field)} | {default if len(default) < 60 else ''} | {meaning} |"


def _takes(name: str, field: Mapping[str, Any]) -> str:
    if "$ref" in field:
        return SECTIONS.get(field["$ref"].rpartition("/")[2], "parameters")
    if name in ("choices", "when"):
        return {"choices": "a list", "when": "lists of choices by parameter"}[name]
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_takes(name, each) for each in field["anyOf"]))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{word}`" for word in field["enum"])
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "object": "a table"}
    kind = field.get("type", "anything")
    if kind == "array":
        return f"a list of {_takes(name, field.get('items', {}))}"
    return f"{words.get(kind, {'string': 'a text', 'null': 'null'}.get(kind, kind))}{_range(field)}"


def _range(field: Mapping[str, Any]) -> str:
    bounds = (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"))
    return "".join(f" {word} {_whole(field[key])}" for key, word in bounds if key in field)


def _whole(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:,.15g}"


def _network() -> Iterator[str]:
    yield from ('## [objective] with kind = "neural_network"', "")
    yield "Each of these may stand in the search space instead, but for those named below."
    yield from ("", "| setting | takes | default | |", "|---|---|---|---|")
    for name, setting in SETTINGS.items():
        yield f"| `{name}` | {setting.expected} | `{_json(setting.default)}` | {setting.meaning} |"
    yield ""
    for name, others in EXCLUDES.items():
        yield f"- `{name}` stands for {' and '.join(f'`{other}`' for other in others)}: give one or the other."
    for name, reason in NEVER_SEARCHED.items():
        yield f"- `{name}` is never searched: {reason}."


def _json(value: Any) -> str:
    return json.dumps(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
