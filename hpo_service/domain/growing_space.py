"""Define by run: a search space that grows by what trials suggest, and the draws that wait until they are asked for.

A trial is drawn as a whole when it is given out, in all parameters that its study knows by then, as good as with the
same space declared. What is drawn stands beside the trial, in its system_attrs, and goes into its params name by name:

expected   the parameters that all finished trials have, drawn jointly: it counts as one that has them while it runs;
           and what an enqueue has given
possible   those that only some have, each drawn by itself
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from hpo_service.domain.choices import Value, identity
from hpo_service.domain.errors import Fault, Invalid
from hpo_service.domain.json_pointer import pointer
from hpo_service.domain.search_space import (
    MOST_PARAMETERS,
    CategoricalParameter,
    IntParameter,
    Parameter,
    Params,
    SearchSpace,
    describe,
)
from hpo_service.domain.sizes import SEARCH_SPACE, check_size

EXPECTED, POSSIBLE = "expected_params", "possible_params"


def deferred_draws(params: Params, expected: Collection[str]) -> dict[str, Any]:
    """The system_attrs in which drawn params wait for their names to be asked for."""
    return {
        EXPECTED: {name: value for name, value in params.items() if name in expected},
        POSSIBLE: {name: value for name, value in params.items() if name not in expected},
    }


def without_draws(system_attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The system_attrs without the draws: of a trial that suggests nothing more."""
    return {name: kept for name, kept in system_attrs.items() if name not in (EXPECTED, POSSIBLE)}


def drawn_before(system_attrs: Mapping[str, Any], name: str) -> tuple[Value] | None:
    """The value drawn for this name, in a tuple since null is a value; None where there is none."""
    for some in (system_attrs.get(EXPECTED, {}), system_attrs.get(POSSIBLE, {})):
        if name in some:
            return (some[name],)
    return None


def same_definition(known: Parameter, given: Parameter) -> bool:
    """Whether they have the same values in the same order. `ordered` may be left out; `when` is no part of it."""
    return _definition(known) == _definition(given) and not (_is_ordered(given) and not _is_ordered(known))


def _definition(parameter: Parameter) -> tuple[object, ...]:
    if isinstance(parameter, CategoricalParameter):
        return (parameter.type, *map(identity, parameter.choices))
    step = None if isinstance(parameter, IntParameter) and parameter.step == 1 else parameter.step
    return parameter.type, parameter.low, parameter.high, parameter.log, step


def _is_ordered(parameter: Parameter) -> bool:
    return isinstance(parameter, CategoricalParameter) and parameter.ordered


def grown(space: SearchSpace, asked: Mapping[str, Parameter]) -> SearchSpace:
    """The search space with the names that are new to it; itself where none is.

    Raise Invalid for one that is defined otherwise there, and TooLarge.
    """
    check_definitions(space, asked)
    new = {name: parameter for name, parameter in asked.items() if name not in space}
    if not new:
        return space
    if len(space) + len(new) > MOST_PARAMETERS:
        detail = f"the study would have {len(space) + len(new)} parameters; {MOST_PARAMETERS} are kept at most"
        raise Invalid([Fault("/parameters", detail)])
    larger = SearchSpace({**space.root, **new})
    check_size("the search space as it would be", larger.model_dump(mode="json"), SEARCH_SPACE)
    return larger


def check_definitions(space: SearchSpace, asked: Mapping[str, Parameter]) -> None:
    """Raise Invalid, with both definitions, where one differs."""
    faults = [
        Fault(pointer("parameters", name), f"defined here as {_shown(parameter)}, and in the study as {_shown(known)}")
        for name, parameter in asked.items()
        if name in space and not same_definition(known := space[name], parameter)
    ]
    if faults:
        raise Invalid(faults)


def _shown(parameter: Parameter) -> str:
    notes = [word for word in ("log", "ordered") if getattr(parameter, word, False)]
    return " ".join([parameter.type, *notes, describe(parameter)])


def fitting(name: str, parameter: Parameter, value: Value) -> Value:
    """The value as this parameter has it; raise Invalid for one that an enqueue gave before the range was known."""
    if not parameter.contains(value):
        detail = f"the trial was enqueued with {value!r}, which lies outside {describe(parameter)}"
        raise Invalid([Fault(pointer("parameters", name), detail)])
    return parameter.exact(value)
