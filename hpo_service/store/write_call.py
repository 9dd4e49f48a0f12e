"""What the writer is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from hpo_service.domain.errors import StudyHeld, Unavailable
from hpo_service.store.engine import in_words_of_the_store
from hpo_service.store.record import Change
from hpo_service.store.transaction import Transaction

Work = Callable[[Transaction], Any]
NO_DRAWS: Mapping[int, Any] = MappingProxyType({})


class Outcome(NamedTuple):
    """changes: what somebody may have waited for."""

    result: Any
    error: BaseException | None
    changes: Sequence[Change] = ()


class Parts(tuple[Work, ...]):
    """Work in parts, each kept or refused by itself, in one commit. Its result is a list: an Outcome of each."""


class WriteCall(NamedTuple):
    """Work in a transaction that holds these studies.

    done: takes the outcome after the commit, in the event loop; anywhere: in whatever thread has run it. light: whether
    the work is short enough for the event loop. request_id: of an ask. draws: that it brings along, by the trial's
    number. since: when it came, by time.perf_counter; trace: what it is part of.
    """

    work: Work | Parts
    studies: Sequence[str]
    done: Callable[[Outcome], None]
    anywhere: bool = False
    light: bool = False
    request_id: str | None = None
    draws: Mapping[int, Any] = NO_DRAWS
    since: float = 0.0
    trace: object = None


class Written(NamedTuple):
    """A batch that was committed, or refused as a whole."""

    calls: Sequence[WriteCall]
    outcomes: Sequence[Outcome]


def is_refused(call: WriteCall, outcome: Outcome) -> bool:
    """Whether the database did not take the call, or a part of it: no draw was late, nothing was written meanwhile."""
    if outcome.error is not None:
        return type(outcome.error) in (Unavailable, StudyHeld)
    return isinstance(call.work, Parts) and any(is_refused(call, part) for part in outcome.result if part.error)


def failed(calls: Sequence[WriteCall], error: BaseException) -> Written:
    return Written(calls, [Outcome(None, in_words_of_the_store(error))] * len(calls))


def asked_for(calls: Sequence[WriteCall]) -> tuple[list[str], list[tuple[str, str]]]:
    """The studies of these calls, in order, and who asks which of them."""
    requests = [(name, call.request_id) for call in calls if call.request_id for name in call.studies]
    return sorted({name for call in calls for name in call.studies}), requests
