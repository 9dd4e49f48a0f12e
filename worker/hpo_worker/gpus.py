"""Which GPU a process trains on: one each, by CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import typer

VARIABLE = "CUDA_VISIBLE_DEVICES"
MOST_GPUS = 1024
_RANGE = re.compile(r"(\d{1,4})-(\d{1,4})")
_ONE = re.compile(r"\d{1,4}|(?:GPU|MIG)-[A-Za-z0-9/-]+")

Gpus = Annotated[
    str | None,
    typer.Option(
        metavar="0-7",
        help=f"One of these each, by {VARIABLE}: 0-7, or 0,2,5, or GPU-… as nvidia-smi -L says.",
    ),
]


def gpus_of(given: str | None) -> tuple[str, ...]:
    """0-2,5 as 0, 1, 2, 5. Raise typer.BadParameter."""
    found: list[str] = []
    for part in [] if given is None else given.split(","):
        if (span := _RANGE.fullmatch(part.strip())) is not None:
            found += map(str, range(int(span[1]), int(span[2]) + 1))
        elif _ONE.fullmatch(part.strip()):
            found.append(part.strip())
        else:
            found = []
            break
    if given is not None and not 1 <= len(found) <= MOST_GPUS:
        raise typer.BadParameter(f"{given!r} names no GPUs; write 0-7, or 0,2,5", param_hint="--gpus")
    return tuple(found)


def least_used(gpus: Sequence[str], used: Sequence[str | None]) -> str | None:
    """The GPU that is assigned to the fewest processes, the first of equals; None where no GPU was named."""
    return min(gpus, key=used.count, default=None)


def environment_for(gpu: str | None) -> dict[str, str]:
    return {} if gpu is None else {VARIABLE: gpu}
