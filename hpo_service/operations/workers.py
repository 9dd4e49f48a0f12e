"""What workers do: ask for trials, report, keep their lease, tell the result, hand back."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, TypeVar

import sqlalchemy.exc
from pydantic_core import to_json

from hpo_service.domain.errors import DrawFailed, Fault, HpoError, Invalid, NotFound, StudyHeld, TooLarge
from hpo_service.domain.sealed_test import BUILT_IN
from hpo_service.domain.sizes import BATCH_ANSWERS, TELL_METRICS, check_size
from hpo_service.domain.study import Study, StudyState
from hpo_service.domain.trial import Told, Trial, TrialState, pruned_values
from hpo_service.operations.calls import (
    Ask,
    Batch,
    BatchCall,
    BatchHeartbeat,
    BatchRelease,
    BatchReport,
    BatchTell,
    Heartbeat,
    NextAsk,
    Release,
    Reports,
    Result,
    Tell,
)
from hpo_service.operations.not_ready import InTwo
from hpo_service.operations.resources import (
    Json,
    granted_test,
    granted_trial,
    time_text,
    trial_resource,
    with_objectives,
    without_objectives,
    worker_resource,
)
from hpo_service.operations.service import Service
from hpo_service.operations.study_work import StudyWork
from hpo_service.operations.waiting import AnyStudy, Waiter
from hpo_service.store.record import Record
from hpo_service.store.study_lock import ask_call
from hpo_service.store.trial_reports import KeptReport, checked_report
from hpo_service.store.writing_record import WritingRecord

FEW_TO_ASK = 16  # studies

CALLER_LOOKED_AT_SECONDS = 1.0  # so often, while it waits
T = TypeVar("T")
CallerLeft = Callable[[], Awaitable[bool]]


async def _never() -> bool:
    return False


@dataclass(frozen=True)
class Look:
    """What one look for a trial found. final: waiting on would change nothing."""

    answer: Json
    final: bool


# -- ask --------------------------------------------------------------------------------------------------


async def ask_study(service: Service, name: str, ask: Ask, caller_left: CallerLeft = _never) -> Json:
    """Ask one study for trials of any objective."""

    async def look() -> Look:
        return await _write_once(service, ask_work(service, name, ask), [name])

    return await _ask(service, ask, name, look, caller_left)


async def ask_any(
    service: Service, ask: Ask, caller_left: CallerLeft = _never, only: Collection[str] | None = None
) -> Json:
    """Ask whatever study, or whichever of these, has something to give for the kinds that this worker can train."""
    awaited = AnyStudy.of(ask.objectives, only)

    def asked_before(record: Record) -> tuple[Any, bool]:
        service.heard_of(ask.worker_id, record)
        return _answered_before(record, ask.request_id), record.is_draining(ask.worker_id)

    async def look() -> Look:
        remembered, draining = await asyncio.to_thread(service.database.read, asked_before)
        if remembered is not None:
            return _remembered(remembered, only)
        if draining:
            return Look({"trials": [], "drain": True}, final=True)
        async for name in _to_ask(service, awaited):
            if name in service.database.studies_aside:
                continue
            with contextlib.suppress(StudyHeld):  # the next one may have something, too
                found = await _write_once(service, partial(_ask_one_of_any, service, name, ask, only), [name])
                if found.final:
                    return found
        return Look({"trials": []}, final=False)

    return await _ask(service, ask, awaited, look, caller_left)


async def _to_ask(service: Service, awaited: AnyStudy) -> AsyncIterator[str]:
    """Studies that may have something to give, fewest running first: a few, and more as long as these have nothing."""
    tried: set[str] = set()
    few = FEW_TO_ASK
    while True:
        running = await service.studies_to_ask(awaited, few)
        while untried := [name for name in running if name not in tried]:
            name = min(untried, key=running.__getitem__)
            running[name] += 1  # those who look at the same time go to others
            tried.add(name)
            yield name
        if len(running) < few:
            return
        few *= 16


async def _ask(
    service: Service,
    ask: Ask,
    awaited: str | AnyStudy,
    look: Callable[[], Awaitable[Look]],
    caller_left: CallerLeft,
) -> Json:
    """Look, and look again when there is reason to; at the end of the time once more, whatever has happened."""
    deadline = time.monotonic() + ask.wait_seconds
    with service.asks.entered(awaited, ask.worker_id, ask.request_id) as waiter:
        while True:
            waiter.begin_to_look()
            found = await look()
            await service.save_new_worker(ask.worker_id)
            left = deadline - time.monotonic()
            if found.final or left <= 0 or service.leaving:
                break
            service.watch.begin()
            service.long_polls += 1
            try:
                # Who has hung up while waiting shall not be given a trial that nobody trains.
                if await _has_left_while_waiting(waiter, deadline, caller_left):
                    break
            finally:
                service.long_polls -= 1
        waiter.was_served = bool(found.answer["trials"])
    return found.answer


async def _has_left_while_waiting(waiter: Waiter, deadline: float, caller_left: CallerLeft) -> bool:
    """Wait until there is reason to look, or the time is over; a caller who goes, or whose key does, is noticed."""
    while not waiter.is_awake and (left := deadline - time.monotonic()) > 0:
        await waiter.wait(min(left, CALLER_LOOKED_AT_SECONDS))
        if await caller_left():
            return True
    return await caller_left()


async def _write_once(service: Service, work: Callable[[WritingRecord], T], studies: list[str]) -> T:
    """Write; when another server has answered the same request in this moment, read its answer."""
    try:
        return await service.write(work, studies)
    except sqlalchemy.exc.IntegrityError:
        return await service.write(work, studies)


def ask_work(service: Service, name: str, ask: Ask) -> Callable[[WritingRecord], Look]:
    """What a look for a trial does in its transaction."""
    return lambda record: _ask_study(service, record, name, ask)


def _ask_study(service: Service, record: WritingRecord, name: str, ask: NextAsk) -> Look:
    study = record.study(name)
    remembered = record.answer(ask_call(study.id), ask.request_id)
    if remembered is not None:
        return Look(with_objectives(remembered, [study]), final=True)
    service.heard_of(ask.worker_id, record)
    return _give(service.work_on(record, study), ask)


def _give(work: StudyWork, ask: NextAsk) -> Look:
    """Give out what is asked for, and remember it."""
    record = work.record
    draining = record.is_draining(ask.worker_id)
    given = [] if draining else work.give(ask.count, ask.worker_id)
    study = work.settle()
    answer: Json = {
        "trials": [granted_trial(study, trial) for trial in given],
        "study_state": study.state,
    }
    if draining:
        answer["drain"] = True
    if given:
        record.remember_answer(study, ask_call(study.id), ask.request_id, without_objectives(answer))
    return Look(answer, final=bool(given) or draining or not study.state.waits or study.sealed)


def _ask_one_of_any(service: Service, name: str, ask: Ask, only: Collection[str] | None, record: WritingRecord) -> Look:
    nothing = Look({"trials": []}, final=False)
    remembered = _answered_before(record, ask.request_id)
    if remembered is not None:
        return _remembered(remembered, only)
    study = record.find_study(name)
    if study is None:
        return nothing
    service.heard_of(ask.worker_id, record)
    work = service.work_on(record, study)
    given = [granted_trial(study, trial) for trial in work.give(ask.count, ask.worker_id)]
    if not given and study.sealed:
        given = _give_test(work, ask)
    study = work.settle()
    if not given:
        return nothing
    answer = {"trials": given}
    record.remember_answer(study, "ask", ask.request_id, without_objectives(answer))
    return Look(answer, final=True)


def _answered_before(record: Record, request_id: str) -> Json | None:
    """What the first form of ask has answered, unless the study of it was deleted meanwhile."""
    answer = record.answer("ask", request_id)
    study = None if answer is None else record.study_answered("ask", request_id)
    return None if answer is None or study is None else with_objectives(answer, [study])


def _may_see(only: Collection[str] | None, study: str) -> bool:
    return only is None or study in only


def _remembered(answer: Json, only: Collection[str] | None) -> Look:
    """The answer once more, unless it gave out trials of a study that this caller may not see."""
    if not all(_may_see(only, trial["study"]) for trial in answer["trials"]):
        raise Invalid([Fault("/request_id", "another caller has used it; draw a new one for each ask")])
    return Look(answer, final=True)


def _give_test(work: StudyWork, ask: Ask) -> list[Json]:
    if ask.objectives is not None and BUILT_IN not in ask.objectives:
        return []
    test = work.record.test(work.study)
    if test is None or test.holding.state is not TrialState.WAITING:
        return []
    holding = test.holding.give_out(work.record.now, work.study.spec.lease_seconds)
    given = work.change_test(test, holding, worker_id=ask.worker_id)
    return [granted_test(work.study, given, work.record.trial(work.study, given.number))]


# -- the worker calls -------------------------------------------------------------------------------------


async def report(service: Service, name: str, number: int, call: Reports) -> Json:
    return await service.write(report_work(service, name, number, call), [name])


async def heartbeat(service: Service, name: str, number: int, call: Heartbeat) -> Json:
    return await service.write(heartbeat_work(service, name, number, call), [name])


async def tell(service: Service, name: str, number: int, call: Tell) -> Json:
    work = tell_work(service, name, number, call)
    if call.next is None:
        return await service.write(work, [name])
    told = await _write_once(service, work, [name])
    await service.save_new_worker(call.next.worker_id)
    return told


async def release(service: Service, name: str, number: int, call: Release) -> Json:
    return await service.change(name, lambda work: _release(_heard(service, work, number), number, call))


def report_work(service: Service, name: str, number: int, call: Reports) -> Callable[[WritingRecord], Json]:
    """What a report does in its transaction."""
    return partial(service.changed, name, lambda work: _report(_heard(service, work, number), number, call))


def heartbeat_work(service: Service, name: str, number: int, call: Heartbeat) -> Callable[[WritingRecord], Json]:
    return partial(service.changed, name, lambda work: _heartbeat(_heard(service, work, number), number, call))


def tell_work(service: Service, name: str, number: int, call: Tell) -> Callable[[WritingRecord], Json]:
    if call.next is not None:
        return partial(_tell_and_ask, service, name, number, call, call.next)
    return partial(service.changed, name, lambda work: _tell(_heard(service, work, number), number, call))


_BATCH_FULL = f"the answers of this batch would take more than {BATCH_ANSWERS:,} bytes; make this call in another one"


async def batch(service: Service, calls: Batch, only: Collection[str] | None = None) -> list[bytes | HpoError]:
    """All calls in one transaction; each succeeds or is refused by itself, in order. only: what the caller may see.

    What succeeds is answered with JSON; once the answers take BATCH_ANSWERS, what would be answered more is refused.
    """
    names = {call.study for call in calls.calls if _may_see(only, call.study)}
    try:
        return await _batch(service, calls, names, only, {})
    except StudyHeld as refusal:
        held = names & service.database.studies_aside
        if held in (set(), names):
            raise
        return await _batch(service, calls, names - held, only, dict.fromkeys(held, refusal))


async def _batch(
    service: Service, calls: Batch, names: Collection[str], only: Collection[str] | None, held: Mapping[str, StudyHeld]
) -> list[bytes | HpoError]:
    """held: the studies whose calls are refused, each with its refusal."""

    def in_transaction(record: WritingRecord) -> list[bytes | HpoError]:
        works: dict[str, StudyWork] = {}
        results: list[bytes | HpoError] = []
        left = BATCH_ANSWERS
        for call in calls.calls:
            try:
                if not _may_see(only, call.study):
                    raise NotFound(f"there is no study {call.study!r}")
                if call.study in held:
                    raise held[call.study]
                if call.study not in works:
                    works[call.study] = service.work_on(record, record.study(call.study))
                with works[call.study].undone_if_refused():
                    answer = to_json(_one_of_batch(service, works[call.study], call))
                    if len(answer) > left:
                        raise TooLarge(_BATCH_FULL)
                left -= len(answer)
                results.append(answer)
            except HpoError as error:
                results.append(error)
        for work in works.values():
            work.settle()
        return results

    return await service.write(in_transaction, sorted(names))


def _heard(service: Service, work: StudyWork, number: int) -> StudyWork:
    """Note that the trial's worker was heard of."""
    worker_id = work.record.trial(work.study, number).worker_id
    if worker_id is not None:
        service.heard_of(worker_id, work.record)
    return work


