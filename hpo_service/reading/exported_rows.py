"""All trials of a study as rows of CSV or JSON, a page at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from hpo_service.domain.measure import to_json
from hpo_service.domain.spreadsheet import cell, csv_text
from hpo_service.domain.study import Study
from hpo_service.domain.trial import Trial
from hpo_service.reading.parquet import PAGE
from hpo_service.reading.resources import time_if_any
from hpo_service.store.record import Record

Text = Literal["csv", "jsonl"]
Row = dict[str, Any]


def head(_record: Record, study: Study) -> tuple[int, bytes]:
    return study.id, csv_text([columns_of(study)]).encode()


def page(name: str, study_id: int, format: Text, after: int, record: Record) -> tuple[bytes, int | None]:
    """The next trials, and the last one's number if more may follow. Raise NotFound if the study was deleted."""
    study = record.same_study(name, study_id)
    found, more = record.trials.by_number(study, None, after, PAGE, with_metrics=False)
    columns = columns_of(study)
    rows = [_row(columns, trial) for trial in found]
    if format == "csv":
        text = csv_text([cell(row.get(column)) for column in columns] for row in rows).encode()
    else:
        text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows).encode()
    if more:
        return text, found[-1].number
    record.same_study(name, study_id)  # again: else the page is short because they were deleted
    return text, None


def columns_of(study: Study) -> list[str]:
    count = len(study.spec.directions)
    values = ["value"] if count == 1 else [f"value_{index}" for index in range(count)]
    params = [f"params_{name}" for name in study.spec.search_space.names()]
    rest = ["attempt", "worker_id", "round", "seed", "started_at", "finished_at", "reason", "replicate_of"]
    return ["number", "state", *values, *params, *rest]


def _row(columns: Sequence[str], trial: Trial) -> Row:
    row: Row = dict.fromkeys(columns)
    row.update(number=trial.number, state=str(trial.state), attempt=trial.lifecycle.attempt, worker_id=trial.worker_id)
    row.update(round=trial.round, seed=trial.seed, reason=trial.lifecycle.reason, replicate_of=trial.replicate_of)
    row.update(started_at=time_if_any(trial.started_at), finished_at=time_if_any(trial.finished_at))
    row.update(zip(columns[2:], map(to_json, trial.values or ()), strict=False))
    row.update({f"params_{name}": value for name, value in trial.params.items()})
    return row
