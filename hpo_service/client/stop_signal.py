"""What `report` answers when an objective should return."""

from __future__ import annotations

from collections.abc import Callable


class StopSignal(int):
    """True, and noted as seen once somebody looks whether it is.

    An objective that looks and returns was ended early; one that never looks has trained to its end, and its result
    counts as any other. Only so can the two be told apart.
    """

    _seen: Callable[[], None]

    def __new__(cls, seen: Callable[[], None]) -> StopSignal:
        signal = super().__new__(cls, True)
        signal._seen = seen
        return signal

    def __bool__(self) -> bool:
        self._seen()
        return True

    def __repr__(self) -> str:
        return "True"
