"""How a model refuses a value: at the very field, with the rule it breaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from pydantic import ConfigDict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

# Every value of the contract: unknown fields refused, no coercion, never changed after it was made.
STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def refuse(*faults: tuple[Sequence[str | int], str]) -> NoReturn:
    """Raise inside a validator: each fault is (place below the model, rule broken)."""
    raise ValidationError.from_exception_data(
        "refused",
        [
            InitErrorDetails(
                type=PydanticCustomError("rule", "{detail}", {"detail": detail}), loc=tuple(place), input=None
            )
            for place, detail in faults
        ],
    )
