"""How a trial's parameters get into a command: by placeholders in its arguments, and by environment variables.

{name}           the parameter: a text as it is, anything else as JSON; {{name}} stays {name}
--flag={name}    in one argument, as a number needs that may be negative
{--flag:name}    for a boolean: the argument --flag where it is true, and none where it is false
{name*}          for a list: an argument for each of its elements

An argument with a parameter that does not exist in this trial is left out, together with the option before it whose
value it is.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hpo_service.domain.errors import Fault, Invalid

_PLACEHOLDER = re.compile(r"\{\{([^{}]*)\}\}|\{([^{}]*)\}")
_FLAG = re.compile(r"\{(-[^{}:\s]*):([^{}]+)\}")
_SEVERAL = re.compile(r"\{([^{}]+)\*\}")
_LIKE_A_NAME = re.compile(r"[\w .-]+")


def check_placeholders(command: Sequence[str], space: Mapping[str, Any]) -> None:
    """Raise Invalid for a placeholder that no trial can fill, and for a command that is not there.

    space: the study's search space, as JSON.
    """
    faults = [
        Fault(f"command/{place}", fault) for place, argument in enumerate(command) for fault in _faults(argument, space)
    ]
    if not _PLACEHOLDER.search(command[0]) and shutil.which(command[0]) is None:
        faults.append(Fault("command/0", f"{command[0]!r} is no program that can be run here"))
    if faults:
        raise Invalid(faults)


def _faults(argument: str, space: Mapping[str, Any]) -> Iterator[str]:
    known = ", ".join(space)
    flag, several = _FLAG.fullmatch(argument), _several(argument, space)
    if flag is not None:
        name = flag[2]
        if name not in space:
            yield f"{argument} names {name!r}, which is no parameter of this study; it has {known}"
        elif not _is_boolean(space[name]):
            yield f"{argument} gives {flag[1]} or nothing, but {name} is not true or false: use {flag[1]} {{{name}}}"
    elif several is not None:
        if several not in space:
            yield f"{argument} names {several!r}, which is no parameter of this study; it has {known}"
    else:
        for part, name in ((match.group(), match[2]) for match in _PLACEHOLDER.finditer(argument)):
            if name is None or name in space:
                continue
            if (inside := _FLAG.fullmatch(part)) is not None and inside[2] in space:
                yield f"{part} has to be an argument by itself, but stands in {argument!r}"
            elif name.endswith("*") and name[:-1] in space:
                yield f"{part} becomes several arguments and has to stand by itself, but stands in {argument!r}"
            elif _LIKE_A_NAME.fullmatch(name):
                yield f"{part} is no parameter of this study; it has {known}"


def _is_boolean(parameter: Mapping[str, Any]) -> bool:
    choices = parameter.get("choices") or [None]
    return all(isinstance(choice, bool) for choice in choices)


def _several(argument: str, known: Iterable[str]) -> str | None:
    """Which parameter `{name*}` spreads; None if the argument is no such placeholder, or the name itself ends in *."""
    match = _SEVERAL.fullmatch(argument)
    return None if match is None or f"{match[1]}*" in known else match[1]


def fill_in(command: Sequence[str], params: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The arguments with their placeholders filled. names: all parameters of the study."""
    known = set(names)
    absent = known - set(params)
    arguments: list[str] = []
    for argument in command:
        flag, several = _FLAG.fullmatch(argument), _several(argument, known)
        if flag is not None and flag[2] in known:
            arguments += [flag[1]] if params.get(flag[2]) is True else []
        elif several is not None and several in params:
            arguments += _spread(params[several])
        elif absent.isdisjoint(_names_in(argument, several)):
            arguments.append(_PLACEHOLDER.sub(lambda match: _filled(match, params), argument))
        elif _PLACEHOLDER.fullmatch(argument) and len(arguments) > 1 and arguments[-1].startswith("-"):
            arguments.pop()
    return arguments


def _names_in(argument: str, several: str | None) -> list[str]:
    return [name for _, name in _PLACEHOLDER.findall(argument)] if several is None else [several]


def _spread(value: Any) -> list[str]:
    return [as_text(each) for each in value] if isinstance(value, list) else [as_text(value)]


def _filled(match: re.Match[str], params: Mapping[str, Any]) -> str:
    escaped, name = match.groups()
    if escaped is not None:
        return f"{{{escaped}}}"
    return as_text(params[name]) if name in params else match.group()


def as_text(value: Any) -> str:
    """A string as it is, anything else as JSON: 0.001, true, null, [64, 64]."""
    return value if isinstance(value, str) else json.dumps(value)


def variables(names: Iterable[str]) -> dict[str, str]:
    """The environment variable of each parameter: HPO_PARAM_ and its name in upper case, with _ for other letters.

    If several parameters would share a variable, each gets its position among all parameters appended: 학습률 and
    배치수 as the second and the third parameter are HPO_PARAM_____2 and HPO_PARAM_____3.
    """
    plain = {name: f"HPO_PARAM_{re.sub(r'[^A-Z0-9_]', '_', name.upper())}" for name in names}
    wanted = list(plain.values())
    taken = {variable for variable in wanted if wanted.count(variable) == 1}
    found: dict[str, str] = {}
    for place, (name, variable) in enumerate(plain.items(), start=1):
        unique = variable
        if wanted.count(variable) > 1:
            unique = f"{variable}_{place}"
            while unique in taken:
                unique += "_"
            taken.add(unique)
        found[name] = unique
    return found
