"""Reads of the record, as bytes of JSON: functions that the reading process runs, or a thread of the server.

They import nothing that samples or trains before it is needed, so that the reading process stays small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from typing import TypeVar

from pydantic_core import to_json

from hpo_service.domain.advice import advice as advice_on
from hpo_service.domain.advice_input import AdviceInput, AdviceTrial, searched_space
from hpo_service.domain.errors import StudyStateConflict
from hpo_service.domain.study import Study
from hpo_service.domain.trial import HistoryTrial
from hpo_service.reading.resources import attempt_resource, confirmed, etag, study_resource
from hpo_service.reading.trial_pieces import PAGE
from hpo_service.store.record import Record

T = TypeVar("T")
MOST_SEEN = 1_000  # trials, for advice
MOST_JUDGED = 10_000  # trials, for importances; all of 100,000 take eight times as long, and change shares by 0.02
FEWEST_BEST, MOST_BEST = 5, 20
MOST_CURVES, MOST_STEPS = 100, 1_000  # trials with their reports, and reports of each
AT_ONCE = 20  # studies, each of which may be large


def of_study(name: str, work: Callable[[Record, Study], T], record: Record) -> T:
    return work(record, record.study(name))


def unless_overdue(name: str, work: Callable[[Record, Study], T], record: Record) -> tuple[bool, T | None]:
    """Whether a lease or the time limit of the study has run out; if not, also what `work` finds."""
    study = record.study(name)
    return (True, None) if record.overdue([study.id]) else (False, work(record, study))


def unless_any_overdue(work: Callable[[Record], T], record: Record) -> tuple[list[str], T | None]:
    """The studies in which a lease or the time limit has run out; if there are none, also what `work` finds."""
    overdue = record.overdue()
    return overdue, None if overdue else work(record)


def study(record: Record, study: Study) -> tuple[bytes, str]:
    return to_json(study_resource(record, study)), etag(study)


def studies_page(
    record: Record, *, state: str | None, after: int, size: int, only: Collection[str] | None
) -> tuple[bytes, int | None]:
    """Up to `size` studies, fewer if they are large, and the id after which the next page starts."""
    items: list[bytes] = []
    left = PAGE
    while True:
        at_once = min(AT_ONCE, size - len(items))
        found = record.studies(state, after, at_once + 1, only)
        for study in found[:at_once]:
            items.append(to_json(study_resource(record, study)))
            after, left = study.id, left - len(items[-1])
            if left < 0:
                break
        is_last = len(found) <= at_once and (not found or after == found[-1].id)
        if is_last or left < 0 or len(items) == size:
            return b"[%s]" % b",".join(items), None if is_last else after


def attempts(record: Record, study: Study, *, number: int) -> bytes:
    return to_json([attempt_resource(row) for row in record.reports.attempts(record.trials.numbered(study, number))])


def importances(record: Record, study: Study) -> bytes:
    """The parameters' importances; those of a large study are computed from an even choice of its trials."""
    # imported when needed: Optuna takes a second to load, and most of the memory
    from hpo_service.tuning.importances import importances as importances_of

    if study.counts.complete < 2:
        raise StudyStateConflict(f"importances need two COMPLETE trials; the study has {study.counts.complete}")
    some = record.trials.finished(study, math.ceil(study.counts.complete / MOST_JUDGED) or 1)
    trials = [
        HistoryTrial(trial.number, trial.state, trial.params, None if trial.value is None else (trial.value,))
        for trial in some
    ]
    return to_json({"importances": importances_of(study.spec, trials)})


def advice(record: Record, study: Study) -> bytes:
    return to_json({"items": [asdict(item) for item in advice_on(advice_input(record, study))]})


def advice_input(record: Record, study: Study) -> AdviceInput:
    """The input of `advice` for this study: a sample of its trials if it is large."""
    from hpo_service.tuning.smooth_fit import smooth_fits  # imported when needed: it loads NumPy

    trials = record.trials.finished(study, math.ceil(study.next_number / MOST_SEEN) or 1)
    seen = AdviceInput(
        study,
        searched_space(study.spec.search_space, [round_.search_space for round_ in record.rounds(study)]),
        trials,
        workers=record.trials.told_by_worker(study),
        ranking=confirmed(record, study),
    )
    if not seen.has_one_direction:
        return seen
    complete, since = _since_the_best(record.trials.values_by_number(study), maximize=study.spec.maximizes)
    fits = smooth_fits(seen.space, trials, maximize=study.spec.maximizes)
    several = min(max(FEWEST_BEST, math.ceil(complete / 10)), MOST_BEST)
    best = [
        AdviceTrial(each.number, each.state, each.params, each.values[0])
        for each in record.trials.best(study, several)
        if each.values
    ]
    some = seen.completed if study.spec.pruner.name == "none" else []
    curves = record.trials.with_curves(study, some[:: math.ceil(len(some) / MOST_CURVES) or 1], MOST_STEPS)
    return replace(seen, best=best, complete=complete, since=since, fits=fits, curves=curves)


def _since_the_best(values: Sequence[float], *, maximize: bool) -> tuple[int, int]:
    """How many there are, and how many came after the best one; of equals the first counts."""
    if not values:
        return 0, 0
    best = max(values) if maximize else min(values)
    return len(values), len(values) - 1 - values.index(best)