def _one_of_batch(service: Service, work: StudyWork, call: BatchCall) -> Json:
    match call:
        case BatchReport():
            return _report(_heard(service, work, call.number), call.number, call)
        case BatchHeartbeat():
            return _heartbeat(_heard(service, work, call.number), call.number, call)
        case BatchTell():
            return _tell(_heard(service, work, call.number), call.number, call)
        case BatchRelease():
            return _release(_heard(service, work, call.number), call.number, call)


def _report(work: StudyWork, number: int, call: Reports) -> Json:
    new = [(r.step, checked_report(r.step, r.value, r.metrics)) for r in call.reports]
    trial = work.record.trial(work.study, number)
    holding = trial.holding.keep(call.attempt, work.record.now)
    work.bind(call.dataset_sha256, None if new else trial)
    if trial.stop is None and work.study.spec.pruner.name != "none":
        return _kept(work.study, _report_to_pruner(work, work.change(trial, holding), new))
    work.record.put_reports(work.study, trial, dict(new))
    return _kept(work.study, work.change(trial, holding))


def _report_to_pruner(work: StudyWork, trial: Trial, new: list[tuple[int, KeptReport]]) -> Trial:
    """Judge after each report, as if it had come by itself: how a worker gathers its reports changes no verdict."""
    new.sort(key=itemgetter(0))
    for place, (step, report) in enumerate(new):
        work.record.put_reports(work.study, trial, {step: report})
        trial = _judge(work, trial, step)
        if trial.stop is not None:
            work.record.put_reports(work.study, trial, dict(new[place + 1 :]))
            break
    return trial


