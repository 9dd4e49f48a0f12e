"""`hpo study …`: the calls that people make on a study, one command each."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from hpo_service.cli import wording
from hpo_service.cli.console import confirmed, note, say, say_export, say_json
from hpo_service.cli.exits import CommandFailed, UsageError
from hpo_service.cli.options import AsJson, Server, StudyFilePath, StudyName, connect, print_result
from hpo_service.cli.whole_files import write_pieces
from hpo_service.domain.errors import Invalid, StudyExists

app = typer.Typer(no_args_is_help=True, help="Create studies, look at them, and steer them.")

Study = Mapping[str, Any]


class StudyStateFilter(StrEnum):
    """The names of the domain's StudyState, which `--help` need not import."""

    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"


class ExportFormat(StrEnum):
    csv = "csv"
    jsonl = "jsonl"
    parquet = "parquet"


@app.command()
def create(file: StudyFilePath, server: Server = None, json: AsJson = False) -> None:
    """Create a study from a file; the same file again opens the study that is there."""
    from hpo_service.cli.study_file import read_study_file

    study_file = read_study_file(file)
    spec = study_file.spec()
    with connect(server) as client:
        try:
            study = client.create(study_file.body)
        except Invalid as error:
            raise study_file.server_refusal(error.faults) from None
        except StudyExists:
            raise other_study_exists(study_file.body, client.study(spec.name)) from None
    print_result(json, study, _created(study, study_file.body, client.server))


def _created(study: Study, body: Study, address: str) -> Iterator[str]:
    yield f"study {study['name']} is {study['state']} on {address}"
    yield _goal(study, body)
    yield from _who_trains(study, address)


def _goal(study: Study, body: Study) -> str:
    """Whether the value is maximized or minimized; if the file does not say it, how to minimize."""
    if "direction" in body or "directions" in body:
        return f"what its trials are told is {wording.goal(study)}"
    return 'what its trials are told is maximized, which is the default; for a loss write: direction = "minimize"'


def _who_trains(study: Study, address: str) -> list[str]:
    """The commands that train it; if it has no objective, they run the user's function or command."""
    worker = f"hpo worker --server {address} --study {study['name']} --until-done"
    if study["objective"] is not None:
        return [f"train its trials: {worker}"]
    if study["define_by_run"]:
        return ["train its trials with a function of yours:", f"  {worker} --objective package.module:function"]
    return [
        "train its trials with a function of yours, or with a command a trial:",
        f"  {worker} --objective package.module:function",
        f"  hpo agent --server {address} {study['name']} -- COMMAND",
    ]


def other_study_exists(body: Study, existing: Study) -> CommandFailed:
    """Say in what the study of that name differs from the file, and what to do."""
    name = existing["name"]
    different = [
        key
        for key, given in body.items()
        if key in existing and not _says(given, existing[key]) and key not in ("name", "metadata")
    ]
    where = f" (it differs in {', '.join(different)})" if different else ""
    return CommandFailed(
        f"there is another study {name!r} already{where}; a study never changes once it is created:",
        f"give this one another name, use another database, or remove the old one with `hpo study delete {name}`",
    )


def _says(given: Any, existing: Any) -> bool:
    """Whether the study has all values that the file gives; what the file leaves out is not compared."""
    if isinstance(given, Mapping) and isinstance(existing, Mapping):
        return all(key in existing and _says(value, existing[key]) for key, value in given.items())
    return bool(given == existing)


@app.command("list")
def list_studies(
    state: Annotated[StudyStateFilter | None, typer.Option(help="Only those in this state.")] = None,
    server: Server = None,
    json: AsJson = False,
) -> None:
    """List the studies of a server."""
    with connect(server) as client:
        studies = list(client.studies(state=state))
    if json:
        say_json({"items": studies})
        return
    if not studies:
        say("no studies yet; create one: hpo study create studies/mnist.toml")
        return
    counted = ("COMPLETE", "PRUNED", "FAIL", "RUNNING")
    rows = [("NAME", "STATE", "LIMIT", *counted, "BEST", "CREATED")]
    for study in studies:
        limit = study["limits"]["trials"]
        best = wording.best_value(study)
        rows.append(
            (
                study["name"],
                study["state"],
                "-" if limit is None else str(limit),
                *(str(study["counts"][state]) for state in counted),
                "-" if best is None else wording.number(best, 4),
                study["created_at"],
            )
        )
    say(*wording.columns(rows, indent=""))
    reasons = [(study["name"], study.get("state_reason")) for study in studies]
    say(*(f"{name}: {reason}" for name, reason in reasons if reason))


