"""All trials of a study as a file, read in pages so that a large study fits in little memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Literal

from hpo_service import extras
from hpo_service.domain.errors import Fault, Invalid
from hpo_service.operations.service import Service
from hpo_service.reading import exported_rows, parquet
from hpo_service.reading.exported_rows import Text

Format = Literal["csv", "jsonl", "parquet"]


async def pieces(service: Service, name: str, format: Format) -> AsyncIterator[bytes]:
    """Begin an export; raise NotFound before its first piece."""
    if format == "parquet":
        _check_parquet()
        await service.read_in_process(name, exported_rows.head)
        return service.reads.items_in_process(partial(parquet.pieces, name))
    return _text(service, name, format, *await service.read_in_process(name, exported_rows.head))


def _check_parquet() -> None:
    if not extras.is_installed("parquet"):
        install = extras.install("parquet")
        raise Invalid([Fault("/format", f"parquet needs pyarrow on the server: {install}; or take csv or jsonl")])


async def _text(service: Service, name: str, format: Text, study_id: int, head: bytes) -> AsyncIterator[bytes]:
    if format == "csv":
        yield head
    after: int | None = -1
    while after is not None:
        piece, after = await service.reads.in_process(partial(exported_rows.page, name, study_id, format, after))
        if piece:
            yield piece
