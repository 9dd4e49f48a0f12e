"""The HPO_* variables: checked before each command runs, and shown by `hpo doctor`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from hpo_service.cli.exits import UsageError
from hpo_service.cli.options import without_password
from hpo_service.environment import OF_CALLERS, PREFIX, PRIVATE_KEY_HASH, TOKEN, faults

if TYPE_CHECKING:
    from pydantic import ValidationError

SECRET = frozenset({TOKEN, PRIVATE_KEY_HASH})
# It runs even if settings are wrong, and reports what is wrong with them.
DOCTOR = "doctor"


class InForce(NamedTuple):
    """A setting. value: without secrets, and with where it comes from; fault: what is wrong with it."""

    name: str
    value: str
    fault: str | None = None


def check_environment(arguments: Sequence[str]) -> None:
    """Raise UsageError for wrong HPO_* variables, except for --help, --version and `hpo doctor`."""
    words = list(arguments)[: list(arguments).index("--")] if "--" in arguments else list(arguments)
    if not words or words[0] == DOCTOR or {"--help", "--version"} & set(words):
        return
    if found := faults(os.environ):
        raise UsageError("\n".join(found))


def settings_faults(error: ValidationError) -> Mapping[str, str]:
    """By the variable's name: which rule its value breaks, and the value unless it is secret."""
    found = {}
    for fault in error.errors():
        name = f"{PREFIX}{fault['loc'][0]!s}".upper()
        value = "" if name in SECRET else f", not {fault['input']!r}"
        found[name] = f"{name}: {fault['msg']}{value}"
    return found


def settings_in_force(given: Mapping[str, str]) -> Iterator[InForce]:
    """All settings. given: the values of command-line options, by the variable that each replaces."""
    for name in OF_CALLERS:
        value = given.get(name) or os.environ.get(name, "")
        yield InForce(name, _shown(name, value, given) if value else "not set")
    yield from _of_the_server(given)


def _of_the_server(given: Mapping[str, str]) -> Iterator[InForce]:
    from pydantic import ValidationError

    from hpo_service.settings import Settings

    options = {field: given[name] for field in Settings.model_fields if (name := _variable(field)) in given}
    wrong: Mapping[str, str] = {}
    try:
        settings = Settings.model_validate(options)
        values = settings.model_dump()
    except ValidationError as error:
        wrong = settings_faults(error)
        values = {
            field: os.environ.get(_variable(field)) or info.default for field, info in Settings.model_fields.items()
        }
    for field, value in values.items():
        name = _variable(field)
        yield InForce(name, "not set" if value is None else _shown(name, value, given), wrong.get(name))


def _variable(field: str) -> str:
    return f"{PREFIX}{field.upper()}"


def _shown(name: str, value: object, given: Mapping[str, str]) -> str:
    shown = "set" if name in SECRET else without_password(str(value))
    if name in given:
        return f"{shown} (option)"
    return f"{shown} ({'environment' if os.environ.get(name) else 'default'})"