def _judge(work: StudyWork, trial: Trial, step: int) -> Trial:
    verdict = work.tuner().judge(trial.number, work.record.curve(work.study, trial), (step,))
    if not verdict.prune and not verdict.system_attrs:
        return trial
    attrs = {**trial.system_attrs, **verdict.system_attrs}
    return work.change(trial, trial.holding, system_attrs=attrs, stop="pruned" if verdict.prune else None)


def _heartbeat(work: StudyWork, number: int, call: Heartbeat) -> Json:
    trial = work.record.trial(work.study, number)
    holding = trial.holding.keep(call.attempt, work.record.now)
    work.bind(call.dataset_sha256, trial)
    return _kept(work.study, work.change(trial, holding))


def _kept(study: Study, trial: Trial) -> Json:
    reason = "study_cancelled" if study.state is StudyState.CANCELLED else trial.stop
    assert trial.holding.lease is not None
    return {
        "should_stop": reason is not None,
        "reason": reason,
        "lease_expires_at": time_text(trial.holding.lease.expires_at),
        "study_state": study.state,
    }


def _tell(work: StudyWork, number: int, call: Result) -> Json:
    directions = len(work.study.spec.directions)
    check_value_count(call.values, directions, "/values")
    size = 0 if call.metrics is None else check_size("metrics", call.metrics, TELL_METRICS)
    trial = work.record.trial(work.study, number)
    values = None if call.values is None else tuple(call.values)
    told = Told(call.attempt, TrialState(call.state), values)
    if call.retry:
        return _tell_retry(work, trial, told, call, size)
    state, values, reason = outcome(told, call.reason)
    holding = trial.holding.finish(told, state, reason)
    if holding is not None:
        work.bind(call.dataset_sha256, None if state is TrialState.COMPLETE else trial)
        if state is TrialState.PRUNED and values is None:
            values = pruned_values(work.record.curve(work.study, trial).last_value, directions)
        trial = work.change(trial, holding, values=values, metrics=call.metrics, weight=size)
        if state is TrialState.FAIL and trial.stop != "stopped":
            work.note_failure(reason)
    return trial_resource(trial, work.record.carried_reports(work.study, trial))


