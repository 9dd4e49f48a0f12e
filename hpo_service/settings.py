"""The server's settings, read once: options first, then HPO_* variables, then these defaults.

Each field is HPO_ and its name in capitals (hpo_service/environment.py has the other names).
"""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from hpo_service.domain.artifact import MOST_BYTES, MOST_TOTAL_BYTES
from hpo_service.environment import PREFIX

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Settings(BaseModel):
    database_url: str = "sqlite:///hpo.db"
    # Whether a process beside the server reads for it (docs/decisions/0017); it takes some 100 MB more.
    reading_process: bool = True
    # Calls a second of one key; 0: as many as it likes.
    rate_limit: Annotated[float, Field(ge=0, le=1_000_000)] = 0.0
    # Whether every request has a line in the log (docs/operating.md).
    access_log: bool = False
    # Where artifacts lie: a folder, or a bucket's URL. On SQLite by default beside the database.
    artifacts: str | None = None
    artifact_bytes: Annotated[int, Field(ge=1, le=2**40)] = MOST_BYTES  # of one
    artifact_total_bytes: Annotated[int, Field(ge=1, le=2**50)] = MOST_TOTAL_BYTES  # of a study
    # SHA-256 of a key in no record, drawn by whoever starts this server for himself alone (hpo run).
    private_key_hash: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    # What a connection may take (hpo_service/api/connections.py).
    head_seconds: Seconds = 10.0  # until a request's head is here, from the first byte, or from the connection
    body_seconds: Seconds = 30.0  # until its body is
    # Between two requests: longer than a worker is silent between two reports.
    idle_seconds: Annotated[int, Field(gt=0, le=86_400)] = 75
    stall_seconds: Seconds = 30.0  # without reading any of an answer
    connections: Annotated[int, Field(ge=1, le=1_000_000)] = 2000

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: dict[str, Any]) -> dict[str, Any]:
        """What was not given comes from the environment; an empty variable is as good as none."""
        variables = {field: os.environ.get(f"{PREFIX}{field.upper()}") for field in cls.model_fields}
        return {field: value for field, value in variables.items() if value} | given
