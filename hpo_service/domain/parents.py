"""What has to be chosen so that every given param exists: the conditions of a search space read backwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hpo_service.domain.choices import Value, index_of_choice
from hpo_service.domain.search_space import CategoricalParameter, SearchSpace


@dataclass(frozen=True)
class CannotExist(Exception):
    """param: a given one that exists in no trial together with the other given ones."""

    param: str
    why: str


def choices_of_parents(space: SearchSpace, params: Mapping[str, Value]) -> dict[str, list[Value]]:
    """For each parent that is not given, those of its choices under which every given param exists.

    Any of them may be combined. Raise CannotExist.
    """
    left: dict[str, list[Value]] = {}
    given_for: dict[str, str] = {name: name for name in params}
    for name in reversed(space.in_order_of_conditions()):
        if name not in given_for:
            continue
        for parent, wanted in (space[name].when or {}).items():
            if parent in params:
                if index_of_choice(wanted, params[parent]) is None:
                    raise CannotExist(
                        given_for[name], f"does not exist in this trial: {space[name].when} does not hold"
                    )
                continue
            controlling = space[parent]
            assert isinstance(controlling, CategoricalParameter)
            before = left.get(parent, controlling.choices)
            left[parent] = [choice for choice in before if index_of_choice(wanted, choice) is not None]
            if not left[parent]:
                other = given_for[parent]
                raise CannotExist(
                    given_for[name],
                    f"cannot exist together with {other}: {name} needs {parent} to be one of {wanted}, "
                    f"and for {other} it would have to be one of {before}",
                )
            given_for.setdefault(parent, given_for[name])
    return left
