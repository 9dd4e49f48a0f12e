"""The command line `hpo`. Most commands call a server through the SDK; serve, db, token, doctor and init need none."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.core

from hpo_service import __version__
from hpo_service.cli import (
    doctor,
    import_studies,
    init,
    plot,
    run,
    serve,
    study_commands,
    trial_commands,
    watch,
    workers_command,
)
from hpo_service.cli.console import say
from hpo_service.cli.database_commands import db_app
from hpo_service.cli.exits import OK, CommandFailed, fail, fail_unexpectedly, not_installed
from hpo_service.cli.fleet.fleet_commands import fleet_app
from hpo_service.cli.hidden_secrets import hide_secrets
from hpo_service.cli.parent_death_pipe import exit_with_parent
from hpo_service.cli.settings_in_force import check_environment
from hpo_service.cli.token_commands import token_app
from hpo_service.domain.errors import HpoError
from hpo_service.printable import printable
from hpo_service.standard_streams import open_standard_streams, say_no_more

COMMANDS: Mapping[str, Callable[..., None]] = {
    "run": run.run,
    "init": init.init,
    "serve": serve.serve,
    "watch": watch.watch,
    "plot": plot.plot,
    "workers": workers_command.workers,
    "doctor": doctor.doctor,
    "import": import_studies.import_studies,
}
# Module and help of each. Importing one loads NumPy and the network, so it is imported only if its command is run.
COMMANDS_THAT_TRAIN = {
    "worker": ("hpo_worker.start", "Train trials, of any study of the built-in network or of the studies named."),
    "agent": ("hpo_service.cli.agent", "Train the trials of a study with a command of your own, in any language."),
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
GROUPS = {
    "study": study_commands.app,
    "trial": trial_commands.app,
    "db": db_app,
    "token": token_app,
    "fleet": fleet_app,
}


class Commands(typer.core.TyperGroup):
    """Makes error messages on the command line printable: they quote arguments, which may hold control characters."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _printable_faults():
            return super().make_context(*arguments, **options)

    def invoke(self, context: Any) -> Any:
        with _printable_faults():
            return super().invoke(context)


@contextlib.contextmanager
def _printable_faults() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        message = getattr(error, "message", None)  # click's errors have one, ours do not
        if isinstance(message, str):
            error.message = printable(message)  # type: ignore[attr-defined]
        raise


def command_line(wanted: str = "") -> typer.Typer:
    """The app with all commands. One that trains is imported only if it is the one wanted, otherwise just listed."""
    app = typer.Typer(
        cls=Commands,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        callback=_options,
        help="Hyperparameter optimization: a server that hands out trials, workers that train them.",
    )
    for name, command in COMMANDS.items():
        app.command(name)(command)
    for name, (module, says) in COMMANDS_THAT_TRAIN.items():
        if name == wanted:
            app.command(name)(getattr(import_module(module), name))
        else:
            app.command(name, help=says)(lambda: None)
    for name, group in GROUPS.items():
        app.add_typer(group, name=name)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        say(__version__)
        raise typer.Exit(OK)


def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Options before the command."""


def _wanted(given: Sequence[str]) -> str:
    """The command's name; while the shell completes a line, it is taken from that line."""
    completed = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")  # bash; other shells
    return next(iter([*given, *completed.split()[1:]]), "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and end the process with its exit code."""
    open_standard_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and given[:1] == ["agent"]:
        hide_secrets()
    exit_with_parent()
    try:
        check_environment(given)
        command_line(wanted=_wanted(given))(args=given, prog_name="hpo")
    except HpoError as error:
        fail(error)
    except ModuleNotFoundError as error:
        fail(not_installed(error))
    except BrokenPipeError:
        # the reader of our output, such as `head`, has closed it
        say_no_more()
        sys.exit(OK)
    except OSError as error:
        if error.errno not in _FULL:
            fail_unexpectedly(error)
        say_no_more()
        fail(CommandFailed(f"the output cannot be written: {error.strerror}"))
    except Exception as error:
        fail_unexpectedly(error)
