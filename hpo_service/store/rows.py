"""From rows to domain values and back."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from pydantic_core import to_json

from hpo_service.domain import measure
from hpo_service.domain.confirmation import Confirmation
from hpo_service.domain.fast_replace import fast_replace
from hpo_service.domain.narrowing import RangeChange
from hpo_service.domain.sealed_test import SealedTest
from hpo_service.domain.search_space import SearchSpace
from hpo_service.domain.sizes import MIB
from hpo_service.domain.study import Failures, Round, Study, StudySpec, StudyState
from hpo_service.domain.trial import AttemptEnd, Lease, Lifecycle, Told, Trial, TrialState
from hpo_service.domain.trial_counts import TrialCounts
from hpo_service.store.bounded_cache import BoundedCache

COUNTER_OF_STATE = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "fail",
}


def counter_of_state(lifecycle: Lifecycle) -> str:
    """The counter of the study that this trial counts in."""
    if lifecycle.state is TrialState.WAITING:
        return "retries" if lifecycle.attempt else "queued"
    return COUNTER_OF_STATE[lifecycle.state]


def study_of(row: Any) -> Study:
    return with_counters(Study(row.id, _spec(_key(row.spec)), StudyState(row.state), row.created_at), row)


def with_counters(study: Study, row: Any) -> Study:
    """The study with what its trials change, as the row has it."""
    return fast_replace(
        study,
        **dict(zip(_OF_STUDY, _of_study(row), strict=True)),
        state=StudyState(row.state),
        counts=TrialCounts(*_of_counts(row)),
        failures=None if row.failures is None else Failures(**json.loads(row.failures)),
        confirmation=_confirmation(row),
    )


def _confirmation(row: Any) -> Confirmation | None:
    if row.confirmation is None:
        return None
    asked = json.loads(row.confirmation)
    counts = {"waiting": row.replicates_waiting, "running": row.replicates_running}
    return Confirmation(**{**asked, "candidates": tuple(asked["candidates"])}, **counts)


def ends_at(spec: StudySpec, created_at: float) -> float | None:
    return None if spec.limits.seconds is None else created_at + spec.limits.seconds


def _key(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"))


# A model takes some ten times as much memory as its text.
_spec: BoundedCache[StudySpec] = BoundedCache(StudySpec.model_validate_json, 2 * MIB)
_search_space: BoundedCache[SearchSpace] = BoundedCache(SearchSpace.model_validate_json, 2 * MIB)


def with_counts(round_: Round, study: Study) -> Round:
    """The round with its counts, where the study has newer ones."""
    if round_.round != study.round or study.round_revision <= round_.revision:
        return round_
    return fast_replace(round_, trials=study.round_trials, finished=study.round_finished, revision=study.round_revision)


def round_of(row: Any, study: Study) -> Round:
    as_written = Round(
        round=row.round,
        search_space=_search_space(_key(row.search_space)),
        first_trial=row.first_trial,
        trials=row.trials,
        finished=row.finished,
        from_trials=tuple(row.from_trials),
        changes=tuple(RangeChange.model_validate(change) for change in row.changes),
        revision=row.revision,
    )
    return with_counts(as_written, study)


def round_row(round_: Round) -> dict[str, Any]:
    return {
        **vars(round_),
        "search_space": round_.search_space.model_dump(mode="json"),
        "changes": [change.model_dump(mode="json") for change in round_.changes],
    }


def trial_of(row: Any, study: Study) -> Trial:
    told = row.told and Told(row.told["attempt"], TrialState(row.told["state"]), floats(row.told["values"]))
    return Trial(
        id=row.id,
        study=study.name,
        number=row.number,
        params=row.params,
        lifecycle=_lifecycle(row, study, told),
        seed=row.seed,
        values=floats(row.values),
        metrics=row.metrics,
        artifacts=tuple(row.artifacts or ()),
        worker_id=row.worker_id,
        stop=row.stop,
        round=row.round,
        started_at=row.started_at,
        finished_at=row.finished_at,
        system_attrs=row.system_attrs,
        distributions=row.distributions,
        user_attrs=row.user_attrs,
        revision=row.revision,
        replicate_of=row.replicate_of,
    )


CHANGING_COLUMNS = (
    *("state", "attempt", "attempt_end", "lapsed", "lease_expires_at", "reason"),
    *("params", "values", "value", "metrics", "artifacts", "stop", "round", "worker_id", "told"),
    *("started_at", "finished_at", "revision", "system_attrs"),
)
TRIAL_COLUMNS = (*CHANGING_COLUMNS, "seed", "distributions", "user_attrs", "replicate_of")


def trial_cells(trial: Trial) -> tuple[Any, ...]:
    """What the driver takes for TRIAL_COLUMNS; documents as JSON text."""
    return (
        *changing_cells(trial),
        trial.seed,
        None if trial.distributions is None else json_text(trial.distributions),
        json_text(trial.user_attrs),
        trial.replicate_of,
    )


def changing_cells(trial: Trial) -> tuple[Any, ...]:
    """The same for CHANGING_COLUMNS."""
    lifecycle, values, told = trial.lifecycle, jsonable(trial.values), trial.lifecycle.told
    return (
        str(lifecycle.state),
        lifecycle.attempt,
        None if lifecycle.ended is None else str(lifecycle.ended),
        lifecycle.lapsed,
        None if lifecycle.lease is None else lifecycle.lease.expires_at,
        lifecycle.reason,
        json_text(trial.params),
        None if values is None else json_text(values),
        None if trial.values is None or not trial.values else trial.values[0],
        None if trial.metrics is None else json_text(trial.metrics),
        json_text(trial.artifacts) if trial.artifacts else None,
        trial.stop,
        trial.round,
        trial.worker_id,
        None if told is None else _told_text(told),
        trial.started_at,
        trial.finished_at,
        trial.revision,
        json_text(trial.system_attrs),
    )


def _told_text(told: Told) -> str:
    return json_text({"attempt": told.attempt, "state": str(told.state), "values": jsonable(told.values)})


def json_text(document: Any) -> str:
    """JSON for the driver, a good deal faster than through the standard encoder."""
    if document == {}:
        return "{}"
    return to_json(document, inf_nan_mode="strings").decode()


def test_of(row: Any, study: Study) -> SealedTest:
    return SealedTest(
        ensemble=row.ensemble,
        number=row.number,
        lifecycle=_lifecycle(row, study, None),
        worker_id=row.worker_id,
        result=row.result,
        finished_at=row.finished_at,
    )


def test_row(test: SealedTest) -> dict[str, Any]:
    lifecycle = test.lifecycle
    return {
        "ensemble": test.ensemble,
        "number": test.number,
        "state": str(lifecycle.state),
        "attempt": lifecycle.attempt,
        "attempt_end": None if lifecycle.ended is None else str(lifecycle.ended),
        "lapsed": lifecycle.lapsed,
        "lease_expires_at": None if lifecycle.lease is None else lifecycle.lease.expires_at,
        "reason": lifecycle.reason,
        "worker_id": test.worker_id,
        "result": test.result,
        "finished_at": test.finished_at,
    }


def _lifecycle(row: Any, study: Study, told: Told | None) -> Lifecycle:
    expires_at = row.lease_expires_at
    return Lifecycle(
        state=TrialState(row.state),
        attempt=row.attempt,
        ended=None if row.attempt_end is None else AttemptEnd(row.attempt_end),
        lapsed=row.lapsed,
        lease=None if expires_at is None else Lease(expires_at, study.spec.lease_seconds),
        told=told,
        reason=row.reason,
    )


def floats(values: Sequence[measure.Jsonable] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(measure.from_json(value) for value in values)


def jsonable(values: Sequence[float] | None) -> list[measure.Jsonable] | None:
    return None if values is None else [measure.to_json(value) for value in values]


def nan_if_null(value: float | None) -> float:
    return math.nan if value is None else value


# What a study's trials change of it: these, by the names that they have in Study and in TrialCounts, and a few more.
_OF_STUDY = (
    *("revision", "version", "touched", "given_out", "next_number", "round"),
    *("round_trials", "round_finished", "round_revision", "exhausted", "sealed", "dataset_sha256"),
)
_OF_COUNTS = ("queued", "retries", "running", "complete", "pruned", "fail")
_of_study, _of_counts = attrgetter(*_OF_STUDY), attrgetter(*_OF_COUNTS)
_OF_CONFIRMATION = ("confirmation", "replicates_waiting", "replicates_running")
STUDY_CHANGING_COLUMNS = ("state", "failures", *_OF_STUDY, *_OF_COUNTS, *_OF_CONFIRMATION)


def counter_cells(study: Study) -> tuple[Any, ...]:
    """What the driver takes for STUDY_CHANGING_COLUMNS."""
    failures = None if study.failures is None else json_text(vars(study.failures))
    confirmation = _confirmation_cells(study.confirmation)
    return (str(study.state), failures, *_of_study(study), *_of_counts(study.counts), *confirmation)


def _confirmation_cells(confirmation: Confirmation | None) -> tuple[str | None, int, int]:
    if confirmation is None:
        return None, 0, 0
    asked = {name: getattr(confirmation, name) for name in ("top", "seeds", "candidates", "of_stopped")}
    return json_text(asked), confirmation.waiting, confirmation.running
