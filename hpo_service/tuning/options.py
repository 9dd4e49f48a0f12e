"""The options of samplers and pruners: which there are, what each may be, and how a wrong one is refused."""

from __future__ import annotations

import math
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


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


LARGEST = sys.float_info.max


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -LARGEST <= value <= LARGEST  # an integer of the wire may be larger than any double


def integer(low: int, high: int = 2**31 - 1, *, required: bool = False) -> Option:
    rule = f"an integer from {low} to {high}" if high < 2**31 - 1 else f"an integer, at least {low}"
    return Option(rule, lambda value: _is_integer(value) and low <= value <= high, required)


def integer_or_null(low: int, high: int) -> Option:
    given = integer(low, high)
    return Option(f"{given.rule}, or null", lambda value: value is None or given.accepts(value))


def number(low: float, high: float, *, required: bool = False) -> Option:
    rule = f"a number from {low:g} to {high:g}"
    return Option(rule, lambda value: _is_number(value) and low <= value <= high, required)


def number_or_null(low: float = -math.inf, high: float = math.inf) -> Option:
    bounded = f" from {low:g} to {high:g}" if math.isfinite(low) else ""
    return Option(
        f"a number{bounded}, or null", lambda value: value is None or (_is_number(value) and low <= value <= high)
    )


def at_least_zero() -> Option:
    return Option("a number, at least 0", lambda value: _is_number(value) and value >= 0)


def boolean() -> Option:
    return Option("true or false", lambda value: isinstance(value, bool))


def boolean_or_null() -> Option:
    return Option("true, false or null", lambda value: value is None or isinstance(value, bool))


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