def _tell_retry(work: StudyWork, trial: Trial, told: Told, call: Result, size: int) -> Json:
    """The machine has failed: the trial waits for another one, unless it has waited too often."""
    holding = trial.holding.retry(told, call.reason, work.study.spec.limits.attempts, work.fails_as(trial))
    if holding is not None:
        work.bind(call.dataset_sha256, trial)
        last = {"metrics": call.metrics, "weight": size} if holding.state.is_finished else {}
        trial = work.change(trial, holding, **last)
    return trial_resource(trial, work.record.carried_reports(work.study, trial))


def _tell_and_ask(
    service: Service, name: str, number: int, call: Tell, following: NextAsk, record: WritingRecord
) -> Json:
    """The trial, and beside it what an ask right after the tell is answered; refused, neither has happened.

    Raise InTwo where the draw takes long, or fails: what was told does not wait for that.
    """
    study = record.study(name)
    if service.tuners.draws_apart(study):
        raise _in_two(service, study, number, call, following)
    remembered = record.answer(ask_call(study.id), following.request_id)
    work = service.work_on(record, study)
    told = _tell(_heard(service, work, number), number, call)
    work.settle()  # a round may end with this result, or the study
    if remembered is not None:
        return {**told, "next": with_objectives(remembered, [study])}
    service.heard_of(following.worker_id, record)
    try:
        given = _give(work, following).answer
    except DrawFailed:
        raise _in_two(service, study, number, call, following) from None
    return {**told, "next": given}


