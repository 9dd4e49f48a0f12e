"""The exit codes of the commands, and what a command prints on stderr when it fails."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from typing import NoReturn

from hpo_service import extras
from hpo_service.cli.console import note
from hpo_service.domain.errors import HpoError

OK, ERROR, USAGE, NOT_FOUND, NOT_ALLOWED, UNREACHABLE = range(6)

# by the error's code; every other one is ERROR
_EXITS: Mapping[str, int] = {
    "usage": USAGE,
    "not_found": NOT_FOUND,
    "unauthenticated": NOT_ALLOWED,
    "forbidden": NOT_ALLOWED,
    "unreachable": UNREACHABLE,
}

_HINTS: Mapping[str, str] = {
    "unreachable": "start one with `hpo serve`, or name it with --server or HPO_SERVER",
    "unauthenticated": "put a key of this server into HPO_TOKEN",
    "forbidden": "use a key with a wider scope",
}

# Errors that the server logs: their message keeps the request id, by which to find the line.
_OF_THE_SERVER = frozenset({"internal", "unavailable"})


class ErrorInLines(HpoError):
    """An error whose message has several lines. A line break inside one of them is part of a quoted text."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class CommandFailed(ErrorInLines):
    """A command that could not do its work; the message says why and what to do."""

    code = "command_failed"


class UsageError(ErrorInLines):
    """Options that do not go together, or are refused."""

    code = "usage"


class NotInstalled(UsageError):
    """The command needs a part that plain `pip install hpo-service` leaves out."""

    def __init__(self, extra: str, missing: str) -> None:
        super().__init__(f"{missing} is not installed, which this command needs: {extras.install(extra)}")


def fail(error: HpoError) -> NoReturn:
    """Say what went wrong and what to do, and end with the code that stands for it."""
    lines = (
        error.lines
        if isinstance(error, ErrorInLines)
        else [str(error) if error.code in _OF_THE_SERVER else error.detail]
    )
    hint = [_HINTS[error.code]] if error.code in _HINTS else []
    note(f"hpo: {lines[0]}", *lines[1:], *hint)
    sys.exit(_EXITS.get(error.code, ERROR))


def need(extra: str) -> None:
    """Raise NotInstalled unless the extra is installed."""
    if (missing := extras.missing(extra)) is not None:
        raise NotInstalled(extra, missing)


def not_installed(error: ModuleNotFoundError) -> NotInstalled:
    """The extra that brings the module; raise the error itself when none does."""
    extra = extras.extra_of(error.name)
    if extra is None or error.name is None:
        raise error
    return NotInstalled(extra, error.name)


def fail_unexpectedly(error: Exception) -> NoReturn:
    """Print the traceback of a bug, made printable since the error may quote foreign text, and exit."""
    note(*"".join(traceback.format_exception(error)).splitlines())
    sys.exit(ERROR)
