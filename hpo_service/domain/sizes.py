"""Size limits of what belongs to one trial or study, over all its calls together. Bytes are those of compact JSON.

A body has its own bound (1 MiB); these hold for what many bodies add up to, and for what is stored or sent many times.
They are rules of the calls, not of the models: what an earlier version has taken stays readable.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from pydantic_core import to_json

from hpo_service.domain.errors import TooLarge

KIB = 2**10
MIB = 2**20

REPORT_METRICS = 64 * KIB
TELL_METRICS = 384 * KIB  # and the members of a sealed test
TRIAL_REPORTS = 32 * MIB  # as they read: {"step", "value", "metrics"}
MOST_STEPS = 100_000  # of a trial
OBJECTIVE = 128 * KIB
METADATA = 128 * KIB
CHOICE = 4 * KIB
LIST_CHOICE = KIB
SEARCH_SPACE = MIB  # that has grown by what trials suggest; one that is given arrives in a body
MOST_ROUNDS = 1000
ROUNDS = 16 * MIB  # the search spaces of a study's rounds

CARRIED_REPORTS = 512 * KIB  # of a trial, in the answer to a worker and in an event
GRANTED = 16 * MIB  # the trials that one ask answers
BATCH_ANSWERS = 32 * MIB


def size_of(document: Any) -> int:
    return len(to_json(document, inf_nan_mode="strings"))


def check_size(what: str, document: Any, most: int) -> int:
    """Return the bytes; raise TooLarge."""
    size = size_of(document)
    if size > most:
        raise TooLarge(f"{what} takes {size:,} bytes as JSON, and {most:,} are kept at most")
    return size


def bounded(what: str, most: int) -> Any:
    """The field of a model with its limit in the API's description; the operation enforces it, not the model."""
    return Field(
        description=f"{what}: at most {most:,} bytes of compact JSON (413)", json_schema_extra={"x-maxBytes": most}
    )
