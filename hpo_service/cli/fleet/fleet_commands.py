"""`hpo fleet`: start workers on an engine, list them, and stop them."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from typing import Annotated

import typer

from hpo_service.cli import wording
from hpo_service.cli.console import say, say_json
from hpo_service.cli.exits import CommandFailed
from hpo_service.cli.fleet.engines import ENGINES, EngineName
from hpo_service.cli.fleet.fleet_record import HPO, Fleet, all_fleets, read_fleet
from hpo_service.cli.options import AsJson, Server, connect, print_result
from hpo_service.domain.errors import NotFound

fleet_app = typer.Typer(no_args_is_help=True, help="Workers on many machines.")

OfStudy = Annotated[str, typer.Option("--study", metavar="NAME", help="The study that they train.")]


@fleet_app.command()
def up(
    study: OfStudy,
    engine: Annotated[
        EngineName,
        typer.Option(help="local: processes of this machine; slurm: a job array; kubernetes: a job; ray: actors."),
    ],
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=100_000, help="How many workers.")],
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND…", help="A command a trial, as for hpo agent, or options of hpo worker."),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(metavar="PACKAGE.MODULE:FUNCTION", help="Train with your own function.")
    ] = None,
    cpus: Annotated[int, typer.Option(min=1, max=1024, help="For each.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, max=64, help="For each.")] = 0,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=TEXT", help="What their machines have; may be repeated.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION", help="Of the engine's own: --option=--partition=gpu, --option=image=…; may be repeated."
        ),
    ] = None,
    server: Server = None,
    json: AsJson = False,
) -> None:
    """Start workers, and keep as many alive until the study gives out no more."""
    with connect(server) as client:
        client.study(study)
        address = client.server
    argv = _argv(study, address, command or [], objective, label or [])
    fleet = Fleet(study, address, engine, count, argv, cpus, gpus, tuple(option or ()))
    _check_there_is_none(fleet)
    fleet.save()
    try:
        fleet = replace(fleet, ids=ENGINES[engine].up(fleet))
    except BaseException:
        fleet.forget()
        raise
    fleet.save()
    if json:
        say_json({"items": _items(fleet)})
        return
    say(f"{wording.count(count, 'worker')} for {study} on {engine}; their logs: {ENGINES[engine].logs(fleet)}")


@fleet_app.command()
def status(
    study: Annotated[str | None, typer.Option("--study", metavar="NAME", help="Of this study only.")] = None,
    server: Server = None,
    json: AsJson = False,
) -> None:
    """List the workers that were started from here."""
    fleets = list(all_fleets()) if study is None else [_known(study, server)]
    items = [item for fleet in fleets for item in _items(fleet)]
    rows: list[tuple[str, ...]] = [("study", "engine", "id", "state", "host")]
    rows += [tuple(each or "" for each in item.values()) for item in items]
    print_result(json, {"items": items}, wording.columns(rows))


@fleet_app.command()
def down(study: OfStudy, server: Server = None, json: AsJson = False) -> None:
    """Have each worker hand back what it holds, and wait until all have ended."""
    fleet = _known(study, server)
    engine = ENGINES[EngineName(fleet.engine)]
    ended = len(engine.workers(fleet))
    engine.down(fleet)
    fleet.forget()
    print_result(json, {"study": study, "ended": ended}, [f"{wording.count(ended, 'worker')} of {study} ended"])


def _argv(study: str, server: str, command: list[str], objective: str | None, labels: list[str]) -> tuple[str, ...]:
    """The argv of each worker. The key stays in the environment: `ps` shows arguments to everybody."""
    common = ("--server", server, *(part for label in labels for part in ("--label", label)))
    if command and not command[0].startswith("-"):
        return (*HPO, "agent", *common, study, "--", *command)
    trains = () if objective is None else ("--objective", objective)
    return (*HPO, "worker", *common, "--study", study, "--until-done", "--processes", "1", *trains, *command)


def _check_there_is_none(fleet: Fleet) -> None:
    before = read_fleet(fleet.folder)
    if before is not None and ENGINES[EngineName(before.engine)].workers(before):
        raise CommandFailed(f"a fleet for {fleet.study} is up on {before.engine}: hpo fleet down --study {fleet.study}")
    fleet.forget()


def _known(study: str, server: str | None) -> Fleet:
    from hpo_service.client.server_url import DEFAULT_SERVER, checked_server

    address = checked_server(server or os.environ.get("HPO_SERVER") or DEFAULT_SERVER)
    fleet = read_fleet(Fleet(study, address, "", 0, ()).folder)
    if fleet is None:
        raise NotFound(f"no fleet for study {study!r} on {address} was started from here")
    return fleet


def _items(fleet: Fleet) -> list[dict[str, str | None]]:
    workers = ENGINES[EngineName(fleet.engine)].workers(fleet)
    return [{"study": fleet.study, "engine": fleet.engine, **asdict(worker)} for worker in workers]
