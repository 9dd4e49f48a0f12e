"""Studies, rounds, trials, attempts and workers as the API's JSON documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

from hpo_service.domain import measure
from hpo_service.domain.artifact import Artifact
from hpo_service.domain.confirmation import Ranking, confirmation_resource, ranking
from hpo_service.domain.json_types import Json
from hpo_service.domain.sealed_test import SealedTest
from hpo_service.domain.study import Failures, Round, Study
from hpo_service.domain.trial import BECAUSE, Report, Trial, TrialState
from hpo_service.domain.trial_counts import TrialCounts
from hpo_service.store.record import Record
from hpo_service.store.report_rows import AttemptRow
from hpo_service.store.rows import jsonable
from hpo_service.store.worker_rows import WorkerRow


def time_text(seconds: float) -> str:
    """RFC 3339, UTC, with microseconds. The text of a second is cached, which takes a third of the time."""
    second = math.floor(seconds)
    microseconds = round((seconds - second) * 1e6)
    if microseconds == 1_000_000:
        second, microseconds = second + 1, 0
    return f"{_second_text(second)}.{microseconds:06d}Z"


@lru_cache(maxsize=1000)  # the times of one moment's calls lie in the same few seconds
def _second_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").removesuffix("+00:00")


def time_if_any(seconds: float | None) -> str | None:
    return None if seconds is None else time_text(seconds)


def why_paused(failures: Failures) -> str:
    count = "1 trial has failed" if failures.told == 1 else f"{failures.told} trials have failed"
    last = failures.reason or "no reason was told"
    return (
        f"{count} since {time_text(failures.since)} and none has come through; the last one: {last}. "
        "Mend that, then resume the study; limits.failures says how many it takes"
    )


def etag(study: Study) -> str:
    """Changes with limits, metadata and state, and never comes back for another study of that name."""
    return f'"{study.id}-{study.version}"'


def study_resource(record: Record, study: Study) -> Json:
    return {
        **study.spec.model_dump(mode="json"),
        "state": study.state,
        "state_reason": study.state_reason,
        "counts": counts_by_state(study.counts),
        **_best(record, study),
        "rounds": [round_resource(round_) for round_ in record.rounds(study)],
        "test": test_resource(record, study) if study.sealed else None,
        "confirmation": _confirmation(record, study),
        "created_at": time_text(study.created_at),
        "dataset_sha256": study.dataset_sha256,
    }


def counts_by_state(counts: TrialCounts) -> dict[str, int]:
    return {
        "WAITING": counts.queued + counts.retries,
        "RUNNING": counts.running,
        "COMPLETE": counts.complete,
        "PRUNED": counts.pruned,
        "FAIL": counts.fail,
    }


def _confirmation(record: Record, study: Study) -> Json | None:
    if study.confirmation is None:
        return None
    return confirmation_resource(study.confirmation, confirmed(record, study))


def confirmed(record: Record, study: Study) -> Ranking:
    """The ranking by the replicates' results so far; empty if no confirmation was requested."""
    if study.confirmation is None:
        return Ranking()
    return ranking(study.confirmation.candidates, record.trials.replicates(study), maximize=study.spec.maximizes)


def _best(record: Record, study: Study) -> Json:
    if len(study.spec.directions) > 1:
        return {"front": [_outcome(trial) for trial in front(study, record.trials.complete(study))]}
    best = record.trials.best(study)
    return {"best": _outcome(best[0]) if best else None}


def _outcome(trial: Trial) -> Json:
    return {
        "number": trial.number,
        "params": trial.params,
        "values": jsonable(trial.values),
        "attempt": trial.lifecycle.attempt,
    }


def front(study: Study, complete: Sequence[Trial]) -> list[Trial]:
    """The Pareto front: trials that no other one beats in every direction; of equals all stay."""
    signs = [-1.0 if direction == "maximize" else 1.0 for direction in study.spec.directions]
    costs = [(tuple(s * v for s, v in zip(signs, t.values or (), strict=True)), t) for t in complete]
    unbeaten: list[tuple[float, ...]] = []
    found: list[Trial] = []
    for cost, equals in groupby(sorted(costs, key=itemgetter(0)), key=itemgetter(0)):
        if not any(all(a <= b for a, b in zip(other, cost, strict=True)) for other in unbeaten):
            unbeaten.append(cost)
            found += [trial for _, trial in equals]
    return sorted(found, key=lambda trial: trial.number)


def round_resource(round_: Round) -> Json:
    return {
        "round": round_.round,
        "search_space": round_.search_space.model_dump(mode="json"),
        "first_trial": round_.first_trial,
        "trials": round_.trials,
        "from_trials": list(round_.from_trials),
        "changes": [change.model_dump(mode="json") for change in round_.changes],
    }


