"""The sealed test: the one evaluation on the test set, after which a study takes nothing new."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpo_service.domain.errors import StudySealed, StudyStateConflict
from hpo_service.domain.objectives import WITH_TEST_SET, shown
from hpo_service.domain.study import Study, StudyState
from hpo_service.domain.trial import Lifecycle, TrialState


@dataclass(frozen=True)
class SealedTest:
    """The job of training the best configuration again and evaluating it on the test set.

    ensemble: how many networks are averaged; number: the trial with the best configuration;
    result: what the worker told, as JSON.
    """

    ensemble: int
    number: int
    lifecycle: Lifecycle
    worker_id: str | None = None
    result: dict[str, Any] | None = None
    finished_at: float | None = None

    @property
    def is_open(self) -> bool:
        return not self.lifecycle.state.is_finished


def check_may_be_tested(study: Study) -> None:
    if study.spec.kind not in WITH_TEST_SET:
        raise StudyStateConflict(
            f"only a study of the built-in objective {shown(WITH_TEST_SET)} has a test set here; "
            f"{study.name!r} has {'none' if study.spec.kind is None else repr(study.spec.kind)}"
        )
    if study.state not in (StudyState.COMPLETED, StudyState.STOPPED):
        raise StudyStateConflict(f"the study is {study.state}; the test is for a COMPLETED or STOPPED one")
    if study.counts.complete == 0:
        raise StudyStateConflict("the study has no COMPLETE trial, so there is no best configuration to test")


def check_same_test(test: SealedTest, ensemble: int) -> None:
    if test.ensemble != ensemble:
        raise StudySealed(f"the test was already asked for with ensemble {test.ensemble}; a test set is used once")


def waiting_test(ensemble: int, number: int) -> SealedTest:
    return SealedTest(ensemble, number, Lifecycle(TrialState.WAITING))
