"""A measured value: a double that may also be NaN or infinite; in JSON these are strings."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer

Jsonable = float | str

_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _read(value: Any) -> Any:
    return _WORDS.get(value, value) if isinstance(value, str) else value


def to_json(value: float) -> Jsonable:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def from_json(value: Jsonable) -> float:
    return _WORDS[value] if isinstance(value, str) else float(value)


def whole(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


# JSON has one kind of number: a client may write 98 as 98.0. Last of all annotations, so that the bounds before it are
# described in the JSON schema too.
WHOLE = BeforeValidator(whole)

Measure = Annotated[
    float,
    Field(allow_inf_nan=True),
    BeforeValidator(_read),
    PlainSerializer(to_json, return_type=float | str),
]
