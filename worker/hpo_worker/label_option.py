"""The option --label: what a worker's machine has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

Label = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=TEXT", help="What this machine has, for studies that require it; may be repeated."),
]


def labels_of(given: Sequence[str] | None) -> dict[str, str]:
    """From NAME=TEXT; of one name the last counts. Raise typer.BadParameter."""
    labels = {}
    for each in given or ():
        name, is_one, text = each.partition("=")
        if not is_one or not name:
            raise typer.BadParameter(f"{each!r} is no NAME=TEXT, such as gpu=a100", param_hint="--label")
        labels[name] = text
    return labels
