"""What people do with trials: look, enqueue, import, stop one; and what they read from all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from hpo_service.domain.errors import (
    Fault,
    Invalid,
    StudySealed,
    StudyStateConflict,
    TrialFinished,
)
from hpo_service.domain.fast_replace import fast_replace
from hpo_service.domain.json_pointer import escaped
from hpo_service.domain.json_types import Json
from hpo_service.domain.parents import CannotExist, choices_of_parents
from hpo_service.domain.search_space import (
    MOST_PARAMETERS,
    Params,
    SearchSpace,
    check_choice_size,
    describe,
    is_parameter_name,
)
from hpo_service.domain.sizes import TELL_METRICS, check_size
from hpo_service.domain.study import StudyState
from hpo_service.domain.trial import DRAWN_BY, EndReason, Lifecycle, Told, Trial, TrialState, new_trial, pruned_values
from hpo_service.operations.calls import Enqueue, Import, ImportedTrial
from hpo_service.operations.service import Service
from hpo_service.operations.study_work import StudyWork
from hpo_service.operations.workers import check_value_count, outcome
from hpo_service.reading import readings, trial_pieces
from hpo_service.reading.resources import trial_resource
from hpo_service.reading.trial_pieces import Inside, Key, Place
from hpo_service.store.transaction import Transaction
from hpo_service.store.trial_reports import KeptReport, checked_report

Pieces = tuple[bytes, AsyncIterator[bytes] | None]  # the first one, and the others if there are any


async def read(service: Service, name: str, number: int) -> Pieces:
    """The trial as JSON, in pieces where it is large."""
    first, inside = await service.read_in_process(name, partial(trial_pieces.trial, number=number))

    async def rest(inside: Inside | None) -> AsyncIterator[bytes]:
        while inside is not None:
            piece, inside = await service.read_in_process(name, partial(trial_pieces.rest_of_trial, inside=inside))
            yield piece

    return first, None if inside is None else rest(inside)


async def attempts(service: Service, name: str, number: int) -> bytes:
    return await service.read_in_process(name, partial(readings.attempts, number=number))


async def page(
    service: Service,
    name: str,
    state: str | None,
    order_by: str,
    after: Key | None,
    size: int,
    ending: Callable[[Key | None], bytes],
) -> Pieces:
    """Up to `size` trials, fewer where they are large. ending: what follows them, with the key to go on after."""
    read = partial(trial_pieces.page, state=state, order_by=order_by)
    first, place, key = await service.read_in_process(name, partial(read, place=Place(after, size)))
    if place is None:
        return first + ending(key), None

    async def rest(place: Place | None) -> AsyncIterator[bytes]:
        key: Key | None = None
        while place is not None:
            piece, place, key = await service.read_in_process(name, partial(read, place=place))
            yield piece
        yield ending(key)

    return first, rest(place)


async def enqueue(service: Service, name: str, body: Enqueue) -> Json:
    """Queue params to be given out before sampled ones."""

    def make(work: StudyWork) -> list[Trial]:
        if work.study.has_been_stopped:
            state = StudyState.STOPPED if work.study.state.reason_for_unfinished is None else work.study.state
            raise StudyStateConflict(f"the study is {state}: nothing enqueued now would ever be given out")
        params = [_enqueued(work, trial.params, index) for index, trial in enumerate(body.trials)]
        waiting = new_trial(name, 0, {}, {DRAWN_BY: "enqueued"})
        return work.add([fast_replace(waiting, params=given) for given in params])

    return await _added(service, name, "enqueue", body.request_id, make)


async def import_finished(service: Service, name: str, body: Import) -> Json:
    """Record finished trials from elsewhere, which samplers learn from."""

    def make(work: StudyWork) -> list[Trial]:
        new = [_imported(work, trial, index) for index, trial in enumerate(body.trials)]
        added = work.add(new)
        for trial, given in zip(added, body.trials, strict=True):
            work.transaction.put_reports(work.study, trial, _reports(given))
        return added

    return await _added(service, name, "import", body.request_id, make)


async def _added(
    service: Service,
    name: str,
    call: str,
    request_id: str | None,
    make: Callable[[StudyWork], list[Trial]],
) -> Json:
    def in_transaction(transaction: Transaction) -> Json:
        study = transaction.study(name)
        route = f"{call} {study.id}"
        remembered = None if request_id is None else transaction.answer(route, request_id)
        if remembered is not None:
            return remembered  # type: ignore[no-any-return]
        if study.sealed:
            raise StudySealed("the test set of this study has been opened; nothing can be added to it")
        work = service.work_on(transaction, study)
        added = make(work)
        study = work.update_and_save()
        answer = {"trials": [trial_resource(study, trial, transaction.reports(study, trial)) for trial in added]}
        if request_id is not None:
            transaction.remember_answer(study, route, request_id, answer)
        return answer

    return await service.write(in_transaction, [name])


def _imported(work: StudyWork, given: ImportedTrial, index: int) -> Trial:
    directions = len(work.study.spec.directions)
    check_value_count(given.values, directions, f"/trials/{index}/values")
    params = _checked(work, given.params, index)
    told = Told(0, TrialState(given.state), None if given.values is None else tuple(given.values))
    state, values, reason = outcome(told, given.reason)
    size = 0 if given.metrics is None else check_size(f"metrics of trial {index}", given.metrics, TELL_METRICS)
    if state is TrialState.PRUNED and values is None:
        last = {report.step: report.value for report in given.reports}
        values = pruned_values(last[max(last)] if last else None, directions)
    now = work.transaction.now
    return Trial(
        work.study.name,
        0,
        params,
        Lifecycle(state, reason=reason),
        seed=0,
        values=values,
        metrics=given.metrics,
        weight=size,
        system_attrs={DRAWN_BY: "imported"},
        started_at=now,
        finished_at=now,
    )


def _reports(given: ImportedTrial) -> dict[int, KeptReport]:
    return {report.step: checked_report(report.step, report.value, report.metrics) for report in given.reports}


def _enqueued(work: StudyWork, params: Params, index: int) -> Params:
    """Raise Invalid for params that no one trial can have together.

    With define_by_run a name may be unknown until the trial asks for it.
    """
    spec = work.study.spec
    unknown = {name: value for name, value in params.items() if spec.define_by_run and name not in spec.search_space}
    for name, value in unknown.items():
        _check_unknown(name, value, index)
    if len(unknown) + len(spec.search_space) > MOST_PARAMETERS:
        detail = f"with these the study would have more than {MOST_PARAMETERS} parameters"
        raise Invalid([Fault(f"/trials/{index}/params", detail)])
    checked = _checked(work, {name: value for name, value in params.items() if name not in unknown}, index)
    try:
        choices_of_parents(work.study.spec.search_space, checked)
    except CannotExist as error:
        raise Invalid([Fault(f"/trials/{index}/params/{escaped(error.param)}", error.why)]) from None
    return {**checked, **unknown}


def _check_unknown(name: str, value: Any, index: int) -> None:
    """Raise Invalid, TooLarge for what could be no parameter and none of its values."""
    if not is_parameter_name(name):
        rule = "a parameter's name has 1 to 200 characters, and no control characters"
        raise Invalid([Fault(f"/trials/{index}/params/{escaped(name)}", rule)])
    check_choice_size(f"the value of {name!r}", value)


def _checked(work: StudyWork, params: Params, index: int) -> Params:
    """The params in the order of the search space; raise Invalid for one that the study would never give."""
    first, current = work.study.spec.search_space, work.round(work.study.round).search_space
    faults = []
    for name, value in params.items():
        fault = _fault(first, current, name, value, params)
        if fault is not None:
            faults.append(Fault(f"/trials/{index}/params/{escaped(name)}", fault))
    if faults:
        raise Invalid(faults)
    return {name: _exact(first, current, name, params[name]) for name in first.names() if name in params}


def _fault(first: SearchSpace, current: SearchSpace, name: str, value: Any, params: Params) -> str | None:
    if name not in first:
        return f"not a parameter of this study; it has {', '.join(first.names())}"
    if not first[name].contains(value) and not (name in current and current[name].contains(value)):
        return f"{value!r} lies outside {describe(first[name])}"
    known = {parent: params[parent] for parent in first[name].when or {} if parent in params}
    if len(known) == len(first[name].when or {}) and not first.exists(name, params):
        return f"does not exist in this trial: {first[name].when} does not hold"
    return None


def _exact(first: SearchSpace, current: SearchSpace, name: str, value: Any) -> Any:
    """The value as the study would have drawn it: an int parameter's 3.0 is 3, and 0.30000000000000004 is 0.3."""
    exact = first[name].exact(value)
    return current[name].exact(value) if exact is None and name in current else exact


async def stop(service: Service, name: str, number: int) -> Json:
    """RUNNING: its worker learns it from its next report; WAITING: FAIL at once."""

    def change(work: StudyWork) -> Json:
        trial = work.transaction.trial(work.study, number)
        if trial.state.is_finished:
            raise TrialFinished(f"trial {number} has finished as {trial.state}")
        if trial.state is TrialState.WAITING:
            trial = work.change(trial, trial.lifecycle.fail_waiting(EndReason.STOPPED))
        elif trial.stop != EndReason.STOPPED:
            trial = work.change(trial, trial.lifecycle, stop=EndReason.STOPPED)
        return trial_resource(work.study, trial, work.transaction.carried_reports(work.study, trial))

    return await service.change(name, change)


async def importances(service: Service, name: str) -> bytes:
    """How much each parameter matters for the first value; the shares sum to 1."""
    return await service.read_in_process(name, readings.importances)


async def advice(service: Service, name: str) -> bytes:
    """What there is to say of the study, most important first."""
    return await service.read_in_process(name, readings.advice)
