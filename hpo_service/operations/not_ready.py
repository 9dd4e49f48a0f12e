"""What a call raises that needs something to be computed first, outside of its transaction.

The call is rolled back, what it lacks is made ready while other calls go on, and it runs once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import structlog

from hpo_service.domain.errors import DrawFailed
from hpo_service.domain.search_space import Params
from hpo_service.domain.study import Study
from hpo_service.store.write_call import Work
from hpo_service.tuning.drawing import DrawnParams

log = structlog.get_logger()


class Wanted(NamedTuple):
    """A draw: of which trial, within which round's ranges, with which params given."""

    number: int
    round: int
    fixed: Params


class Ready(NamedTuple):
    """drawn: None where the search space is exhausted."""

    wanted: Wanted
    drawn: DrawnParams | None


Draws = Mapping[int, Ready]  # by the trial's number


@dataclass
class NotReady(Exception):
    """The call needs these draws, which take long; or, without any, the study's history in its tuner."""

    study: Study
    wanted: tuple[Wanted, ...] = ()


@dataclass
class SplitTellAndAsk(Exception):
    """A tell with an ask has to be written in two calls, since the draw takes long or has failed.

    joined: the answer to both, from the two; the second is None where asking has failed.
    """

    tell: Work
    ask: Work
    joined: Callable[[Any, Any], Any]


def draw_failed(study: Study, number: int, error: Exception) -> DrawFailed:
    """The error for the caller; its traceback goes into the log."""
    sampler = study.spec.sampler.name
    log.error("a draw failed", study=study.name, number=number, sampler=sampler, exc_info=error)
    detail = f"the sampler {sampler} failed to draw trial {number} of study {study.name!r}: {error!r}"[:500]
    return DrawFailed(f"{detail}; nothing was given out")