def _in_two(service: Service, study: Study, number: int, call: Tell, following: NextAsk) -> InTwo:
    def joined(told: Json, look: Look | None) -> Json:
        nothing = {"trials": [], "study_state": study.state}
        return {**told, "next": nothing if look is None else look.answer}

    tell = partial(service.changed, study.name, lambda work: _tell(_heard(service, work, number), number, call))
    return InTwo(tell, lambda record: _ask_study(service, record, study.name, following), joined)


def _release(work: StudyWork, number: int, call: Release) -> Json:
    trial = work.record.trial(work.study, number)
    trial = work.release(trial, call.attempt)
    return trial_resource(trial, work.record.carried_reports(work.study, trial))


def outcome(told: Told, reason: str | None) -> tuple[TrialState, tuple[float, ...] | None, str | None]:
    """What a told result makes of the trial: a NaN among the values is a FAIL."""
    if told.values is not None and any(math.isnan(value) for value in told.values):
        return TrialState.FAIL, None, "nan"
    return told.state, told.values, reason


def check_value_count(values: list[float] | None, directions: int, pointer: str) -> None:
    if values is not None and len(values) != directions:
        one = "one value" if directions == 1 else f"{directions} values"
        raise Invalid([Fault(pointer, f"{len(values)} values, but the study has {directions} direction(s): {one}")])


# -- workers themselves -----------------------------------------------------------------------------------


async def page(service: Service, after: str, size: int) -> tuple[list[Json], str | None]:
    """Return up to `size` workers after that id, and the id to go on after."""

    def look(record: Record) -> tuple[list[Json], str | None]:
        found = record.workers(after, size + 1)
        more = len(found) > size
        return [worker_resource(worker) for worker in found[:size]], found[size - 1].worker_id if more else None

    await service.save_seen_workers()
    return await service.read_all(look)


async def drain(service: Service, worker_id: str) -> Json:
    def in_transaction(record: WritingRecord) -> Json:
        record.drain_worker(worker_id)
        return worker_resource(record.worker(worker_id))

    await service.save_seen_workers()
    drained = await service.write(in_transaction)
    service.asks.drain([worker_id])
    return drained