def trial_resource(study: Study, trial: Trial, reports: Sequence[Report]) -> Json:
    lifecycle = trial.lifecycle
    return {
        "study": trial.study,
        "number": trial.number,
        "state": lifecycle.state,
        "params": trial.params,
        "values": jsonable(trial.values),
        "attempt": lifecycle.attempt,
        "worker_id": trial.worker_id,
        "reports": [report_resource(report) for report in reports],
        "metrics": trial.metrics,
        "reason": lifecycle.reason,
        "round": trial.round,
        "seed": trial.seed,
        "started_at": time_if_any(trial.started_at),
        "finished_at": time_if_any(trial.finished_at),
        "sampler": trial.drawn_by(study.spec.sampler.name),
        "sampler_reason": trial.system_attrs.get(BECAUSE),
        "replicate_of": trial.replicate_of,
        "artifacts": list(trial.artifacts),
    }


def artifact_resource(artifact: Artifact) -> Json:
    return {
        "name": artifact.name,
        "size": artifact.size,
        "sha256": artifact.sha256,
        "attempt": artifact.attempt,
        "at": time_text(artifact.at),
    }


def report_resource(report: Report) -> Json:
    return {"step": report.step, "value": measure.to_json(report.value), "metrics": report.metrics}


def attempt_resource(attempt: AttemptRow) -> Json:
    times = {"started_at": time_text(attempt.started_at), "ended_at": time_if_any(attempt.ended_at)}
    return {**vars(attempt), **times}


def worker_resource(worker: WorkerRow) -> Json:
    return {
        "worker_id": worker.worker_id,
        "last_seen_at": time_text(worker.last_seen_at),
        "trials": worker.trials,
        "draining": worker.draining,
        "labels": worker.labels,
        "told": worker.told,
        "failed": worker.failed,
    }


def granted_trial(study: Study, trial: Trial) -> Json:
    """A trial as an ask gives it out."""
    return {
        "study": study.name,
        "number": trial.number,
        "attempt": trial.lifecycle.attempt,
        "params": trial.params,
        "seed": trial.seed,
        "objective": study.spec.objective,
        "reports": [],
        "artifacts": list(trial.artifacts),
        "lease": _lease(trial.lifecycle.lease),
    }


def without_objectives(answer: Json) -> Json:
    """An ask's answer as it is stored for repeats: without the objectives, which the studies have and never change."""
    return {**answer, "trials": [{**trial, "objective": None} for trial in answer["trials"]]}


def with_objectives(answer: Json, studies: Sequence[Study]) -> Json:
    """The stored answer with its objectives again, as it was first sent."""
    objectives = {study.name: study.spec.objective for study in studies}
    trials = [
        {**trial, "objective": trial["objective"] or objectives.get(trial["study"])} for trial in answer["trials"]
    ]
    return {**answer, "trials": trials}


def granted_test(study: Study, test: SealedTest, best: Trial) -> Json:
    """The sealed test as an ask gives it out: like a trial, with a purpose and without a number."""
    return {
        "study": study.name,
        "number": None,
        "purpose": "test",
        "attempt": test.lifecycle.attempt,
        "params": best.params,
        "seed": best.seed,
        "ensemble": test.ensemble,
        "objective": study.spec.objective,
        "reports": [],
        "lease": _lease(test.lifecycle.lease),
    }


def _lease(lease: Any) -> Json:
    return {"expires_at": time_text(lease.expires_at), "duration_seconds": lease.duration}


def test_resource(record: Record, study: Study) -> Json | None:
    test = record.test(study)
    if test is None:
        return None
    if test.lifecycle.state is not TrialState.COMPLETE:
        return {
            "state": test.lifecycle.state,
            "ensemble": test.ensemble,
            "attempt": test.lifecycle.attempt,
            "worker_id": test.worker_id,
            "reason": test.lifecycle.reason,
        }
    result = test.result or {}
    best = record.trials.numbered(study, test.number)
    objective = {name: value for name, value in (study.spec.objective or {}).items() if name != "kind"}
    return {
        "state": test.lifecycle.state,
        "test_accuracy": result["test_accuracy"],
        "validation_accuracy": result["validation_accuracy"],
        "gap": result["validation_accuracy"] - result["test_accuracy"],
        "ensemble": test.ensemble,
        "members": result["members"],
        "config": {**objective, **best.params},
        "dataset_sha256": result["dataset_sha256"],
        "number": test.number,
        "at": time_if_any(test.finished_at),
    }
