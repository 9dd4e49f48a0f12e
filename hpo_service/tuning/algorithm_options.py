"""The options of samplers and pruners: which there are, what each may be, and how a wrong one is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hpo_service.domain.errors import Fault
from hpo_service.domain.json_pointer import pointer


@dataclass(frozen=True)
class Option:
    """rule: completes the sentence 'x is … but must be'."""

    rule: str
    accepts: Callable[[Any], bool]
    required: bool = False


Options = Mapping[str, Option]

LARGEST = sys.float_info.max


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -LARGEST <= value <= LARGEST  # an integer in JSON may be larger than any double


def integer(low: int, high: int = 2**31 - 1, *, required: bool = False) -> Option:
    rule = f"an integer from {low} to {high}" if high < 2**31 - 1 else f"an integer, at least {low}"
    return Option(rule, lambda value: type(value) is int and low <= value <= high, required)


def number(low: float, high: float, *, required: bool = False) -> Option:
    rule = f"a number from {low:g} to {high:g}"
    return Option(rule, lambda value: _is_number(value) and low <= value <= high, required)


def or_null(option: Option) -> Option:
    return Option(f"{option.rule}, or null", lambda value: value is None or option.accepts(value))


ANY_NUMBER = Option("a number", _is_number)
AT_LEAST_ZERO = Option("a number, at least 0", lambda value: _is_number(value) and value >= 0)
BOOLEAN = Option("true or false", lambda value: isinstance(value, bool))
BOOLEAN_OR_NULL = Option("true, false or null", lambda value: isinstance(value, bool | None))


def one_of(*words: str) -> Option:
    return Option("one of " + ", ".join(f'"{word}"' for word in words), lambda value: value in words)


def faults(whose: str, options: Options, given: Mapping[str, Any], place: str) -> list[Fault]:
    """whose: 'the sampler tpe'; place: the pointer of `given`."""
    found = []
    for name, value in given.items():
        if name not in options:
            known = f"it has {', '.join(options)}" if options else "it has none"
            hint = "; the seed is the sampler's own field, beside params" if name == "seed" else ""
            found.append(Fault(pointer(name, below=place), f"{whose} has no option {name!r}; {known}{hint}"))
        elif not options[name].accepts(value):
            found.append(
                Fault(pointer(name, below=place), f"{name} is {_shown(value)}, but must be {options[name].rule}")
            )
    for name, option in options.items():
        if option.required and name not in given:
            found.append(Fault(place, f"{whose} needs the option {name}: {option.rule}"))
    return found


def _shown(value: Any) -> str:
    words = {True: "true", False: "false", None: "null"} if isinstance(value, bool | None) else {}
    text = words.get(value) or repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
