"""With which code a command ends, and what it says on stderr when it fails."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import NoReturn

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

# What the server's log has a line about: the message names the request.
_OF_THE_SERVER = frozenset({"internal", "unavailable"})


class CommandFailed(HpoError):
    """A command that could not do its work; the message says why and what to do."""

    code = "command_failed"


class UsageError(HpoError):
    """Options that do not go together, or are refused."""

    code = "usage"


def exit_code(error: HpoError) -> int:
    return _EXITS.get(error.code, ERROR)


def fail(error: HpoError) -> NoReturn:
    """Say what went wrong and what to do, and end with the code that stands for it."""
    hint = f"\n{_HINTS[error.code]}" if error.code in _HINTS else ""
    sys.stdout.flush()
    said = str(error) if error.code in _OF_THE_SERVER else error.detail
    print(f"hpo: {said}{hint}", file=sys.stderr)
    sys.exit(exit_code(error))
