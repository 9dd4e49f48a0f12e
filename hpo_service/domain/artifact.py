"""An artifact: bytes that a worker keeps with its trial, or with the sealed test, under a name."""

from __future__ import annotations

from dataclasses import dataclass

ARTIFACT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
MOST_ARTIFACTS = 1000  # names of a trial
MOST_BYTES = 256 * 2**20  # of one, by default
MOST_TOTAL_BYTES = 64 * 2**30  # of a study, by default
SEALED_TEST = -1  # in the place of a trial's number


@dataclass(frozen=True)
class Artifact:
    """key: under which its bytes are stored; at: when, by the database's clock; attempt: the one that stored it."""

    name: str
    key: str
    size: int
    sha256: str
    attempt: int
    at: float
