"""All HPO_* variables; any other name with this prefix counts as a mistake, and is refused.

The server's settings are the fields of Settings, each HPO_ and its name in capitals; the others are listed here.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

PREFIX = "HPO_"
TOKEN, TOKEN_FILE, PRIVATE_KEY_HASH = "HPO_TOKEN", "HPO_TOKEN_FILE", "HPO_PRIVATE_KEY_HASH"

# Read by the commands that call a server, by the SDK, and by workers.
OF_CALLERS = ("HPO_SERVER", TOKEN, TOKEN_FILE, "HPO_DATA")
# For docker-compose.yml and its containers; the commands accept and ignore them.
OF_COMPOSE = (
    *("HPO_PORT", "HPO_DASHBOARD_PORT", "HPO_WORKER_PROCESSES", "HPO_BACKUP_SECONDS", "HPO_BACKUPS_KEPT"),
    *("HPO_DB_MEMORY", "HPO_SERVER_MEMORY", "HPO_WORKER_MEMORY"),
    *("HPO_DOMAIN", "HPO_TLS", "HPO_TLS_ADDRESS", "HPO_HTTP", "HPO_HTTPS", "HPO_HTTP_PORT", "HPO_HTTPS_PORT"),
    "HPO_UPSTREAM",
)
# hpo agent gives these to the command that it runs, which may be a command of ours.
OF_A_TRIAL = ("HPO_STUDY", "HPO_TRIAL", "HPO_SEED", "HPO_CHECKPOINTS")
# Between our own processes, and in the tests.
INNER = ("HPO_LIFELINE", "HPO_PICTURES", "HPO_SECRETS_DESCRIPTOR")
FAMILIES = ("HPO_PARAM_", "HPO_DRILL_")  # hpo agent's, and the drills'

_OTHERS = frozenset(OF_CALLERS + OF_COMPOSE + OF_A_TRIAL + INNER)
LEAST_LIKENESS = 0.75  # of a name to one that may have been meant


def of_the_server() -> list[str]:
    # imported when needed: most commands do not need it
    from hpo_service.settings import Settings

    return [f"{PREFIX}{field.upper()}" for field in Settings.model_fields]


def faults(environment: Mapping[str, str]) -> list[str]:
    """What is wrong with the HPO_* variables that are set, in words; an empty one counts as unset."""
    given = [name for name, value in environment.items() if name.upper().startswith(PREFIX) and value]
    others = [name for name in given if name not in _OTHERS and not name.startswith(FAMILIES)]
    known = of_the_server() if others else []
    unknown = [_unknown(name, [*OF_CALLERS, *known]) for name in others if name not in known]
    framed = [name for name in given if name in {*OF_CALLERS, *known} - {TOKEN}]
    return unknown + [
        f"{name} begins or ends with white space: take that away"
        for name in framed
        if environment[name] != environment[name].strip()
    ]


def _unknown(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name.upper(), known, 1, LEAST_LIKENESS)
    if near:
        return f"{name} is no setting of hpo, but {near[0]} is: write it so, or unset {name}"
    return f"{name} is no setting of hpo, and names that begin with {PREFIX} are kept for those: unset it"
