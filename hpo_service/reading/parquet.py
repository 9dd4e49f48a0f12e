"""All trials of a study as an Apache Parquet file, one row group per page, each column of one type."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from hpo_service.domain.search_space import CategoricalParameter, IntParameter, Parameter
from hpo_service.domain.study import Study
from hpo_service.domain.trial import Trial
from hpo_service.store.reader import Readable
from hpo_service.store.record import Record

if TYPE_CHECKING:
    import pyarrow

Column = tuple[str, "pyarrow.DataType", Callable[[Trial], Any]]

PAGE = 1000


def pieces(name: str, database: Readable) -> Iterator[bytes]:
    """Yield the file; raise NotFound before the first piece without a study, or later if it is deleted meanwhile.

    Numeric values and parameters are columns of numbers; a parameter whose choices are lists or of several types is
    JSON text. Times are UTC, in microseconds.
    """
    import pyarrow
    import pyarrow.parquet

    study = database.read(lambda record: record.study(name))
    columns = _columns(study)
    schema = pyarrow.schema([(column, kind) for column, kind, _ in columns])
    sink, after = _Sink(), -1
    writer = pyarrow.parquet.ParquetWriter(sink, schema)
    while page := database.read(partial(_page, study, after)):
        arrays = [pyarrow.array([value(trial) for trial in page], kind) for _, kind, value in columns]
        writer.write_batch(pyarrow.record_batch(arrays, schema=schema))
        yield sink.taken()
        after = page[-1].number
    writer.close()
    yield sink.taken()


def _page(study: Study, after: int, record: Record) -> Sequence[Trial]:
    page, _ = record.trials.by_number(study, None, after, PAGE, with_metrics=False)
    record.same_study(study.name, study.id)  # again: else the page may be short because they were deleted
    return page


class _Sink:
    """A write-only file for the writer; `taken` returns what was written since the last call."""

    closed = False

    def __init__(self) -> None:
        self._written: list[bytes] = []
        self._position = 0

    def write(self, data: bytes) -> int:
        self._written.append(bytes(data))
        self._position += len(data)
        return len(data)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def taken(self) -> bytes:
        written, self._written = b"".join(self._written), []
        return written


def _columns(study: Study) -> list[Column]:
    import pyarrow as pa

    count = len(study.spec.directions)
    values = ["value"] if count == 1 else [f"value_{index}" for index in range(count)]
    time = pa.timestamp("us", "UTC")
    return [
        ("number", pa.int64(), lambda trial: trial.number),
        ("state", pa.string(), lambda trial: str(trial.state)),
        *((column, pa.float64(), _value(index)) for index, column in enumerate(values)),
        *(_param(name, study.spec.search_space[name]) for name in study.spec.search_space.names()),
        ("attempt", pa.int64(), lambda trial: trial.lifecycle.attempt),
        ("worker_id", pa.string(), lambda trial: trial.worker_id),
        ("round", pa.int64(), lambda trial: trial.round),
        ("seed", pa.int64(), lambda trial: trial.seed),
        ("started_at", time, lambda trial: _time(trial.started_at)),
        ("finished_at", time, lambda trial: _time(trial.finished_at)),
        ("reason", pa.string(), lambda trial: trial.lifecycle.reason),
        ("replicate_of", pa.int64(), lambda trial: trial.replicate_of),
    ]


def _value(index: int) -> Callable[[Trial], float | None]:
    return lambda trial: None if trial.values is None else trial.values[index]


def _param(name: str, parameter: Parameter) -> Column:
    kind, is_text = _type(parameter)
    column = f"params_{name}"
    if is_text:
        return column, kind, lambda trial: to_json(trial.params[name]).decode() if name in trial.params else None
    return column, kind, lambda trial: trial.params.get(name)


def _type(parameter: Parameter) -> tuple[pyarrow.DataType, bool]:
    """The type of a parameter's column, and whether its values are written as JSON text."""
    import pyarrow as pa

    if isinstance(parameter, CategoricalParameter):
        kinds = {type(choice) for choice in parameter.choices} - {type(None)}
        plain = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
        if kinds == {int, float}:
            return pa.float64(), False
        of_one_kind = plain.get(*kinds) if len(kinds) == 1 else None
        return (pa.string(), True) if of_one_kind is None else (of_one_kind, False)
    return (pa.int64(), False) if isinstance(parameter, IntParameter) else (pa.float64(), False)


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
