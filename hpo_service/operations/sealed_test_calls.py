"""The sealed test: asked for once, run by one worker, after which the study takes nothing new."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from hpo_service.domain.errors import NotFound
from hpo_service.domain.json_types import Json
from hpo_service.domain.sealed_test import (
    SealedTest,
    check_may_be_tested,
    check_same_test,
    waiting_test,
)
from hpo_service.domain.sizes import TELL_METRICS, check_size
from hpo_service.domain.study import Study
from hpo_service.domain.trial import Told, TrialState
from hpo_service.operations.calls import Heartbeat, Release, TestRequest, TestResult
from hpo_service.operations.service import Service
from hpo_service.operations.study_call import StudyCall
from hpo_service.operations.study_work import StudyWork
from hpo_service.reading.resources import confirmed, etag, study_resource, test_resource, time_text
from hpo_service.store.record import Record
from hpo_service.store.transaction import Transaction


async def ask_for_test(service: Service, name: str, body: TestRequest) -> tuple[Json, str, bool]:
    """Return (study, ETag, whether the test is new)."""

    def in_transaction(transaction: Transaction) -> tuple[Json, str, bool]:
        work = service.work_on(transaction, transaction.study(name))
        test = transaction.sql().test(work.study)
        if test is not None:
            check_same_test(test, body.ensemble)
        else:
            work.update_and_save()
            check_may_be_tested(work.study)
            transaction.sql().add_test(work.study, waiting_test(body.ensemble, _winner(transaction.sql(), work.study)))
            work.study = replace(work.study, sealed=True)
            work.touch()
        study = work.update_and_save()
        return study_resource(transaction.sql(), study), etag(study), test is None

    return await service.write(in_transaction, [name])


def _winner(record: Record, study: Study) -> int:
    """The number of the trial that is worth most: by its replicates where there are any, else by what it has told."""
    winner = confirmed(record, study).winner
    return record.trials.best(study)[0].number if winner is None else winner


def on_test(service: Service, verb: str, name: str, body: Any) -> StudyCall:
    """verb: a key of ON_TEST, which also says of what kind the body is."""
    return StudyCall(name, partial(service.change_in, name, partial(ON_TEST[verb], body)), runs_in_loop=False)


def _heartbeat(call: Heartbeat, work: StudyWork) -> Json:
    test = test_of_study(work)
    lifecycle = test.lifecycle.renew(call.attempt, work.transaction.now)
    work.bind(call.dataset_sha256)
    work.change_test(test, lifecycle)
    assert lifecycle.lease is not None
    return {
        "should_stop": False,
        "reason": None,
        "lease_expires_at": time_text(lifecycle.lease.expires_at),
        "study_state": work.study.state,
    }


def _tell(call: TestResult, work: StudyWork) -> Json | None:
    """Take the result; a repeated tell of the same result answers the same."""
    check_size("members", call.members, TELL_METRICS)
    test = test_of_study(work)
    result = call.model_dump(mode="json")
    before = replace(test.lifecycle, told=_told(test.result))
    told = _told(result)
    assert told is not None
    lifecycle = before.finish(told, TrialState(call.state), call.reason)
    if lifecycle is not None:
        work.bind(call.dataset_sha256)
        work.change_test(test, lifecycle, result=result)
    return test_resource(work.transaction.sql(), work.study)


def _release(call: Release, work: StudyWork) -> Json | None:
    test = test_of_study(work)
    lifecycle = test.lifecycle.release(call.attempt, None)
    if lifecycle is not None:
        work.change_test(test, lifecycle)
    return test_resource(work.transaction.sql(), work.study)


ON_TEST: Mapping[str, Callable[[Any, StudyWork], Json | None]] = {
    "heartbeat": _heartbeat,
    "tell": _tell,
    "release": _release,
}


def test_of_study(work: StudyWork) -> SealedTest:
    """Raise NotFound."""
    test = work.transaction.sql().test(work.study)
    if test is None:
        raise NotFound(f"no test of study {work.study.name!r} was asked for")
    return test


def _told(result: dict[str, Any] | None) -> Told | None:
    if result is None:
        return None
    accuracies = (result["test_accuracy"], result["validation_accuracy"])
    values = None if None in accuracies else accuracies
    return Told(result["attempt"], TrialState(result["state"]), values)
