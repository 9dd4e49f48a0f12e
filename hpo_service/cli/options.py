"""The options that many commands share, and how each prints its result."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpo_service.cli.console import say, say_json
from hpo_service.printable import without_password as without_password

if TYPE_CHECKING:
    from hpo_service.client import Client

DEFAULT_DATABASE = "sqlite:///hpo.db"
PATIENCE_SECONDS = 1.0  # of retries, for a server that is just starting or overloaded

Server = Annotated[
    str | None,
    typer.Option("--server", envvar="HPO_SERVER", help="The server's URL.", show_default="http://127.0.0.1:8000"),
]
Database = Annotated[
    str,
    typer.Option("--database", envvar="HPO_DATABASE_URL", help="sqlite:///FILE or postgresql://USER@HOST/NAME."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else on stdout.")]
StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="The study's name.")]
StudyFilePath = Annotated[
    Path, typer.Argument(metavar="STUDY_FILE", help="A study as TOML or JSON, such as studies/mnist.toml.")
]


def connect(server: str | None, token: str | None = None, patience_seconds: float = PATIENCE_SECONDS) -> Client:
    """A client that stops retrying soon, since a person is waiting. token: by default from the environment."""
    # imported late: `hpo --help` shall not wait for it
    import logging

    from hpo_service.client import Client, Retries

    logging.getLogger("hpo_service.client").setLevel(logging.ERROR)  # no warning for each retry
    return Client(server, token, retries=Retries(initial=0.2, deadline=patience_seconds))


def print_result(as_json: bool, result: Any, lines: Iterable[str]) -> None:
    """As JSON, or as the lines that say it to people."""
    if as_json:
        say_json(result)
    else:
        say(*lines)
