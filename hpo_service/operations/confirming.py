"""Confirming the winner: asked for once, on a study whose search is over, and given out like enqueued trials."""

from __future__ import annotations

from hpo_service.domain.confirmation import Confirmation
from hpo_service.domain.errors import StudySealed, StudyStateConflict
from hpo_service.domain.fast_replace import fast_replace
from hpo_service.domain.json_types import Json
from hpo_service.domain.study import Study, StudyState
from hpo_service.domain.trial import DRAWN_BY, Lifecycle, Trial, TrialState
from hpo_service.operations.calls import ConfirmRequest
from hpo_service.operations.service import Service
from hpo_service.operations.study_work import StudyWork
from hpo_service.reading.resources import etag, study_resource
from hpo_service.store.transaction import Transaction


async def confirm(service: Service, name: str, body: ConfirmRequest) -> tuple[Json, str, bool]:
    """Return (study, ETag, whether the confirmation is new)."""

    def in_transaction(transaction: Transaction) -> tuple[Json, str, bool]:
        work = service.work_on(transaction, transaction.study(name))
        work.update_and_save()
        before = work.study.confirmation
        is_same = before is not None and (before.top, before.seeds) == (body.top, body.seeds)
        if not is_same:
            _check_may_be_confirmed(work.study)
            _begin(work, body)
        study = work.update_and_save()
        return study_resource(transaction.sql(), study), etag(study), not is_same

    return await service.write(in_transaction, [name])


def _begin(work: StudyWork, asked: ConfirmRequest) -> None:
    """Add the replicates, seed by seed, so that at any time all candidates are known alike."""
    study, best = work.study, work.transaction.sql().trials.best(work.study, asked.top)
    numbers = tuple(trial.number for trial in best)
    stopped = study.state is StudyState.STOPPED
    work.study = fast_replace(study, confirmation=Confirmation(asked.top, asked.seeds, numbers, of_stopped=stopped))
    # Each is of a number that no other trial has; all candidates share it.
    seeds = [work.seed(study.next_number + turn * len(best)) for turn in range(asked.seeds)]
    work.add([_replicate(trial, seed, study.spec.sampler.name) for seed in seeds for trial in best])
    work.move_to(StudyState.ACTIVE)


def _replicate(trial: Trial, seed: int, sampler: str) -> Trial:
    return Trial(
        trial.study,
        0,
        trial.params,
        Lifecycle(TrialState.WAITING),
        seed,
        system_attrs={DRAWN_BY: trial.drawn_by(sampler)},
        replicate_of=trial.number,
    )


def _check_may_be_confirmed(study: Study) -> None:
    """Raise StudySealed, StudyStateConflict."""
    if study.sealed:
        raise StudySealed("the test set of this study has been opened; its trials are not trained again")
    before = study.confirmation
    if before is not None:
        raise StudyStateConflict(
            f"this study was asked to confirm its best {before.top} with {before.seeds} seeds; that is done once"
        )
    if len(study.spec.directions) > 1:
        raise StudyStateConflict("a study with several directions has no best trials to confirm")
    if study.state not in (StudyState.COMPLETED, StudyState.STOPPED):
        raise StudyStateConflict(f"the study is {study.state}; confirming is for a COMPLETED or STOPPED one")
    if study.counts.complete == 0:
        raise StudyStateConflict("the study has no COMPLETE trial, so there is none to confirm")