@app.command()
def show(study: StudyName, server: Server = None, json: AsJson = False) -> None:
    """Show a study: where it stands, its best trial, its ranges."""
    from hpo_service.cli.summary import observe, summary_lines

    with connect(server) as client:
        if json:
            say_json(client.study(study))
            return
        say(*summary_lines(observe(client, study)))


@app.command()
def advice(study: StudyName, server: Server = None, json: AsJson = False) -> None:
    """Say what there is to say of a study: edges, noise, failures, what hardly matters; most important first."""
    with connect(server) as client:
        items = client.advice(study)
    lines = [f"{item['code']}: {item['detail']}" for item in items] or [f"nothing to say of {study}"]
    print_result(json, {"items": items}, lines)


def _verb(name: str, says: str) -> None:
    """Add the command for a method of the client that takes only the study's name and returns the study."""

    def command(study: StudyName, server: Server = None, json: AsJson = False) -> None:
        with connect(server) as client:
            changed = getattr(client, name)(study)
        print_result(json, changed, _state_lines(changed))

    app.command(name, help=says)(command)


_verb("pause", "Give out no trials for now; running ones go on.")
_verb("resume", "Give out trials again.")
_verb("stop", "End the study: running trials finish, no others begin.")
_verb("cancel", "End the study at once: running trials are told to stop.")


@app.command()
def narrow(
    study: StudyName,
    keep: Annotated[float | None, typer.Option(help="The share of the best trials that spans the next ranges.")] = None,
    server: Server = None,
    json: AsJson = False,
) -> None:
    """Start the next round now: close the ranges in on the best trials so far."""
    with connect(server) as client:
        started = client.narrow(study, keep)
    title = f"round {started['round']} of {study}, drawn from {wording.count(len(started['from_trials']), 'trial')}:"
    ranges = ((name, wording.parameter_range(given)) for name, given in started["search_space"].items())
    print_result(json, started, [title, *wording.columns(ranges)])


@app.command()
def limits(
    study: StudyName,
    trials: Annotated[int | None, typer.Option(help="How many trials are given out in all.")] = None,
    running: Annotated[int | None, typer.Option(help="How many at one time.")] = None,
    seconds: Annotated[float | None, typer.Option(help="For how long since the creation.")] = None,
    target: Annotated[float | None, typer.Option(help="The value that is good enough.")] = None,
    attempts: Annotated[int | None, typer.Option(help="How many leases a trial may lose.")] = None,
    failures: Annotated[
        int | None, typer.Option(help="How many trials may fail while none has come through; then it pauses.")
    ] = None,
    server: Server = None,
    json: AsJson = False,
) -> None:
    """Change the limits of a study; raising one makes a completed study active again."""
    names = ("trials", "running", "seconds", "target", "attempts", "failures")
    values = zip(names, (trials, running, seconds, target, attempts, failures), strict=True)
    given = {name: value for name, value in values if value is not None}
    if not given:
        raise UsageError(f"name a limit to change, such as: hpo study limits {study} --trials 200")
    with connect(server) as client:
        changed = client.patch(study, limits=given)
    print_result(json, changed, _state_lines(changed))


