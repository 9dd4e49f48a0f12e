"""All trials of a study as a file, read in pages so that a large study fits in little memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from hpo_service import extras
from hpo_service.domain.errors import Fault, Invalid
from hpo_service.domain.measure import to_json
from hpo_service.domain.spreadsheet import cell, csv_text
from hpo_service.domain.study import Study
from hpo_service.domain.trial import Trial
from hpo_service.operations import parquet
from hpo_service.operations.parquet import PAGE
from hpo_service.operations.resources import time_text
from hpo_service.store.record import Record

if TYPE_CHECKING:  # the reading process, which makes the pages, does without it
    from hpo_service.operations.service import Service

Text = Literal["csv", "jsonl"]
Format = Literal["csv", "jsonl", "parquet"]
Row = dict[str, Any]


async def pieces(service: Service, name: str, format: Format) -> AsyncIterator[bytes]:
    """Begin an export; raise NotFound before its first piece."""
    if format == "parquet":
        _check_parquet()
        await service.read_apart(name, _head)
        return service.items_apart(partial(parquet.pieces, name))
    return _text(service, name, format, *await service.read_apart(name, _head))


def _check_parquet() -> None:
    if not extras.is_installed("parquet"):
        install = extras.install("parquet")
        raise Invalid([Fault("/format", f"parquet needs pyarrow on the server: {install}; or take csv or jsonl")])


async def _text(service: Service, name: str, format: Text, study_id: int, head: bytes) -> AsyncIterator[bytes]:
    if format == "csv":
        yield head
    after: int | None = -1
    while after is not None:
        piece, after = await service.snapshot_apart(partial(_page, name, study_id, format, after))
        if piece:
            yield piece


def _head(_record: Record, study: Study) -> tuple[int, bytes]:
    return study.id, csv_text([columns_of(study)]).encode()


def _page(name: str, study_id: int, format: Text, after: int, record: Record) -> tuple[bytes, int | None]:
    """The next trials, and the last one's number if more may follow. Raise NotFound: the study is another, or gone."""
    study = record.same_study(name, study_id)
    page, more = record.trials.by_number(study, None, after, PAGE, with_metrics=False)
    columns = columns_of(study)
    rows = [_row(columns, trial) for trial in page]
    if format == "csv":
        text = csv_text([cell(row.get(column)) for column in columns] for row in rows).encode()
    else:
        text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows).encode()
    if more:
        return text, page[-1].number
    record.same_study(name, study_id)  # still: else the page is short because they were deleted
    return text, None


def columns_of(study: Study) -> list[str]:
    count = len(study.spec.directions)
    values = ["value"] if count == 1 else [f"value_{index}" for index in range(count)]
    params = [f"params_{name}" for name in study.spec.search_space.names()]
    rest = ["attempt", "worker_id", "round", "seed", "started_at", "finished_at", "reason", "replicate_of"]
    return ["number", "state", *values, *params, *rest]


def _row(columns: Sequence[str], trial: Trial) -> Row:
    row: Row = dict.fromkeys(columns)
    row.update(number=trial.number, state=str(trial.state), attempt=trial.holding.attempt, worker_id=trial.worker_id)
    row.update(round=trial.round, seed=trial.seed, reason=trial.holding.reason, replicate_of=trial.replicate_of)
    row["started_at"] = None if trial.started_at is None else time_text(trial.started_at)
    row["finished_at"] = None if trial.finished_at is None else time_text(trial.finished_at)
    for column, value in zip(columns[2:], _json_values(trial), strict=False):
        row[column] = value
    row.update({f"params_{name}": value for name, value in trial.params.items()})
    return row


def _json_values(trial: Trial) -> list[Any]:
    return [to_json(value) for value in trial.values or ()]
