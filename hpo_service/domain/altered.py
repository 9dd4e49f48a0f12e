"""A frozen value with some of its fields changed: what every call does a dozen times."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def altered(value: T, **changes: object) -> T:
    """Return a copy of a frozen dataclass with these fields changed; raise TypeError for a field it does not have.

    `dataclasses.replace` runs the constructor, which sets every field through `object.__setattr__`: ten times as long.
    For classes whose constructor checks nothing.
    """
    copy = object.__new__(type(value))
    fields = copy.__dict__
    fields.update(value.__dict__)
    known = len(fields)
    fields.update(changes)
    if len(fields) != known:
        raise TypeError(f"{type(value).__name__} has no field {', '.join(changes.keys() - value.__dict__.keys())}")
    return copy