@app.command()
def confirm(
    study: StudyName,
    top: Annotated[int, typer.Option(min=1, max=50, help="So many of the best trials.")] = 5,
    seeds: Annotated[int, typer.Option(min=2, max=50, help="So many times each, with seeds that all share.")] = 5,
    server: Server = None,
    json: AsJson = False,
) -> None:
    """Train the best trials of a finished study again: what they are worth, and which of them is the best."""
    from hpo_service.cli.confirmed_words import confirmation_lines

    with connect(server) as client:
        confirming = client.confirm(study, top, seeds)
    is_running = confirming["confirmation"]["state"] == "RUNNING"
    how_to_go_on = _who_trains(confirming, client.server) if is_running else []
    print_result(json, confirming, chain(confirmation_lines(confirming, {}), how_to_go_on))


@app.command("test")
def open_the_test_set(
    study: StudyName,
    ensemble: Annotated[int, typer.Option(min=1, help="So many networks, their probabilities averaged.")] = 1,
    server: Server = None,
    json: AsJson = False,
) -> None:
    """Seal a finished study and have its best configuration evaluated on the test set, once."""
    with connect(server) as client:
        sealed = client.test(study, ensemble)
    line = f"{study} is sealed; a worker evaluates it on the test set: hpo worker --server {client.server}"
    test_set = sealed["test"]
    if test_set and test_set["state"] == "COMPLETE":
        line = f"test accuracy {wording.number(test_set['test_accuracy'], 4)}, evaluated once; {study} is sealed"
    print_result(json, sealed, [line])


@app.command()
def export(
    study: StudyName,
    format: Annotated[ExportFormat, typer.Option("--format", help="How the trials are written.")] = ExportFormat.csv,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A file; otherwise stdout.")] = None,
    server: Server = None,
) -> None:
    """Write the trials of a study as csv, jsonl or parquet."""
    if output is None and format is ExportFormat.parquet and sys.stdout.isatty():
        raise UsageError("parquet is binary: name a file with -o")
    with connect(server) as client:
        pieces = client.export(study, format.value)
        if output is None and sys.stdout.isatty():
            say_export(pieces, as_csv=format is ExportFormat.csv)
            return
        write_pieces(pieces, output)


@app.command()
def artifact(
    study: StudyName,
    name: Annotated[str | None, typer.Argument(help="Such as network.npz; left out, they are listed.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A file; otherwise stdout.")] = None,
    trial: Annotated[int | None, typer.Option(min=0, help="Of this trial.", show_default="of the sealed test")] = None,
    server: Server = None,
    json: AsJson = False,
) -> None:
    """Write an artifact of the sealed test, or of a trial, into a file; without a name, list them."""
    if name is not None and output is None and sys.stdout.isatty():
        raise UsageError("an artifact may be any bytes: name a file with -o")
    with connect(server) as client:
        if name is not None:
            write_pieces(client.artifact(study, trial, name), output)
            return
        items = client.artifacts(study, trial)
    rows = [("name", "bytes", "attempt", "kept at", "sha256")]
    rows += [(item["name"], str(item["size"]), str(item["attempt"]), item["at"], item["sha256"]) for item in items]
    print_result(json, {"items": items}, wording.columns(rows))


@app.command()
def delete(
    study: StudyName,
    force: Annotated[bool, typer.Option("--force", help="Also while trials are running.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first, as a terminal does.")] = False,
    server: Server = None,
) -> None:
    """Remove a study and its trials for good; on a terminal, only after a yes."""
    with connect(server) as client:
        if not yes and sys.stdin.isatty() and sys.stderr.isatty():
            _ask_before_deleting(client.study(study))
        client.delete(study, force=force)
    note(f"deleted {study}")


def _ask_before_deleting(study: Study) -> None:
    """Raise CommandFailed unless somebody says yes."""
    told = f"{wording.count(wording.finished(study), 'finished trial')}, {study['counts']['RUNNING']} running"
    if not confirmed(f"delete the study {study['name']} for good ({told})? [y/N] "):
        raise CommandFailed(f"{study['name']} was left as it is; --yes deletes without asking")


def _state_lines(study: Study) -> Iterator[str]:
    running = study["counts"]["RUNNING"]
    still = f"; {wording.count(running, 'trial')} still running" if running else ""
    yield f"study {study['name']} is {study['state']}, {wording.progress(study)}{still}"
    if reason := study.get("state_reason"):
        yield reason
