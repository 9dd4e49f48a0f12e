"""What workers do with a trial that they hold: report, keep its lease, tell its result, hand it back."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from pydantic_core import to_json

from hpo_service.domain.errors import DrawFailed, Fault, HpoError, Invalid, NotFound, StudyHeld, TooLarge
from hpo_service.domain.json_types import Json
from hpo_service.domain.sizes import BATCH_ANSWERS, TELL_METRICS, check_size
from hpo_service.domain.study import Study, StudyState
from hpo_service.domain.trial import EndReason, Told, Trial, TrialState, pruned_values
from hpo_service.operations.asking import AskResult, ask_in_transaction, give_and_remember, may_see
from hpo_service.operations.calls import Batch, BatchCall, Heartbeat, NextAsk, Release, Reports, Result, Tell
from hpo_service.operations.not_ready import NotReady, SplitTellAndAsk
from hpo_service.operations.service import Service
from hpo_service.operations.study_call import CallerLeft, StudyCall
from hpo_service.operations.study_work import StudyWork
from hpo_service.operations.suggesting import suggest
from hpo_service.reading.resources import time_text, trial_resource, with_objectives
from hpo_service.store.study_lock import ask_call
from hpo_service.store.transaction import Transaction
from hpo_service.store.trial_reports import KeptReport, checked_report
from hpo_service.store.write_call import Outcome, Parts, Work


def on_trial(service: Service, verb: str, name: str, number: int, body: Any) -> StudyCall:
    """verb: a key of ON_TRIAL, which also says of what kind the body is."""
    if isinstance(body, Tell) and body.next is not None:
        return _tell_and_ask(service, name, number, body, body.next)
    return StudyCall(name, partial(service.change_in, name, partial(_act, service, verb, number, body)))


def _act(service: Service, verb: str, number: int, body: Any, work: StudyWork) -> Json:
    """Make the change, and note that the trial's worker was seen."""
    worker_id = work.transaction.trial(work.study, number).worker_id
    if worker_id is not None:
        service.record_worker_seen(worker_id, work.transaction.now)
    return ON_TRIAL[verb](work, number, body)


# -- several in one ---------------------------------------------------------------------------------------

_BATCH_FULL = f"the answers of this batch would take more than {BATCH_ANSWERS:,} bytes; make this call in another one"


async def batch(service: Service, calls: Batch, only: Collection[str] | None = None) -> list[bytes | HpoError]:
    """All calls in one commit; each succeeds or is refused by itself, in order. only: what the caller may see.

    What succeeds is answered with JSON; once the answers take BATCH_ANSWERS, further calls are refused.
    """
    hidden = {call.study for call in calls.calls if not may_see(only, call.study)}
    refused: dict[str, HpoError] = {name: NotFound(f"there is no study {name!r}") for name in hidden}
    try:
        return await _batch(service, calls.calls, refused)
    except StudyHeld as refusal:
        names = {call.study for call in calls.calls} - hidden
        held = names & service.database.held_studies
        if held in (set(), names):
            raise
        return await _batch(service, calls.calls, {**refused, **dict.fromkeys(held, refusal)})


async def _batch(
    service: Service, calls: Sequence[BatchCall], refused: Mapping[str, HpoError]
) -> list[bytes | HpoError]:
    """refused: the studies whose calls are refused, each with its refusal."""
    budget = _BatchBudget()
    made = [call for call in calls if call.study not in refused]
    parts = Parts(partial(_part, service, call, place, budget) for place, call in enumerate(made))
    written = await service.write_parts(parts, sorted({call.study for call in made})) if made else []
    results = [await _result(service, call, part, of) for call, part, of in zip(made, parts, written, strict=True)]
    answers = iter(results)
    return [refused[call.study] if call.study in refused else next(answers) for call in calls]


async def _result(service: Service, call: BatchCall, part: Work, outcome: Outcome) -> bytes | HpoError:
    if isinstance(outcome.error, NotReady):  # what is long to compute is made ready, and the part runs by itself
        try:
            return await service.write(part, [call.study])
        except HpoError as error:
            return error
    if isinstance(outcome.error, HpoError):
        return outcome.error
    if outcome.error is not None:
        raise outcome.error
    answer: bytes = outcome.result
    return answer


