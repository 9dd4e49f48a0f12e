"""All trials of a study as a file, read in pages so that a large study fits in little memory."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

from hpo_service.domain.measure import to_json
from hpo_service.domain.study import Study
from hpo_service.domain.trial import Trial
from hpo_service.operations import parquet
from hpo_service.operations.resources import time_text
from hpo_service.operations.service import Service
from hpo_service.store.record import Record

PAGE = 1000
Row = dict[str, Any]


async def lines(service: Service, name: str, format: Literal["csv", "jsonl"]) -> AsyncIterator[str]:
    """Begin an export; raise NotFound before the first line."""
    study = await service.read(name, lambda record, study: study)
    return _lines(service, study, format)


async def _lines(service: Service, study: Study, format: str) -> AsyncIterator[str]:
    columns = columns_of(study)
    if format == "csv":
        yield _csv_line(columns)
    async for page in pages(service, study):
        rows = [_row(study, trial) for trial in page]
        if format == "csv":
            yield "".join(_csv_line([_cell(row.get(column)) for column in columns]) for row in rows)
        else:
            yield "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


async def parquet_file(service: Service, name: str) -> AsyncIterator[bytes]:
    """Begin the same as a Parquet file; raise NotFound before the first piece."""
    return await parquet.pieces(service, name, lambda study: pages(service, study))


async def pages(service: Service, study: Study) -> AsyncIterator[Sequence[Trial]]:
    after = -1
    while page := await asyncio.to_thread(service.database.read, _page_after(study, after)):
        yield page
        after = page[-1].number


def _page_after(study: Study, after: int) -> Any:
    def look(record: Record) -> Sequence[Trial]:
        return record.trials_by_number(study, None, after, PAGE)

    return look


def columns_of(study: Study) -> list[str]:
    count = len(study.spec.directions)
    values = ["value"] if count == 1 else [f"value_{index}" for index in range(count)]
    params = [f"params_{name}" for name in study.spec.search_space.names()]
    rest = ["attempt", "worker_id", "round", "seed", "started_at", "finished_at", "reason"]
    return ["number", "state", *values, *params, *rest]


def _row(study: Study, trial: Trial) -> Row:
    columns = columns_of(study)
    row: Row = dict.fromkeys(columns)
    row.update(number=trial.number, state=str(trial.state), attempt=trial.holding.attempt, worker_id=trial.worker_id)
    row.update(round=trial.round, seed=trial.seed, reason=trial.holding.reason)
    row["started_at"] = None if trial.started_at is None else time_text(trial.started_at)
    row["finished_at"] = None if trial.finished_at is None else time_text(trial.finished_at)
    for column, value in zip(columns[2:], _json_values(trial), strict=False):
        row[column] = value
    row.update({f"params_{name}": value for name, value in trial.params.items()})
    return row


def _json_values(trial: Trial) -> list[Any]:
    return [to_json(value) for value in trial.values or ()]


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula is quoted."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") and not _is_number(value):
        return "'" + value
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _csv_line(cells: Sequence[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue()
