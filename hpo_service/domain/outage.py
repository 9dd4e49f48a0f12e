"""Outages: times in which a server could not take the calls of workers. They count in no lease."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# What is shorter delays a heartbeat, and ends no lease that is renewed in time.
SHORTEST_OUTAGE_SECONDS = 1.0


@dataclass(frozen=True, order=True)
class Outage:
    """From when to when a server could not serve, by the database's clock (seconds since 1970)."""

    began: float
    ended: float

    @property
    def is_felt(self) -> bool:
        """Whether it was long enough for a worker to find the server away, and to wait before it tries again."""
        return self.ended - self.began >= SHORTEST_OUTAGE_SECONDS


def disjoint(outages: Iterable[Outage]) -> tuple[Outage, ...]:
    """The same time as intervals that do not touch, in order."""
    found: list[Outage] = []
    for outage in sorted(outages):
        if found and outage.began <= found[-1].ended:
            found[-1] = Outage(found[-1].began, max(found[-1].ended, outage.ended))
        else:
            found.append(outage)
    return tuple(found)
