"""Asks for trials: tried in a transaction; while there are none and the caller waits, tried again when woken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from hpo_service.domain import labels
from hpo_service.domain.errors import DrawFailed, Fault, Invalid, NotFound, StudyHeld, StudyStateConflict
from hpo_service.domain.json_types import Json
from hpo_service.domain.study import Study
from hpo_service.domain.trial import TrialState
from hpo_service.operations.calls import Ask, NextAsk
from hpo_service.operations.change_poller import FEW_TO_ASK
from hpo_service.operations.service import Service
from hpo_service.operations.study_call import CallerLeft, StudyCall, never
from hpo_service.operations.study_work import StudyWork
from hpo_service.operations.waiting import AnyStudy, Waiter
from hpo_service.reading.resources import (
    granted_test,
    granted_trial,
    with_objectives,
    without_objectives,
)
from hpo_service.store.record import Record
from hpo_service.store.study_lock import ask_call
from hpo_service.store.transaction import Transaction

CALLER_LOOKED_AT_SECONDS = 1.0  # how often a waiting ask checks that its caller is still there


class AskResult(NamedTuple):
    """What one try to get trials has found. final: waiting would change nothing."""

    answer: Json
    final: bool


def ask_study(service: Service, name: str, ask: Ask) -> StudyCall:
    """Ask one study for trials of any objective."""
    attempt = partial(ask_in_transaction, service, name, ask)
    began = time.monotonic()

    def finish(caller_left: CallerLeft, found: AskResult) -> Json | Coroutine[Any, Any, Json]:
        may_wait = not found.final and ask.wait_seconds > 0 and not service.is_shutting_down
        if not may_wait and service.knows(ask.worker_id):
            return found.answer
        # Listed as a waiter right after the commit, before any later change is announced: none is missed.
        waiting = _Waiting(service, ask, name, began, caller_left)
        return waiting.until_found(found, lambda: service.write(attempt, [name]))

    return StudyCall(name, attempt, ask.request_id, finish)


async def ask_any(
    service: Service, ask: Ask, caller_left: CallerLeft = never, only: Collection[str] | None = None
) -> Json:
    """Ask all studies, or those of `only`, for trials of the kinds of objective that this worker can train."""
    awaited = AnyStudy.of(ask.objectives, only, ask.labels)
    began = time.monotonic()

    def asked_before(record: Record) -> tuple[Any, bool]:
        service.record_worker_seen(ask.worker_id, record.now, ask.labels)
        return _answered_before(record, ask.request_id), record.workers.is_draining(ask.worker_id)

    async def attempt() -> AskResult:
        remembered, draining = await asyncio.to_thread(service.database.read, asked_before)
        if remembered is not None:
            return _remembered(remembered, only)
        if draining:
            return AskResult({"trials": [], "drain": True}, final=True)
        draw_failed: DrawFailed | None = None
        async for name in _to_ask(service, awaited):
            if name in service.database.held_studies:
                continue
            try:
                found = await service.write(partial(_ask_one_of_any, service, name, ask, only), [name])
            except (StudyHeld, NotFound):  # locked, or deleted since: the next study may have something
                continue
            except DrawFailed as error:
                draw_failed = draw_failed or error
                continue
            if found.final:
                return found
        if draw_failed is not None and time.monotonic() >= began + ask.wait_seconds:
            raise draw_failed  # nobody else had anything for as long as the caller waits
        return AskResult({"trials": []}, final=False)

    waiting = _Waiting(service, ask, awaited, began, caller_left)
    return await waiting.until_found(None, attempt)


class _Waiting:
    """An ask that is listed among the waiters while it tries and waits, so that it misses no change."""

    def __init__(
        self, service: Service, ask: Ask, awaited: str | AnyStudy, began: float, caller_left: CallerLeft
    ) -> None:
        self._service, self._ask, self._caller_left = service, ask, caller_left
        self._deadline = began + ask.wait_seconds
        self._entered = ExitStack()
        self._waiter: Waiter = self._entered.enter_context(service.asks.entered(awaited, ask.worker_id, ask.request_id))

    async def until_found(self, found: AskResult | None, attempt: Callable[[], Awaitable[AskResult]]) -> Json:
        """Try again after each wake-up, and once more when the time is over.

        found: by a try just before.
        """
        with self._entered:
            while True:
                if found is None:
                    self._waiter.clear_wakeup()
                    found = await attempt()
                await self._service.save_new_worker(self._ask.worker_id)
                if found.final or self._deadline <= time.monotonic() or self._service.is_shutting_down:
                    break
                # A caller that has left while waiting must not be given a trial: nobody would train it.
                if await self._has_left_while_waiting():
                    break
                found = None
            self._waiter.was_served = bool(found.answer["trials"])
        return found.answer

    async def _has_left_while_waiting(self) -> bool:
        """Wait for a wake-up or the end of the time. Return whether the caller has left, or has lost its key."""
        self._service.change_poller.begin()
        self._service.long_polls += 1
        try:
            while not self._waiter.is_awake and (left := self._deadline - time.monotonic()) > 0:
                await self._waiter.wait(min(left, CALLER_LOOKED_AT_SECONDS))
                if await self._caller_left():
                    return True
            return await self._caller_left()
        finally:
            self._service.long_polls -= 1


async def _to_ask(service: Service, awaited: AnyStudy) -> AsyncIterator[str]:
    """Studies that may have something to give, fewest running first: a few, and more as long as these have nothing."""
    tried: set[str] = set()
    few = FEW_TO_ASK
    while True:
        running = await service.studies_to_ask(awaited, few)
        while untried := [name for name in running if name not in tried]:
            name = min(untried, key=running.__getitem__)
            running[name] += 1  # the dict is shared: asks at the same time go to other studies
            tried.add(name)
            yield name
        if len(running) < few:
            return
        few *= 16


def ask_in_transaction(service: Service, name: str, ask: NextAsk, transaction: Transaction) -> AskResult:
    """Ask one study for trials, inside a transaction."""
    study = transaction.study(name)
    remembered = transaction.answer(ask_call(study.id), ask.request_id)
    if remembered is not None:
        return AskResult(with_objectives(remembered, [study]), final=True)
    if isinstance(ask, Ask):
        service.record_worker_seen(ask.worker_id, transaction.now, ask.labels)
        _check_labels(study, ask)
    else:  # comes with the tell of a trial of this study, which its worker got since its labels fit
        service.record_worker_seen(ask.worker_id, transaction.now)
    return give_and_remember(service.work_on(transaction, study), ask)


def _check_labels(study: Study, ask: Ask) -> None:
    """Raise StudyStateConflict."""
    if not labels.fit(ask.labels, study.spec.requires):
        raise StudyStateConflict(
            f"study {study.name!r} requires {labels.said(study.spec.requires)} of its workers, and this ask's labels "
            f"are {labels.said(ask.labels)}"
        )


def give_and_remember(work: StudyWork, ask: NextAsk) -> AskResult:
    """Give out trials, save the study, and store the answer under the request_id."""
    transaction = work.transaction
    draining = transaction.is_draining(ask.worker_id)
    given = [] if draining else work.give(ask.count, ask.worker_id)
    study = work.update_and_save()
    answer: Json = {
        "trials": [granted_trial(study, trial) for trial in given],
        "study_state": study.state,
    }
    if draining:
        answer["drain"] = True
    if given:
        transaction.remember_answer(study, ask_call(study.id), ask.request_id, without_objectives(answer))
    return AskResult(answer, final=bool(given) or draining or not study.state.waits or study.sealed)


def _ask_one_of_any(
    service: Service, name: str, ask: Ask, only: Collection[str] | None, transaction: Transaction
) -> AskResult:
    nothing = AskResult({"trials": []}, final=False)
    remembered = _answered_before(transaction, ask.request_id)
    if remembered is not None:
        return _remembered(remembered, only)
    study = transaction.find_study(name)
    if study is None or not labels.fit(ask.labels, study.spec.requires):
        return nothing
    service.record_worker_seen(ask.worker_id, transaction.now, ask.labels)
    work = service.work_on(transaction, study)
    given = [granted_trial(study, trial) for trial in work.give(ask.count, ask.worker_id)]
    if not given and study.sealed:
        given = _give_test(work, ask)
    study = work.update_and_save()
    if not given:
        return nothing
    answer = {"trials": given}
    transaction.remember_answer(study, "ask", ask.request_id, without_objectives(answer))
    return AskResult(answer, final=True)


def _answered_before(record: Record | Transaction, request_id: str) -> Json | None:
    """What an ask that named no study was answered, unless the study of its trials was deleted meanwhile."""
    answer = record.answer("ask", request_id)
    study = None if answer is None else record.study_answered("ask", request_id)
    return None if answer is None or study is None else with_objectives(answer, [study])


def may_see(only: Collection[str] | None, study: str) -> bool:
    return only is None or study in only


def _remembered(answer: Json, only: Collection[str] | None) -> AskResult:
    """The answer once more, unless it gave out trials of a study that this caller may not see."""
    if not all(may_see(only, trial["study"]) for trial in answer["trials"]):
        raise Invalid([Fault("/request_id", "another caller has used it; draw a new one for each ask")])
    return AskResult(answer, final=True)


def _give_test(work: StudyWork, ask: Ask) -> list[Json]:
    if ask.objectives is not None and work.study.spec.kind not in ask.objectives:
        return []
    test = work.transaction.sql().test(work.study)
    if test is None or test.lifecycle.state is not TrialState.WAITING:
        return []
    lifecycle = test.lifecycle.start_attempt(work.transaction.now, work.study.spec.lease_seconds)
    given = work.change_test(test, lifecycle, worker_id=ask.worker_id)
    return [granted_test(work.study, given, work.transaction.trial(work.study, given.number))]