class _BatchBudget:
    """For the answers of a batch."""

    left = BATCH_ANSWERS


def _part(service: Service, call: BatchCall, place: int, budget: _BatchBudget, transaction: Transaction) -> bytes:
    if place == 0:
        budget.left = BATCH_ANSWERS  # the parts may run again
    answer = to_json(on_trial(service, call.call, call.study, call.number, call).work(transaction))
    if len(answer) > budget.left:
        raise TooLarge(_BATCH_FULL)
    budget.left -= len(answer)
    return answer


# -- each call --------------------------------------------------------------------------------------------


def _report(work: StudyWork, number: int, call: Reports) -> Json:
    new = [(r.step, checked_report(r.step, r.value, r.metrics)) for r in call.reports]
    trial = work.transaction.trial(work.study, number)
    lifecycle = trial.lifecycle.renew(call.attempt, work.transaction.now)
    work.bind(call.dataset_sha256, None if new else trial)
    if trial.stop is None and work.study.spec.pruner.name != "none" and trial.replicate_of is None:
        return _kept(work.study, _report_to_pruner(work, work.change(trial, lifecycle), new))
    work.transaction.put_reports(work.study, trial, dict(new))
    return _kept(work.study, work.change(trial, lifecycle))


def _report_to_pruner(work: StudyWork, trial: Trial, new: list[tuple[int, KeptReport]]) -> Trial:
    """Judge after each report, as if it had come by itself: how a worker gathers its reports changes no verdict."""
    new.sort(key=itemgetter(0))
    for place, (step, report) in enumerate(new):
        work.transaction.put_reports(work.study, trial, {step: report})
        trial = _judge(work, trial, step)
        if trial.stop is not None:
            work.transaction.put_reports(work.study, trial, dict(new[place + 1 :]))
            break
    return trial


def _judge(work: StudyWork, trial: Trial, step: int) -> Trial:
    verdict = work.tuner().judge(trial.number, work.transaction.curve(work.study, trial), (step,))
    if not verdict.prune and not verdict.system_attrs:
        return trial
    attrs = {**trial.system_attrs, **verdict.system_attrs}
    return work.change(trial, trial.lifecycle, system_attrs=attrs, stop=EndReason.PRUNED if verdict.prune else None)


def _heartbeat(work: StudyWork, number: int, call: Heartbeat) -> Json:
    trial = work.transaction.trial(work.study, number)
    lifecycle = trial.lifecycle.renew(call.attempt, work.transaction.now)
    work.bind(call.dataset_sha256, trial)
    return _kept(work.study, work.change(trial, lifecycle))


def _kept(study: Study, trial: Trial) -> Json:
    reason = EndReason.STUDY_CANCELLED if study.state is StudyState.CANCELLED else trial.stop
    assert trial.lifecycle.lease is not None
    return {
        "should_stop": reason is not None,
        "reason": reason,
        "lease_expires_at": time_text(trial.lifecycle.lease.expires_at),
        "study_state": study.state,
    }


def _tell(work: StudyWork, number: int, call: Result) -> Json:
    directions = len(work.study.spec.directions)
    check_value_count(call.values, directions, "/values")
    size = 0 if call.metrics is None else check_size("metrics", call.metrics, TELL_METRICS)
    trial = work.transaction.trial(work.study, number)
    values = None if call.values is None else tuple(call.values)
    told = Told(call.attempt, TrialState(call.state), values)
    if call.retry:
        return _tell_retry(work, trial, told, call, size)
    state, values, reason = outcome(told, call.reason)
    lifecycle = trial.lifecycle.finish(told, state, reason)
    if lifecycle is not None:
        work.bind(call.dataset_sha256, None if state is TrialState.COMPLETE else trial)
        if state is TrialState.PRUNED and values is None:
            values = pruned_values(work.transaction.curve(work.study, trial).last_value, directions)
        trial = work.change(trial, lifecycle, values=values, metrics=call.metrics, weight=size)
        if state is TrialState.FAIL and trial.stop != EndReason.STOPPED and trial.replicate_of is None:
            work.note_failure(reason)
    return trial_resource(work.study, trial, work.transaction.carried_reports(work.study, trial))


