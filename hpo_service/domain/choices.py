"""One of the choices of a categorical parameter: a JSON scalar, or a list of them, compared by value."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

Value = bool | int | float | str | None | list[Any]

DEEPEST = 3  # lists within lists

_SCALARS: list[dict[str, Any]] = [{"type": name} for name in ("boolean", "integer", "number", "string", "null")]


def _schema(depth: int) -> dict[str, Any]:
    return {"anyOf": [*_SCALARS, {"type": "array", "items": _schema(depth - 1)}] if depth else _SCALARS}


def _checked(value: Any, depth: int = 0) -> Value:
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("rule", "{detail}", {"detail": f"{value} is no finite number"})
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if not isinstance(value, list | tuple):
        kind = "an object" if isinstance(value, dict) else type(value).__name__
        detail = f"{kind} cannot be a choice: a choice is a text, a number, true, false, null, or a list of these"
        raise PydanticCustomError("rule", "{detail}", {"detail": detail})
    if depth == DEEPEST:
        detail = f"lists are nested more than {DEEPEST} levels deep"
        raise PydanticCustomError("rule", "{detail}", {"detail": detail})
    return [_checked(each, depth + 1) for each in value]


Choice = Annotated[Value, PlainValidator(_checked), WithJsonSchema(_schema(DEEPEST))]


def identity(value: Value) -> Hashable:
    """Equal for two JSON values that are one choice, also within lists: true is not 1, but 1.0 is."""
    if isinstance(value, list | tuple):
        return list, tuple(map(identity, value))
    return isinstance(value, bool), value


def same_choice(a: Value, b: Value) -> bool:
    if isinstance(a, list | tuple) or isinstance(b, list | tuple):
        return identity(a) == identity(b)
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def index_of_choice(choices: Sequence[Value], value: Value) -> int | None:
    for index, choice in enumerate(choices):
        if same_choice(choice, value):
            return index
    return None
