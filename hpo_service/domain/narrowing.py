"""Coarse to fine: from the best trials so far to the ranges of the next round.

The range of a numeric parameter becomes what the best trials span, widened by a tenth of that span on each side, in
log space where the parameter is logarithmic. With `expand`, a side at whose edge the best trials crowd moves outwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import BaseModel

from hpo_service.domain.choices import Value, index_of_choice
from hpo_service.domain.refusal import STRICT
from hpo_service.domain.search_space import (
    LARGEST_INTEGER,
    AnyParameter,
    CategoricalParameter,
    IntParameter,
    NumericParameter,
    Params,
    SearchSpace,
)
from hpo_service.domain.steps import grid_point

WIDENED = 0.1  # of the span, on each side
AT_THE_EDGE = 0.1  # of the range
CROWD = 1 / 3  # of the kept trials
EXPANDED = 10.0  # the most that a side of a logarithmic range moves in a round

Bounds = Callable[[str], tuple[float | None, float | None]]


class RangeChange(BaseModel):
    """What a round did to one side of a range, or to a list of choices."""

    model_config = STRICT
    parameter: str
    side: Literal["low", "high", "choices"]
    kind: Literal["narrowed", "expanded", "kept", "dropped"]
    before: Value | list[Value]
    after: Value | list[Value]


def how_many_to_keep(keep: float, complete: int) -> int:
    """ceil(keep × complete), in exact arithmetic: 0.2 × 15 is 3, not 4."""
    return max(math.ceil(round(keep * complete, 9)), min(complete, 1))


def narrow(
    first: SearchSpace,
    current: SearchSpace,
    kept: Sequence[Params],
    *,
    expand: bool,
    bounds: Bounds = lambda name: (None, None),
) -> tuple[SearchSpace, list[RangeChange]]:
    """Return the next round's search space and what changed; without a kept trial nothing does.

    first: the ranges first given; current: this round's; kept: the params of the best trials; bounds: what the
    objective can take, by name.
    """
    if not kept:
        return current, []
    ranges: dict[str, AnyParameter] = {}
    changes: list[RangeChange] = []
    for name, given in first.items():
        now = current[name] if name in current else given  # noqa: SIM401 - not a dict
        values = [params[name] for params in kept if name in params]
        if not values:
            ranges[name] = now
        elif isinstance(given, CategoricalParameter):
            assert isinstance(now, CategoricalParameter)
            ranges[name] = _used_choices(name, given, now, values, changes)
        else:
            assert not isinstance(now, CategoricalParameter)
            numbers = [float(value) for value in values if isinstance(value, int | float)]
            ranges[name] = _spanned(name, given, now, numbers, expand, bounds(name), changes)
        # An earlier round may have shortened the condition to choices that have come back since.
        ranges[name] = ranges[name].model_copy(update={"when": given.when})
    return _without_dead_branches(ranges), changes


def _used_choices(
    name: str,
    given: CategoricalParameter,
    now: CategoricalParameter,
    values: Sequence[Value],
    changes: list[RangeChange],
) -> CategoricalParameter:
    used = [choice for choice in given.choices if index_of_choice(values, choice) is not None]
    if used != now.choices:
        kind: Literal["dropped", "kept"] = "dropped" if len(used) < len(now.choices) else "kept"
        changes.append(RangeChange(parameter=name, side="choices", kind=kind, before=list(now.choices), after=used))
    return given.model_copy(update={"choices": used})


def _spanned(
    name: str,
    given: NumericParameter,
    now: NumericParameter,
    values: Sequence[float],
    expand: bool,
    bounds: tuple[float | None, float | None],
    changes: list[RangeChange],
) -> NumericParameter:
    scale = _Scale(now.log)
    low, high = scale.into(now.low), scale.into(now.high)
    points = [scale.into(value) for value in values]
    margin = WIDENED * (max(points) - min(points))
    # What an earlier round has expanded to stays allowed.
    floor, ceiling = min(given.low, now.low), max(given.high, now.high)
    new_low = max(scale.back(min(points) - margin, exact=min(values)), floor)
    new_high = min(scale.back(max(points) + margin, exact=max(values)), ceiling)
    if expand and high > low:
        edge = AT_THE_EDGE * (high - low)
        if _crowd(sum(point <= low + edge for point in points), len(points)):
            new_low = scale.outwards(now.low, now.high - now.low, -1, bounds[0])
        if _crowd(sum(point >= high - edge for point in points), len(points)):
            new_high = scale.outwards(now.high, now.high - now.low, +1, bounds[1])
    if not math.isfinite(new_high - new_low):
        return now  # wider than a double can hold
    new_low, new_high = _on_the_grid(given, new_low, new_high)
    result = now.with_range(new_low, new_high)
    for side, before, after, outwards in (
        ("low", now.low, result.low, result.low < now.low),
        ("high", now.high, result.high, result.high > now.high),
    ):
        if before != after:
            changes.append(
                RangeChange(
                    parameter=name,
                    side="low" if side == "low" else "high",
                    kind="expanded" if outwards else "narrowed",
                    before=before,
                    after=after,
                )
            )
    return result


def _crowd(at_the_edge: int, kept: int) -> bool:
    return at_the_edge > 0 and at_the_edge >= CROWD * kept


class _Scale:
    """The axis on which a range is measured: the value itself, or its logarithm."""

    def __init__(self, log: bool) -> None:
        self.log = log

    def into(self, value: float) -> float:
        return math.log(value) if self.log else value

    def back(self, point: float, exact: float) -> float:
        """Back from the axis; `exact` where the point is that value, which exp(log(x)) may miss by a bit."""
        if point == self.into(exact):
            return exact
        if not self.log:
            return point
        try:
            return math.exp(point)
        except OverflowError:
            return math.inf  # the end of the range, which is a double, comes before

    def outwards(self, edge: float, width: float, sign: int, bound: float | None) -> float:
        moved = edge * EXPANDED**sign if self.log else edge + sign * width
        if not math.isfinite(moved) or (self.log and moved <= 0):
            return edge
        if bound is None:
            return moved
        return max(moved, bound) if sign < 0 else min(moved, bound)


def _on_the_grid(given: NumericParameter, low: float, high: float) -> tuple[float, float]:
    """The grid points inside [low, high]: integers, or the steps from the low first given."""
    step: float | None = given.step
    if isinstance(given, IntParameter):
        step = step or 1
        origin = float(given.low)
        low = max(low, 1.0 if given.log else -LARGEST_INTEGER)
        high = min(high, LARGEST_INTEGER)
    elif step is not None:
        origin = given.low
    else:
        return low, high
    if isinstance(given, IntParameter):
        # In whole numbers: billionths of a step, as below, may be many integers.
        first = -((given.low - math.ceil(round(low, 9))) // int(step))
        last = (math.floor(round(high, 9)) - given.low) // int(step)
    else:
        first = math.ceil(round((low - origin) / step, 9))
        last = math.floor(round((high - origin) / step, 9))
    if last < first:  # no grid point inside: the nearest one
        first = last = round(((low + high) / 2 - origin) / step)
        return grid_point(origin, step, first), grid_point(origin, step, last)
    # An upper end that is off its grid by a bit stays: the point as people write it would lie beyond.
    return min(grid_point(origin, step, first), high), min(grid_point(origin, step, last), high)


def _without_dead_branches(ranges: dict[str, AnyParameter]) -> SearchSpace:
    """Drop the choices that are gone from the conditions, and the parameters that can no longer exist."""
    while True:
        alive = {}
        for name, parameter in ranges.items():
            when = {}
            for parent, wanted in (parameter.when or {}).items():
                controlling = ranges.get(parent)
                assert controlling is None or isinstance(controlling, CategoricalParameter)
                when[parent] = [] if controlling is None else [c for c in wanted if controlling.contains(c)]
            if all(when.values()):
                alive[name] = parameter.model_copy(update={"when": when or None})
        if len(alive) == len(ranges):
            return SearchSpace(alive)
        ranges = alive
