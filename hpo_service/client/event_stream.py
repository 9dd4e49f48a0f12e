"""Server-sent events, read from the bytes of a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pydantic_core import from_json


class Event(NamedTuple):
    """One server-sent event: `kind` is trial, study or round, `data` the resource as it now reads."""

    id: str
    kind: str
    data: dict[str, Any]


def parse_events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Server-sent events from the bytes of a stream, cut anywhere (HTML standard, section 9.2)."""
    fields: dict[str, list[str]] = {}
    for line in _lines(chunks):
        if line:
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
            continue
        if "data" in fields:
            yield Event(
                id=fields.get("id", [""])[-1],
                kind=fields.get("event", ["message"])[-1],
                data=from_json("\n".join(fields["data"])),
            )
        fields = {}


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode(errors="replace")
