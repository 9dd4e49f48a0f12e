"""The search space: named parameters, each with the range or the choices it is drawn from.

One model is the wire form, the SDK's class and the stored JSON.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, RootModel, StringConstraints, model_validator

from hpo_service.domain.choices import Choice, identity, index_of_choice
from hpo_service.domain.choices import Value as Value
from hpo_service.domain.measure import WHOLE
from hpo_service.domain.refusal import STRICT, refuse
from hpo_service.domain.sizes import CHOICE, LIST_CHOICE, check_size
from hpo_service.domain.steps import grid_index, grid_point, grid_size

Params = dict[str, Value]

MOST_PARAMETERS = 100

# Beyond 2**53 neighbouring integers are the same double, which is what databases and samplers keep.
LARGEST_INTEGER = 2**53

Integer = Annotated[int, Field(ge=-LARGEST_INTEGER, le=LARGEST_INTEGER), WHOLE]
_NAME = r"^[^\x00-\x1f\x7f]+$"
ParameterName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=_NAME)]
Condition = dict[str, Annotated[list[Choice], Field(min_length=1)]]


class _Range(BaseModel):
    model_config = STRICT
    log: bool = False
    when: Condition | None = None


class FloatParameter(_Range):
    """A real number in [low, high]; on a grid of `step` from low, or uniform in its logarithm."""

    type: Literal["float"] = "float"
    low: float
    high: float
    step: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_range(self.low, self.high, self.log, self.step)
        if not math.isfinite(self.high - self.low):
            refuse((["high"], f"the range from {self.low:g} to {self.high:g} is wider than a double can hold"))
        return self

    def contains(self, value: Value) -> bool:
        return self.exact(value) is not None

    def exact(self, value: Value) -> float | None:
        """The value as it is drawn: on a grid its very point, for a sum that misses it by a bit; None outside."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if self.step is None:
            return float(value) if self.low <= value <= self.high else None
        if not self.low - self.step < value < self.high + self.step:
            return None
        index = grid_index(self.low, self.step, float(value))
        if index is None or not 0 <= index < grid_size(self.low, self.high, self.step):
            return None
        return min(grid_point(self.low, self.step, index), self.high)

    def with_range(self, low: float, high: float) -> FloatParameter:
        return self.model_copy(update={"low": low, "high": high})


