"""Which variables of the environment a user's command may see: all but our own, and the database's passwords."""

from __future__ import annotations

PASSED_ON = ("HPO_SERVER", "HPO_DATA")  # of our own; others hold keys and passwords, or belong to another trial
PASSWORDS = ("PGPASSWORD", "PGPASSFILE")


def is_passed_on(variable: str) -> bool:
    return variable in PASSED_ON or not (variable.upper().startswith("HPO_") or variable in PASSWORDS)
