"""`hpo init`: a study file to begin with, which runs as it is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from hpo_service.cli import wording
from hpo_service.cli.exits import CommandFailed, UsageError
from hpo_service.cli.options import AsJson, print_result
from hpo_service.cli.starter_files import COMMAND, COMMAND_CODE, NETWORK, SKLEARN, SKLEARN_CODE


def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The study file to write.")] = Path("study.toml"),
    sklearn: Annotated[bool, typer.Option("--sklearn", help="A scikit-learn model, with its training code.")] = False,
    command: Annotated[bool, typer.Option("--command", help="A script that is run once a trial.")] = False,
    network: Annotated[bool, typer.Option("--network", help="The built-in network on MNIST.")] = False,
    json: AsJson = False,
) -> None:
    """Write a commented study file, and the code that it trains, and say how to run them."""
    if sklearn + command + network != 1:
        raise UsageError("say what you train: --sklearn, --command or --network")
    if file.suffix != ".toml":
        raise UsageError(f"{file}: the name of a study file to write ends in .toml")
    study, code = (SKLEARN, SKLEARN_CODE) if sklearn else (COMMAND, COMMAND_CODE) if command else (NETWORK, None)
    script = file.with_suffix(".py")
    quoted = shlex.quote(str(script))
    training = f" --objective {shlex.quote(f'{script}:objective')}" if sklearn else ""
    if command:
        training = f" -- python3 {quoted} --lr {{lr}} --layers {{layers}}"
    run = f"{wording.hpo_run(file)}{training}"
    files = {file: study.format(name=study_name(file), run=run, script=script)}
    if code is not None:
        files[script] = code
    _write(files)
    lines = [*(f"wrote {each}" for each in files), "run it:", f"  {run}"]
    print_result(json, {"files": list(map(str, files)), "run": run}, lines)


def study_name(file: Path) -> str:
    """A valid study name made from the file's name."""
    name = re.sub(r"[^a-z0-9_-]+", "-", file.stem.lower()).strip("-_")[:63].strip("-_")
    return name or "study"


def _write(files: dict[Path, str]) -> None:
    """Write all files, or none if one of them exists."""
    if there := [file for file in files if file.exists()]:
        raise CommandFailed(f"{there[0]} is there already and is left as it is; give another name: hpo init FILE.toml")
    try:
        for file, text in files.items():
            with file.open("x", encoding="utf-8") as new:
                new.write(text)
    except OSError as error:
        raise CommandFailed(f"{error.filename} cannot be written: {error.strerror}") from None
