"""When a study's calls were refused because the database did not take them: no lease of it is charged with that time.

Somebody held the study or a table, or the disk was full for what a call writes, while the server's own beats went on.
Each server knows of its own refusals only: whoever takes a lease back has met the same obstacle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from hpo_service.domain.outage import Outage

TRIED_AGAIN_SECONDS = 2.0  # a heartbeat that was refused comes again within one
MOST_OF_A_STUDY = 16
MOST_STUDIES = 10_000


class _Span(NamedTuple):
    """From the coming of the first call that was refused until the last one's refusal, by a clock that never jumps."""

    began: float
    ended: float


class Refusals:
    def __init__(self, elapsed: Callable[[], float]) -> None:
        self._elapsed = elapsed
        self._spans: dict[str, deque[_Span]] = {}

    def note(self, study: str, waited: float) -> None:
        """A call that has waited for so many seconds was refused."""
        now = self._elapsed()
        spans = self._spans.get(study)
        if spans is None:
            if len(self._spans) >= MOST_STUDIES:
                del self._spans[next(iter(self._spans))]
            spans = self._spans[study] = deque(maxlen=MOST_OF_A_STUDY)
        began = now - waited
        if spans and began - spans[-1].ended <= TRIED_AGAIN_SECONDS:
            began = spans.pop().began
        spans.append(_Span(began, now))

    def of(self, study: str, now: float) -> list[Outage]:
        """now: by the database's clock."""
        if study not in self._spans:
            return []
        elapsed = self._elapsed()
        found = []
        for span in tuple(self._spans[study]):
            goes_on = elapsed - span.ended <= TRIED_AGAIN_SECONDS
            found.append(Outage(now - (elapsed - span.began), now if goes_on else now - (elapsed - span.ended)))
        return found
