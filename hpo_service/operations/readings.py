"""What is read from the record, as bytes of JSON: functions that the reading process runs, or a thread of the server.

They import nothing that samples or trains, so that the reading process stays small.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

from pydantic_core import to_json

from hpo_service.domain.errors import Fault, Invalid, StudyStateConflict
from hpo_service.domain.study import Study
from hpo_service.operations.resources import attempt_resource, etag, study_resource, trial_resource, trial_resources
from hpo_service.store.record import Record

T = TypeVar("T")
Key = tuple[float | None, int]  # the value and the number of the last trial of a page


def of_study(name: str, work: Callable[[Record, Study], T], record: Record) -> T:
    return work(record, record.study(name))


def unless_overdue(name: str, work: Callable[[Record, Study], T], record: Record) -> tuple[bool, T | None]:
    """Whether a lease of the study has run out; else what `work` finds."""
    study = record.study(name)
    return (True, None) if record.overdue([study.id]) else (False, work(record, study))


def unless_any_overdue(work: Callable[[Record], T], record: Record) -> tuple[list[str], T | None]:
    """The studies in which time has changed something; if there are none, what `work` finds."""
    overdue = record.overdue()
    return overdue, None if overdue else work(record)


def study(record: Record, study: Study) -> tuple[bytes, str]:
    return to_json(study_resource(record, study)), etag(study)


def studies_page(
    record: Record, *, state: str | None, after: int, size: int, only: Collection[str] | None
) -> tuple[bytes, int | None]:
    found = record.studies(state, after, size + 1, only)
    items = [study_resource(record, study) for study in found[:size]]
    return to_json(items), found[size - 1].id if len(found) > size else None


def trial(record: Record, study: Study, *, number: int) -> bytes:
    found = record.trial(study, number)
    return to_json(trial_resource(found, record.reports(study, found)))


def attempts(record: Record, study: Study, *, number: int) -> bytes:
    return to_json([attempt_resource(row) for row in record.attempts(record.trial(study, number))])


def trials_page(
    record: Record, study: Study, *, state: str | None, order_by: str, after: Key | None, size: int
) -> tuple[bytes, Key | None]:
    if order_by == "value":
        if len(study.spec.directions) > 1:
            raise Invalid([Fault("/order_by", "a study with several directions has no order by value")])
        found = record.trials_by_value(study, state, after, size + 1)
    else:
        found = record.trials_by_number(study, state, -1 if after is None else after[1], size + 1)
    items = to_json(trial_resources(record, found[:size]))
    if len(found) <= size:
        return items, None
    last = found[size - 1]
    return items, (last.values[0] if last.values else None, last.number)


def importances(record: Record, study: Study) -> bytes:
    # Optuna is loaded when somebody asks: it takes a second, and most of the memory
    from hpo_service.tuning.importances import importances as importances_of

    if study.tally.complete < 2:
        raise StudyStateConflict(f"importances need two COMPLETE trials; the study has {study.tally.complete}")
    history = record.history_since(study, 0, with_reports=False)
    return to_json({"importances": importances_of(study.spec, history)})
