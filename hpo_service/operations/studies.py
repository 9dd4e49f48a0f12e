"""What people do with studies: create, look, change limits, pause and stop, narrow by hand."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

import structlog
from pydantic import ValidationError

from hpo_service.domain import sizes
from hpo_service.domain.errors import (
    Fault,
    Invalid,
    PreconditionFailed,
    StudyExists,
    StudySealed,
    StudyStateConflict,
    TooLarge,
)
from hpo_service.domain.fast_replace import fast_replace
from hpo_service.domain.json_types import Json
from hpo_service.domain.objectives import built_in
from hpo_service.domain.search_space import SearchSpace, check_choice_sizes
from hpo_service.domain.study import (
    Limits,
    Round,
    Study,
    StudySpec,
    StudyState,
    check_rounds_bound,
    state_after,
)
from hpo_service.domain.trial import EndReason
from hpo_service.operations.calls import NarrowByHand, Patch
from hpo_service.operations.service import Service
from hpo_service.operations.study_work import StudyWork
from hpo_service.reading import readings
from hpo_service.reading.resources import etag, round_resource, study_resource
from hpo_service.store.record import StudyChange
from hpo_service.store.transaction import Transaction
from hpo_service.tuning import tuner

log = structlog.get_logger()

Tagged = tuple[Json, str]  # a study as it reads, and its ETag


async def create(service: Service, spec: StudySpec) -> tuple[Json, str, bool]:
    """Return (study, ETag, whether it is new). Raise Invalid, StudyExists."""
    canonical = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    seed = secrets.randbits(32) if spec.sampler.seed is None else spec.sampler.seed
    seeded = spec.model_copy(update={"sampler": spec.sampler.model_copy(update={"seed": seed})})
    await asyncio.to_thread(check, seeded)  # to count the points of an entangled grid takes a while

    def in_transaction(transaction: Transaction) -> tuple[Json, str, bool]:
        existing = transaction.find_study(spec.name)
        if existing is not None:
            if not _is_same(transaction.sql().created_with(existing), canonical):
                raise StudyExists(f"another study is named {spec.name!r}; choose another name, or delete it first")
            return study_resource(transaction.sql(), existing), etag(existing), False
        check_sizes(seeded)
        study = replace(transaction.sql().add_study(seeded, canonical), revision=1)
        transaction.add_round(study, Round(0, spec.search_space, revision=1))
        work = StudyWork(transaction, study, service.tuners)
        work.touch()
        study = work.update_and_save()
        return study_resource(transaction.sql(), study), etag(study), True

    if not tuner.is_quick(seeded):
        service.long_draws.expect()
    return await service.write(in_transaction)


def _is_same(created_with: str, canonical: str) -> bool:
    """Whether a study was created with this body; an earlier version may have written it without newer defaults."""
    if created_with == canonical:
        return True
    as_read_now = StudySpec.model_validate_json(created_with).model_dump(mode="json")
    return json.dumps(as_read_now, sort_keys=True) == canonical


def check(spec: StudySpec) -> None:
    """Refuse what the sampler, the pruner or the built-in objective cannot do, before any trial is given out."""
    faults = list(tuner.check(spec))
    if spec.objective is not None and (objective := built_in(spec.objective)) is not None:
        faults += objective.faults(spec.objective, spec.search_space)
    if faults:
        raise Invalid(faults)


def check_sizes(spec: StudySpec) -> None:
    """Raise TooLarge for what would be stored and sent again with every round, and every trial."""
    sizes.check_size("objective", spec.objective, sizes.OBJECTIVE)
    sizes.check_size("metadata", spec.metadata, sizes.METADATA)
    check_choice_sizes(spec.search_space)
    if spec.narrowing is not None:
        _check_rounds(spec.narrowing.rounds, spec.search_space)


def _check_rounds(rounds: int, space: SearchSpace) -> None:
    if rounds > 1 and rounds * sizes.size_of(space.model_dump(mode="json")) > sizes.ROUNDS:
        raise TooLarge(
            f"the search spaces of {rounds} rounds would take more than {sizes.ROUNDS:,} bytes as JSON; "
            "use fewer rounds, or fewer choices"
        )


async def read(service: Service, name: str) -> tuple[bytes, str]:
    return await service.read_in_process(name, readings.study)


async def page(
    service: Service, state: str | None, after: int, size: int, only: Collection[str] | None = None
) -> tuple[bytes, int | None]:
    """Return up to `size` studies after that id, of these names if only some are to be seen, and where to go on."""
    work = partial(readings.studies_page, state=state, after=after, size=size, only=only)
    return await service.read_all_in_process(work)


async def patch(service: Service, name: str, body: Patch, if_match: str | None) -> Tagged:
    def change(work: StudyWork) -> None:
        _check_precondition(work.study, if_match)
        spec = work.study.spec
        changed: dict[str, Any] = {}
        if body.limits is not None:
            limits = _merged(spec, body.limits.model_dump(exclude_unset=True))
            if work.study.sealed and limits.raises(spec.limits):
                raise StudySealed("the test set of this study has been opened; its limits can no longer be raised")
            changed["limits"] = limits
        if body.metadata is not None:
            sizes.check_size("metadata", body.metadata, sizes.METADATA)
            changed["metadata"] = body.metadata
        if all(getattr(spec, field) == value for field, value in changed.items()):
            return
        work.study = replace(work.study, spec=spec.model_copy(update=changed))
        work.transaction.sql().save_spec(work.study)
        work.touch()

    return await _changed(service, name, change)


def _check_precondition(study: Study, if_match: str | None) -> None:
    if if_match is None or if_match.strip() == "*":
        return
    tags = [tag.strip() for tag in if_match.split(",")]
    if etag(study) not in tags:
        raise PreconditionFailed(f"the study has changed: its ETag is now {etag(study)}, not {if_match}")


def _merged(spec: StudySpec, patch: dict[str, Any]) -> Limits:
    merged = {**spec.limits.model_dump(), **patch}
    if merged["trials"] is None and spec.narrowing is not None:
        merged["trials"] = spec.narrowing.trials
    if merged["attempts"] is None:
        merged["attempts"] = Limits().attempts
    try:
        limits = Limits.model_validate(merged)
        if spec.narrowing is not None:
            check_rounds_bound(limits, spec.narrowing)
    except ValidationError as error:
        raise Invalid([Fault("/limits/" + str(fault["loc"][-1]), fault["msg"]) for fault in error.errors()]) from None
    return limits


async def delete(service: Service, name: str, force: bool) -> None:
    def in_transaction(transaction: Transaction) -> None:
        study = service.work_on(transaction, transaction.study(name)).update_and_save()
        if study.held and not force:
            raise StudyStateConflict(
                f"{study.held} trial(s) are RUNNING under a lease; stop the study first, or delete with force"
            )
        transaction.delete_study(study)
        service.tuners.forget_all_of([study.id])
        transaction.changes.append(
            StudyChange(fast_replace(study, state=StudyState.CANCELLED), None)
        )  # wakes everybody who waits for it

    await service.write(in_transaction, [name])


async def act(service: Service, name: str, verb: str) -> Tagged:
    """pause, resume, stop or cancel; each may be repeated."""
    moved: list[StudyState] = []

    def change(work: StudyWork) -> None:
        study = work.study
        if verb == "cancel" and study.sealed:
            raise StudySealed("the test set of this study has been opened; it can no longer be cancelled")
        state = state_after(verb, study.state)
        if verb == "resume" and study.failures is not None:
            work.study = fast_replace(study, failures=None)  # the count starts anew
        if state is study.state:
            return
        moved.append(state)
        work.move_to(state)
        if state is StudyState.STOPPING:
            work.fail_all_waiting(EndReason.STUDY_STOPPED)
        if state is StudyState.CANCELLED:
            work.fail_all_waiting(EndReason.STUDY_CANCELLED)

    tagged = await _changed(service, name, change)
    if moved:  # the log knows the caller from the request
        log.info("a study was told to change its state", study=name, verb=verb, state=tagged[0]["state"])
    return tagged


async def narrow_by_hand(service: Service, name: str, body: NarrowByHand) -> Json:
    def change(work: StudyWork) -> Json:
        if work.study.sealed:
            raise StudySealed("the test set of this study has been opened; there are no more rounds")
        if len(work.study.spec.directions) > 1:
            raise StudyStateConflict("a study with several directions has no best trials to narrow around")
        if work.study.spec.define_by_run:
            raise StudyStateConflict("with define_by_run the objective gives the ranges: there are none to narrow")
        rounds = work.study.round + 2
        if rounds > sizes.MOST_ROUNDS:
            raise Invalid([Fault("", f"the study has {rounds - 1:,} rounds, and more than that are not kept")])
        _check_rounds(rounds, work.study.spec.search_space)
        return round_resource(work.next_round(body.keep))

    return await service.change(name, change)


async def _changed(service: Service, name: str, change: Any) -> Tagged:
    def in_transaction(transaction: Transaction) -> Tagged:
        work = service.work_on(transaction, transaction.study(name))
        change(work)
        study = work.update_and_save()
        return study_resource(transaction.sql(), study), etag(study)

    return await service.write(in_transaction, [name])