class IntParameter(_Range):
    """An integer in [low, high]; on a grid of `step` from low, or uniform in its logarithm."""

    type: Literal["int"] = "int"
    low: Integer
    high: Integer
    step: Annotated[int, Field(ge=1, le=LARGEST_INTEGER), WHOLE] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_range(self.low, self.high, self.log, self.step)
        return self

    def contains(self, value: Value) -> bool:
        return self.exact(value) is not None

    def exact(self, value: Value) -> int | None:
        """The value as it is drawn, 3 for 3.0; None outside."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if not self.low <= value <= self.high or value != math.floor(value):
            return None
        return int(value) if (int(value) - self.low) % (self.step or 1) == 0 else None

    def with_range(self, low: float, high: float) -> IntParameter:
        return self.model_copy(update={"low": int(low), "high": int(high)})


class CategoricalParameter(BaseModel):
    """One of a list of choices: in no order, or as places in the order of the list (`ordered`)."""

    model_config = STRICT
    type: Literal["categorical"] = "categorical"
    choices: Annotated[
        list[Choice],
        Field(
            min_length=1,
            max_length=1000,
            description=f"each at most {CHOICE:,} bytes of compact JSON, a list at most {LIST_CHOICE:,} (413); "
            "compared by value",
        ),
    ]
    ordered: Annotated[bool, Field(description="places in this order, for samplers that can use it")] = False
    when: Condition | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        seen = set()
        for position, choice in enumerate(self.choices):
            for number in _integers_in(choice):
                if abs(number) > LARGEST_INTEGER:
                    refuse((["choices", position], f"{number} is beyond 2**53, where integers are no longer exact"))
            key = identity(choice)
            if key in seen:
                refuse((["choices", position], f"{choice!r} stands twice among the choices"))
            seen.add(key)
        return self

    def contains(self, value: Value) -> bool:
        return index_of_choice(self.choices, value) is not None

    def exact(self, value: Value) -> Value:
        """The choice that this value is, 2 for 2.0; the value itself where it is none."""
        index = index_of_choice(self.choices, value)
        return value if index is None else self.choices[index]


NumericParameter = FloatParameter | IntParameter
AnyParameter = NumericParameter | CategoricalParameter
Parameter = Annotated[AnyParameter, Field(discriminator="type")]


class SearchSpace(RootModel[Annotated[dict[ParameterName, Parameter], Field(max_length=MOST_PARAMETERS)]]):
    """Up to 100 named parameters, some of which exist only under a choice of others (`when`)."""

    model_config = {"frozen": True}

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, parameter in self.root.items():
            for parent, wanted in (parameter.when or {}).items():
                self._check_condition(name, parent, wanted)
        self.in_order_of_conditions()
        return self

    def _check_condition(self, name: str, parent: str, wanted: Sequence[Value]) -> None:
        place = [name, "when", parent]
        controlling = self.root.get(parent)
        if controlling is None:
            refuse((place, f"{parent!r} is not a parameter of this search space"))
        if not isinstance(controlling, CategoricalParameter):
            refuse((place, f"{parent!r} is not categorical; a condition can only name a categorical parameter"))
        for position, choice in enumerate(wanted):
            if not controlling.contains(choice):
                refuse(([*place, position], f"{choice!r} is not one of the choices of {parent!r}"))

    def in_order_of_conditions(self) -> list[str]:
        """Return the names, each after those that its `when` asks about."""
        ordered: dict[str, None] = {}

        def place(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                circle = " -> ".join([*path[path.index(name) :], name])
                refuse(([name, "when"], f"the conditions form a cycle: {circle}"))
            for parent in self.root[name].when or {}:
                if parent not in ordered:
                    place(parent, (*path, name))
            ordered[name] = None

        for name in self.root:
            if name not in ordered:
                place(name, ())
        return list(ordered)

    def exists(self, name: str, params: Mapping[str, Value]) -> bool:
        """Whether the parameter exists in a trial whose categorical params are these."""
        return all(
            parent in params and index_of_choice(wanted, params[parent]) is not None
            for parent, wanted in (self.root[name].when or {}).items()
        )

    def __contains__(self, name: object) -> bool:
        return name in self.root

    def __getitem__(self, name: str) -> AnyParameter:
        return self.root[name]

    def __len__(self) -> int:
        return len(self.root)

    def names(self) -> Iterator[str]:
        return iter(self.root)

    def items(self) -> Iterator[tuple[str, AnyParameter]]:
        return iter(self.root.items())

    def has_conditions(self) -> bool:
        return any(parameter.when for parameter in self.root.values())


def is_parameter_name(text: str) -> bool:
    return len(text) <= 200 and re.fullmatch(_NAME, text) is not None


def check_choice_sizes(space: SearchSpace) -> None:
    """Raise TooLarge for a choice that would be stored and sent again with every trial."""
    for name, parameter in space.items():
        for choice in parameter.choices if isinstance(parameter, CategoricalParameter) else ():
            check_choice_size(f"a choice of {name!r}", choice)


def check_choice_size(what: str, choice: Value) -> None:
    """Raise TooLarge."""
    if isinstance(choice, str) and len(choice) > CHOICE // 6:  # no character takes more bytes
        check_size(what, choice, CHOICE)
    elif isinstance(choice, list):
        check_size(f"{what}, a list,", choice, LIST_CHOICE)


def params_faults(space: SearchSpace, params: Mapping[str, Value]) -> list[tuple[str, str]]:
    """Return (name, rule broken) for each param that this search space would never give."""
    faults = []
    for name, value in params.items():
        if name not in space:
            faults.append((name, f"not a parameter of this study; it has {', '.join(space.names())}"))
        elif not space[name].contains(value):
            faults.append((name, f"{value!r} lies outside {describe(space[name])}"))
    return faults


def describe(parameter: AnyParameter) -> str:
    """Say the range or the choices in words, for messages and summaries."""
    if isinstance(parameter, CategoricalParameter):
        shown = ", ".join(repr(choice) for choice in parameter.choices[:10])
        return f"the choices {shown}" + (", ..." if len(parameter.choices) > 10 else "")
    grid = f" in steps of {parameter.step:g}" if parameter.step is not None else ""
    return f"[{parameter.low:g}, {parameter.high:g}]{grid}"


def log_uniform(low: float, high: float, when: Condition | None = None) -> FloatParameter:
    """A real number whose logarithm is uniform: for learning rates and weight decays."""
    return FloatParameter(low=low, high=high, log=True, when=when)


def uniform(low: float, high: float, step: float | None = None, when: Condition | None = None) -> FloatParameter:
    return FloatParameter(low=low, high=high, step=step, when=when)


def integer(
    low: int, high: int, log: bool = False, step: int | None = None, when: Condition | None = None
) -> IntParameter:
    return IntParameter(low=low, high=high, log=log, step=step, when=when)


def choice(*choices: Any, when: Condition | None = None, ordered: bool = False) -> CategoricalParameter:
    """choices: texts, numbers, booleans, None, and lists or tuples of these, which come back as lists."""
    return CategoricalParameter(choices=list(choices), when=when, ordered=ordered)


def _check_range(low: float, high: float, log: bool, step: float | None) -> None:
    if low > high:
        refuse((["high"], f"high ({high:g}) is below low ({low:g}); a range goes from low to high"))
    if log and low <= 0:
        refuse((["low"], f"low is {low:g}, but a logarithmic range must begin above 0"))
    if step is None:
        return
    if log:
        refuse((["step"], _written_out(low, high, step)))
    if step <= 0:
        refuse((["step"], f"step is {step:g}, but must be above 0"))
    # two neighbouring points of a grid may lie a last bit less than a step apart
    if low < high and step > (high - low) * (1 + 1e-9):
        refuse((["step"], f"step ({step:g}) is larger than the range from {low:g} to {high:g}"))


def log_grid(low: float, high: float, step: float) -> list[float]:
    """Powers of two or of ten from low, on the points of a grid: what a range both logarithmic and stepped means."""
    factor = 2 if high / low <= 1_000 else 10
    points = {low: None}
    point = low
    while (point := point * factor) <= high and len(points) < 12:
        points[grid_point(low, step, round((point - low) / step))] = None
    whole = all(float(each).is_integer() for each in points)
    return [int(each) if whole else each for each in points if each <= high]


def _written_out(low: float, high: float, step: float) -> str:
    return (
        f"step ({step:g}) cannot be combined with log: a logarithmic range has no grid; write the values out instead: "
        f'{{"type": "categorical", "ordered": true, "choices": {log_grid(low, high, step)}}}'
    )


def _integers_in(value: Value) -> Iterator[int]:
    if isinstance(value, list):
        for each in value:
            yield from _integers_in(each)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value
