"""A search space as samplers see it: each parameter an axis, from a position in [0, 1) to a value and back.

Values come out exact: on the grid of `step`, integers as int, choices as the very JSON value of the search space.
Choices are numbered by the list first given, so that a dropped choice leaves the numbers of the others as they were.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, Protocol

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hpo_service.domain.choices import identity
from hpo_service.domain.search_space import (
    AnyParameter,
    CategoricalParameter,
    IntParameter,
    Params,
    SearchSpace,
    Value,
)
from hpo_service.domain.steps import grid_index, grid_size


class Axis(Protocol):
    """One parameter's range.

    size   how many values it has; None where it is continuous
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int | None: ...

    def at(self, position: float) -> Value:
        """The value at a position in [0, 1): what uniform random search draws."""

    def point(self, k: int) -> Value:
        """The k-th value from below, or from left; k is cut to what there is."""

    def index_of(self, value: Value) -> int | None:
        """Which point this value is; None when it is none."""

    def nearest(self, number: Any) -> Value:
        """The value of the range that a sampler means by this number."""

    def number_of(self, value: Value) -> float | None:
        """The number a sampler knows this value by; None when it lies outside the range."""

    def distribution(self) -> BaseDistribution:
        """The range in Optuna's words."""


@dataclass(frozen=True)
class Continuous:
    name: str
    low: float
    high: float
    log: bool

    @property
    def size(self) -> int | None:
        return 1 if self.low == self.high else None

    @cached_property
    def _bounds(self) -> tuple[float, float]:
        return (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)

    def at(self, position: float) -> float:
        low, high = self._bounds
        point = low + position * (high - low)
        return self.nearest(math.exp(point) if self.log else point)

    def point(self, k: int) -> float:
        return self.low

    def index_of(self, value: Value) -> int | None:
        return 0 if self.size == 1 and self.number_of(value) is not None else None

    def nearest(self, number: Any) -> float:
        return min(max(float(number), self.low), self.high)

    def number_of(self, value: Value) -> float | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if self.low <= value <= self.high else None

    def distribution(self) -> BaseDistribution:
        return FloatDistribution(self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Stepped:
    """A grid of real numbers: low + k × step, in decimal arithmetic, as it is written."""

    name: str
    low: float
    high: float
    step: float

    @cached_property
    def _decimals(self) -> tuple[Decimal, Decimal]:
        return Decimal(repr(self.low)), Decimal(repr(self.step))

    @cached_property
    def size(self) -> int:
        return grid_size(self.low, self.high, self.step)

    def at(self, position: float) -> float:
        return self.point(int(position * self.size))

    def nearest(self, number: Any) -> float:
        return self.point(round(number))

    def point(self, k: int) -> float:
        low, step = self._decimals
        return min(float(low + min(max(k, 0), self.size - 1) * step), self.high)

    def index_of(self, value: Value) -> int | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return None
        return grid_index(self.low, self.step, value)

    def number_of(self, value: Value) -> float | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return round((value - self.low) / self.step) if self.low <= value <= self.high else None

    def distribution(self) -> BaseDistribution:
        # Counted in steps: exact, where Optuna would divide decimals and might lose the last point.
        return IntDistribution(0, self.size - 1)


@dataclass(frozen=True)
class Whole:
    """Integers: low + k × step, or uniform in the logarithm."""

    name: str
    low: int
    high: int
    step: int
    log: bool

    @cached_property
    def size(self) -> int:
        return (self.high - self.low) // self.step + 1

    @cached_property
    def _bounds(self) -> tuple[float, float]:
        return math.log(self.low - 0.5), math.log(self.high + 0.5)

    def at(self, position: float) -> int:
        if not self.log:
            return self.point(int(position * self.size))
        low, high = self._bounds
        return self.nearest(math.exp(low + position * (high - low)))

    def nearest(self, number: Any) -> int:
        return self.point(round((float(number) - self.low) / self.step))

    def point(self, k: int) -> int:
        return self.low + min(max(k, 0), self.size - 1) * self.step

    def index_of(self, value: Value) -> int | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return None
        k = round((value - self.low) / self.step)
        return k if self.low + k * self.step == value else None

    def number_of(self, value: Value) -> float | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(self.nearest(value)) if self.low <= value <= self.high else None

    def distribution(self) -> BaseDistribution:
        return IntDistribution(self.low, self.point(self.size - 1), log=self.log, step=self.step)


class ChoicePlaces:
    """The places of choices in a list, found by hash: true is not 1, but 1.0 is, as `same_choice` says."""

    def __init__(self, choices: Iterable[Value]) -> None:
        self._places: dict[Hashable, int] = {}
        for choice in choices:
            self.add(choice)

    def add(self, choice: Value) -> int:
        """Put it at the end, unless it is there."""
        return self._places.setdefault(identity(choice), len(self._places))

    def of(self, value: Value) -> int | None:
        return self._places.get(identity(value))


@dataclass(frozen=True)
class _Listed:
    name: str
    values: Sequence[Value]

    @cached_property
    def _places(self) -> ChoicePlaces:
        return ChoicePlaces(self.values)

    @property
    def size(self) -> int:
        return len(self.values)

    def at(self, position: float) -> Value:
        return self.point(int(position * len(self.values)))

    def point(self, k: int) -> Value:
        return self.values[min(max(k, 0), len(self.values) - 1)]

    def index_of(self, value: Value) -> int | None:
        return self._places.of(value)


@dataclass(frozen=True)
class Choices(_Listed):
    """Choices under their numbers in the list first given."""

    numbers: tuple[int, ...]

    @cached_property
    def _place_of_number(self) -> dict[int, int]:
        return {number: place for place, number in enumerate(self.numbers)}

    def place_of(self, number: int) -> int:
        """Where the choice with this number stands; raise KeyError where there is none."""
        return self._place_of_number[number]

    def nearest(self, number: Any) -> Value:
        return self.values[self.place_of(int(number))]

    def number_of(self, value: Value) -> float | None:
        index = self._places.of(value)
        return None if index is None else self.numbers[index]

    def distribution(self) -> BaseDistribution:
        # Numbers instead of the values themselves: Optuna takes true for 1.
        return CategoricalDistribution(self.numbers)


@dataclass(frozen=True)
class OrderedChoices(_Listed):
    """Choices that are places on an axis, evenly apart: 16, 32, 64, 128 as on a logarithmic one."""

    def nearest(self, number: Any) -> Value:
        return self.point(round(number))

    def number_of(self, value: Value) -> float | None:
        return self._places.of(value)

    def distribution(self) -> BaseDistribution:
        return IntDistribution(0, self.size - 1)


def axis(name: str, parameter: AnyParameter, first: AnyParameter) -> Axis:
    """first: the parameter as the study was created with."""
    if isinstance(parameter, CategoricalParameter) and parameter.ordered:
        return OrderedChoices(name, parameter.choices)
    if isinstance(parameter, CategoricalParameter):
        given = ChoicePlaces(first.choices if isinstance(first, CategoricalParameter) else ())
        return Choices(name, parameter.choices, tuple(given.add(choice) for choice in parameter.choices))
    if isinstance(parameter, IntParameter):
        return Whole(name, parameter.low, parameter.high, parameter.step or 1, parameter.log)
    if parameter.step is not None:
        return Stepped(name, parameter.low, parameter.high, parameter.step)
    return Continuous(name, parameter.low, parameter.high, parameter.log)


class Axes:
    """The axes of one round's search space.

    A parameter that the round has dropped, since no choice it depends on is left, is still there for a trial that an
    enqueue gives such a choice: with the range first given.
    """

    def __init__(self, first: SearchSpace, space: SearchSpace, shared: Collection[str] | None = None) -> None:
        """shared: the parameters that every trial has, with define_by_run; None: all those without `when`."""
        self._conditions = first
        self._by_name = {
            name: axis(name, space[name] if name in space else first[name], first[name]) for name in first.names()
        }
        self.order = first.in_order_of_conditions()
        self._conditional = first.has_conditions()
        self.names = list(first.names())
        self.round_names = [name for name in self.names if name in space]
        # What every trial of the round has: the axes of a joint model.
        self.always = [
            self._by_name[name]
            for name in self.round_names
            if not first[name].when and (shared is None or name in shared)
        ]

    def __getitem__(self, name: str) -> Axis:
        return self._by_name[name]

    def exists(self, name: str, params: Mapping[str, Value]) -> bool:
        return self._conditions.exists(name, params)

    def asked_of(self, name: str) -> Mapping[str, Sequence[Value]]:
        """The parameters that decide whether this one exists, each with the choices under which it does."""
        return self._conditions[name].when or {}

    def complete(self, fixed: Params, value_of: Callable[[Axis], Value]) -> Params:
        """A trial's params, in the order of the search space: fixed ones as they are, others as value_of says."""
        params: Params = {}
        for name in self.order:
            if self._conditional and not self._conditions.exists(name, params):
                continue
            params[name] = fixed[name] if name in fixed else value_of(self._by_name[name])
        return {name: params[name] for name in self.names if name in params}

    def are_complete(self, fixed: Params) -> bool:
        """Whether nothing is left to draw."""
        return all(name in fixed or not self.exists(name, fixed) for name in self.names)

    @cached_property
    def digest(self) -> str:
        """A hash of these ranges, by which a sampler knows what it has kept for them."""
        ranges = [(name, repr(self._by_name[name])) for name in self.round_names]
        return hashlib.blake2b(repr(ranges).encode(), digest_size=6).hexdigest()

    @cached_property
    def variable(self) -> list[Axis]:
        """The axes of every trial that have more than one value."""
        return [axis for axis in self.always if axis.size != 1]

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {name: self._by_name[name].distribution() for name in self.round_names}

    def numbers_of(self, params: Mapping[str, Value]) -> dict[str, Any] | None:
        """A past trial restated in this round's ranges; None when one of its params lies outside them."""
        numbers: dict[str, Any] = {}
        for name in self.round_names:
            if name not in params:
                continue
            number = self._by_name[name].number_of(params[name])
            if number is None:
                return None
            numbers[name] = number
        return numbers
