"""`hpo import URL`: take over the studies of a database of Optuna's own, with all that has finished in them."""

from __future__ import annotations

import hashlib
import json as json_format
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from hpo_service.cli.console import say
from hpo_service.cli.exits import CommandFailed
from hpo_service.cli.options import AsJson, Server, connect, print_json, without_password

LARGEST_PART = 500_000  # bytes of JSON in one call; the contract takes 1 MiB
MOST_IN_A_PART = 1000  # trials


def import_studies(
    url: Annotated[str, typer.Argument(metavar="URL", help="Optuna's database: sqlite:///FILE or postgresql://…")],
    server: Server = None,
    study: Annotated[list[str] | None, typer.Option("--study", help="Only this one; may be given again.")] = None,
    json: AsJson = False,
) -> None:
    """Take over studies from a database of Optuna's own; the same command again adds nothing twice."""
    from hpo_service.tuning.optuna_studies import CannotBeRead, read_studies

    taken = []
    try:
        with connect(server) as client:
            for foreign in read_studies(url, study or ()):
                client.create(foreign.body)
                for part in parts(foreign.trials):
                    client.import_trials(foreign.name, part, request_id=_request_id(part))
                taken.append(client.study(foreign.name))
                if not json:
                    left = f", {foreign.left_out} unfinished ones left out" if foreign.left_out else ""
                    say(f"study {foreign.name}: {len(foreign.trials)} trials imported{left}")
    except CannotBeRead as error:
        raise CommandFailed(f"{without_password(url)}: {error}") from None
    if json:
        print_json({"items": taken})


def parts(trials: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """The trials in calls that the server takes: bounded in number and in size."""
    part: list[Mapping[str, Any]] = []
    size = 0
    for trial in trials:
        bytes_of_trial = len(json_format.dumps(trial))
        if part and (size + bytes_of_trial > LARGEST_PART or len(part) == MOST_IN_A_PART):
            yield part
            part, size = [], 0
        part.append(trial)
        size += bytes_of_trial
    if part:
        yield part


def _request_id(part: Sequence[Mapping[str, Any]]) -> str:
    """The same trials have the same request_id, so that the server takes them once."""
    return "import-" + hashlib.sha256(json_format.dumps(part, sort_keys=True).encode()).hexdigest()[:40]
