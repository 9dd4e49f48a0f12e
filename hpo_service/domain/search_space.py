"""The search space: named parameters, each with the range or the choices it is drawn from.

One model is the wire form, the SDK's class and the stored JSON.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    RootModel,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    StringConstraints,
    model_validator,
)

from hpo_service.domain.measure import WHOLE
from hpo_service.domain.refusal import STRICT, refuse
from hpo_service.domain.sizes import CHOICE

Choice = StrictBool | StrictInt | StrictFloat | StrictStr | None
Value = bool | int | float | str | None
Params = dict[str, Value]

# Beyond 2**53 neighbouring integers are the same double, which is what databases and samplers keep.
LARGEST_INTEGER = 2**53

Integer = Annotated[int, Field(ge=-LARGEST_INTEGER, le=LARGEST_INTEGER), WHOLE]
ParameterName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
Condition = dict[str, Annotated[list[Choice], Field(min_length=1)]]


def same_choice(a: Value, b: Value) -> bool:
    """Whether two JSON values are one choice: true is not 1, but 1.0 is."""
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def index_of_choice(choices: Sequence[Value], value: Value) -> int | None:
    for index, choice in enumerate(choices):
        if same_choice(choice, value):
            return index
    return None


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
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and _on_grid(value, self.low, self.step)

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
        if isinstance(value, bool) or not isinstance(value, int | float) or value != math.floor(value):
            return False
        return self.low <= value <= self.high and _on_grid(value, self.low, self.step)

    def with_range(self, low: float, high: float) -> IntParameter:
        return self.model_copy(update={"low": int(low), "high": int(high)})


class CategoricalParameter(BaseModel):
    """One of a list of choices, in no order."""

    model_config = STRICT
    type: Literal["categorical"] = "categorical"
    choices: Annotated[
        list[Choice],
        Field(min_length=1, max_length=1000, description=f"each at most {CHOICE:,} bytes of compact JSON (413)"),
    ]
    when: Condition | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        seen: set[tuple[bool, Value]] = set()
        for position, choice in enumerate(self.choices):
            if isinstance(choice, int) and not isinstance(choice, bool) and abs(choice) > LARGEST_INTEGER:
                refuse((["choices", position], f"{choice} is beyond 2**53, where integers are no longer exact"))
            key = (isinstance(choice, bool), choice)
            if key in seen:
                refuse((["choices", position], f"{choice!r} stands twice among the choices"))
            seen.add(key)
        return self

    def contains(self, value: Value) -> bool:
        return index_of_choice(self.choices, value) is not None

    def with_choices(self, choices: list[Value]) -> CategoricalParameter:
        return self.model_copy(update={"choices": choices})


NumericParameter = FloatParameter | IntParameter
Parameter = Annotated[FloatParameter | IntParameter | CategoricalParameter, Field(discriminator="type")]


class SearchSpace(RootModel[Annotated[dict[ParameterName, Parameter], Field(min_length=1, max_length=100)]]):
    """1 to 100 named parameters, some of which exist only under a choice of others (`when`)."""

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

    def __getitem__(self, name: str) -> FloatParameter | IntParameter | CategoricalParameter:
        return self.root[name]

    def __len__(self) -> int:
        return len(self.root)

    def names(self) -> Iterator[str]:
        return iter(self.root)

    def items(self) -> Iterator[tuple[str, FloatParameter | IntParameter | CategoricalParameter]]:
        return iter(self.root.items())

    def has_conditions(self) -> bool:
        return any(parameter.when for parameter in self.root.values())


def params_faults(space: SearchSpace, params: Mapping[str, Value]) -> list[tuple[str, str]]:
    """Return (name, rule broken) for each param that this search space would never give."""
    faults = []
    for name, value in params.items():
        if name not in space:
            faults.append((name, f"not a parameter of this study; it has {', '.join(space.names())}"))
        elif not space[name].contains(value):
            faults.append((name, f"{value!r} lies outside {describe(space[name])}"))
    return faults


def describe(parameter: FloatParameter | IntParameter | CategoricalParameter) -> str:
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


def choice(*choices: Value, when: Condition | None = None) -> CategoricalParameter:
    return CategoricalParameter(choices=list(choices), when=when)


def _check_range(low: float, high: float, log: bool, step: float | None) -> None:
    if low > high:
        refuse((["high"], f"high ({high:g}) is below low ({low:g}); a range goes from low to high"))
    if log and low <= 0:
        refuse((["low"], f"low is {low:g}, but a logarithmic range must begin above 0"))
    if step is None:
        return
    if log:
        refuse((["step"], f"step ({step:g}) cannot be combined with log: a logarithmic range has no grid"))
    if step <= 0:
        refuse((["step"], f"step is {step:g}, but must be above 0"))
    # two neighbouring points of a grid may lie a last bit less than a step apart
    if low < high and step > (high - low) * (1 + 1e-9):
        refuse((["step"], f"step ({step:g}) is larger than the range from {low:g} to {high:g}"))


def _on_grid(value: float, low: float, step: float | None) -> bool:
    if step is None:
        return True
    steps = (value - low) / step
    return abs(steps - round(steps)) < 1e-8