def _tell_retry(work: StudyWork, trial: Trial, told: Told, call: Result, size: int) -> Json:
    """The machine has failed: the trial waits for another one, unless it has waited too often."""
    lifecycle = trial.lifecycle.retry(told, call.reason, work.study.spec.limits.attempts, work.fails_as(trial))
    if lifecycle is not None:
        work.bind(call.dataset_sha256, trial)
        last = {"metrics": call.metrics, "weight": size} if lifecycle.state.is_finished else {}
        trial = work.change(trial, lifecycle, **last)
    return trial_resource(work.study, trial, work.transaction.carried_reports(work.study, trial))


def _tell_and_ask(service: Service, name: str, number: int, call: Tell, following: NextAsk) -> StudyCall:
    async def saved(told: Json) -> Json:
        await service.save_new_worker(following.worker_id)
        return told

    def finish(_: CallerLeft, told: Json) -> Json | Coroutine[Any, Any, Json]:
        return told if service.knows(following.worker_id) else saved(told)

    work = partial(_told_and_asked, service, name, number, call, following)
    return StudyCall(name, work, following.request_id, finish)


def _told_and_asked(
    service: Service, name: str, number: int, call: Tell, following: NextAsk, transaction: Transaction
) -> Json:
    """Tell, and ask right after it; if the transaction is refused, neither has happened.

    Raise SplitTellAndAsk where the draw takes long, or fails: the tell does not wait for it.
    """
    study = transaction.study(name)
    if service.tuners.needs(study).slow_draws:
        raise _in_two(service, study, number, call, following)
    remembered = transaction.answer(ask_call(study.id), following.request_id)
    work = service.work_on(transaction, study)
    told = _act(service, "tell", number, call, work)
    work.update_and_save()  # a round may end with this result, or the study
    if remembered is not None:
        return {**told, "next": with_objectives(remembered, [study])}
    service.record_worker_seen(following.worker_id, transaction.now)
    try:
        given = give_and_remember(work, following).answer
    except DrawFailed:
        raise _in_two(service, study, number, call, following) from None
    return {**told, "next": given}


def _in_two(service: Service, study: Study, number: int, call: Tell, following: NextAsk) -> SplitTellAndAsk:
    def joined(told: Json, asked: AskResult | None) -> Json:
        nothing = {"trials": [], "study_state": study.state}
        return {**told, "next": nothing if asked is None else asked.answer}

    tell = partial(service.change_in, study.name, partial(_act, service, "tell", number, call))
    return SplitTellAndAsk(tell, partial(ask_in_transaction, service, study.name, following), joined)


def _release(work: StudyWork, number: int, call: Release) -> Json:
    trial = work.transaction.trial(work.study, number)
    trial = work.release(trial, call.attempt)
    return trial_resource(work.study, trial, work.transaction.carried_reports(work.study, trial))


def outcome(told: Told, reason: str | None) -> tuple[TrialState, tuple[float, ...] | None, str | None]:
    """What a told result makes of the trial: a NaN among the values is a FAIL."""
    if told.values is not None and any(math.isnan(value) for value in told.values):
        return TrialState.FAIL, None, "nan"
    return told.state, told.values, reason


def check_value_count(values: list[float] | None, directions: int, pointer: str) -> None:
    if values is not None and len(values) != directions:
        one = "one value" if directions == 1 else f"{directions} values"
        raise Invalid([Fault(pointer, f"{len(values)} values, but the study has {directions} direction(s): {one}")])


ON_TRIAL: Mapping[str, Callable[[StudyWork, int, Any], Json]] = {
    "report": _report,
    "heartbeat": _heartbeat,
    "suggest": suggest,
    "tell": _tell,
    "release": _release,
}
