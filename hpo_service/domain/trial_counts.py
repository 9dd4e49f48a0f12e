"""How many trials of a study are in which state."""

from __future__ import annotations

from dataclasses import dataclass

from hpo_service.domain.fast_replace import fast_replace


@dataclass(frozen=True)
class TrialCounts:
    """Trials by state, without replicates. WAITING ones are queued (never given out) or retries (given out before)."""

    queued: int = 0
    retries: int = 0
    running: int = 0
    complete: int = 0
    pruned: int = 0
    fail: int = 0

    def moved(self, before: str | None, after: str | None) -> TrialCounts:
        """The counts after one trial moved from one of these fields to another; None: it is new, or is gone."""
        changes = {}
        if before is not None:
            changes[before] = getattr(self, before) - 1
        if after is not None:
            changes[after] = changes.get(after, getattr(self, after)) + 1
        return fast_replace(self, **changes)

    @property
    def came_through(self) -> int:
        """Trials that show that training works, imported ones among them."""
        return self.complete + self.pruned

    @property
    def unfinished_business(self) -> int:
        """Trials that may still bring a result without a new one being given out."""
        return self.running + self.retries
