"""`hpo workers`: list the workers, or drain one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from hpo_service.cli import wording
from hpo_service.cli.console import say, say_json
from hpo_service.cli.options import AsJson, Server, connect

SHOWN = {"told": "TOLD", "failed": "FAILED"}  # counts that some servers send


def workers(
    drain: Annotated[
        str | None, typer.Option(metavar="ID", help="Give this one no more trials: it ends after those it has.")
    ] = None,
    server: Server = None,
    json: AsJson = False,
) -> None:
    """List the workers that the server has heard of lately, or drain one."""
    with connect(server) as client:
        if drain is None:
            found: Any = client.workers()
        else:
            found = client.drain(drain)
    if json:
        say_json({"items": found} if drain is None else found)
    elif drain is not None:
        say(f"{drain} is given no more trials; it ends when those it holds have ended ({found['trials']})")
    elif not found:
        say("no worker has asked yet; start one: hpo worker")
    else:
        say(*wording.columns(_rows(found), indent=""))


def _rows(found: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, ...]]:
    found = list(found)
    counts = [name for name in SHOWN if name in found[0]]
    yield ("WORKER", "TRIALS", *(SHOWN[name] for name in counts), "LAST SEEN", "")
    for each in found:
        labels = " ".join(f"{name}={value}" for name, value in (each.get("labels") or {}).items())
        says = "  ".join(filter(None, ("draining" if each["draining"] else "", labels)))
        numbers = (str(each[name]) for name in ("trials", *counts))
        yield (each["worker_id"], *numbers, each["last_seen_at"], says)
