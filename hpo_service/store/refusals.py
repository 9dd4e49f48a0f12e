"""Times when the database did not take a study's calls: they do not count against leases of the study.

Somebody held the study or a table, or the disk was full for what a call writes, while the server's own beats went on.
Each server knows of its own refusals only.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from hpo_service.domain.outage import Outage

TRIED_AGAIN_SECONDS = 2.0  # a heartbeat that was refused is repeated sooner than this
MOST_OF_A_STUDY = 16
MOST_STUDIES = 10_000


@dataclass
class _Span:
    """From the arrival of the first refused call until the refusal of the last, by a clock that never jumps.

    goes_on: no trial of the study was written since.
    """

    began: float
    ended: float
    goes_on: bool = True


class Refusals:
    """Of all studies of a server; its methods may be called in any thread."""

    def __init__(self, elapsed: Callable[[], float]) -> None:
        self._elapsed = elapsed
        self._spans: dict[str, deque[_Span]] = {}
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._spans)

    def note(self, study: str, waited: float) -> None:
        """A call that has waited for so many seconds was refused."""
        with self._lock:
            now = self._elapsed()
            spans = self._spans.get(study)
            if spans is None:
                if len(self._spans) >= MOST_STUDIES:
                    del self._spans[next(iter(self._spans))]
                spans = self._spans[study] = deque(maxlen=MOST_OF_A_STUDY)
            last = spans[-1] if spans else None
            if last is not None and last.goes_on and now - waited - last.ended <= TRIED_AGAIN_SECONDS:
                last.began, last.ended = min(last.began, now - waited), now
            else:
                spans.append(_Span(now - waited, now))

    def end(self, study: str) -> None:
        """The database has taken a trial of the study."""
        with self._lock:
            if study in self._spans:
                self._spans[study][-1].goes_on = False

    def of(self, study: str, now: float) -> list[Outage]:
        """The spans, the last one until now while a repeated call may be on its way. now: by the database's clock."""
        with self._lock:
            elapsed = self._elapsed()
            found = []
            for span in self._spans.get(study, ()):
                goes_on = span.goes_on and elapsed - span.ended <= TRIED_AGAIN_SECONDS
                found.append(Outage(now - (elapsed - span.began), now if goes_on else now - (elapsed - span.ended)))
            return found
