"""What the write scheduler is given and gives back: a WriteCall, its Outcome, a FinishedBatch of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import structlog

from hpo_service.domain.errors import StudyHeld, Unavailable
from hpo_service.store.engine import in_words_of_the_store
from hpo_service.store.record import StudyChange
from hpo_service.store.transaction import Transaction

Work = Callable[[Transaction], Any]
log = structlog.get_logger()

NO_DRAWS: Mapping[int, Any] = MappingProxyType({})


class Outcome(NamedTuple):
    """changes: studies whose waiting callers are woken."""

    result: Any
    error: BaseException | None
    changes: Sequence[StudyChange] = ()


class Parts(tuple[Work, ...]):
    """Work in parts, each kept or refused by itself, in one commit. Its result is a list: an Outcome of each."""


class WriteCall(NamedTuple):
    """Work in a transaction that holds these studies.

    done: called with the outcome after the commit, in the event loop, or (done_in_thread) where the batch has run,
    with the write lock held.
    runs_in_loop: the work is short and needs nothing but what is in memory. request_id: of an ask. draws: computed
    before the call, by trial number. since: when it was submitted (time.perf_counter). trace: its tracing context.
    """

    work: Work | Parts
    studies: Sequence[str]
    done: Callable[[Outcome], None]
    done_in_thread: bool = False
    runs_in_loop: bool = False
    request_id: str | None = None
    draws: Mapping[int, Any] = NO_DRAWS
    since: float = 0.0
    trace: object = None


class FinishedBatch(NamedTuple):
    """A batch that was committed, or refused as a whole."""

    calls: Sequence[WriteCall]
    outcomes: Sequence[Outcome]


def give(call: WriteCall, outcome: Outcome) -> None:
    """Call `done`. A fault of one caller's is logged, and keeps no other from its outcome."""
    try:
        call.done(outcome)
    except Exception:
        log.exception("an answer could not be given", studies=list(call.studies))


def is_refused(call: WriteCall, outcome: Outcome) -> bool:
    """Whether the database did not take the call, or a part of it. Subclasses of Unavailable have other causes."""
    if outcome.error is not None:
        return type(outcome.error) in (Unavailable, StudyHeld)
    return isinstance(call.work, Parts) and any(is_refused(call, part) for part in outcome.result if part.error)


def all_failed(calls: Sequence[WriteCall], error: BaseException) -> FinishedBatch:
    return FinishedBatch(calls, [Outcome(None, in_words_of_the_store(error))] * len(calls))


def studies_and_requests(calls: Sequence[WriteCall]) -> tuple[list[str], list[tuple[str, str]]]:
    """The studies of these calls, sorted, and (study, request_id) of each ask among them."""
    requests = [(name, call.request_id) for call in calls if call.request_id for name in call.studies]
    return sorted({name for call in calls for name in call.studies}), requests
