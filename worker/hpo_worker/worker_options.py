"""What a worker was started with. The token is not among it: it stays in the environment, out of `ps`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Self

from hpo_worker.failure_limit import MAX_FAILURES


@dataclass(frozen=True)
class Options:
    """studies: the named ones, empty for any; objective: "package.module:function", None for the built-in network;
    max_failures: in a row without a report, after which a process ends; 0: never; labels: what the machine has.
    """

    server: str | None = None
    studies: tuple[str, ...] = ()
    until_done: bool = False
    objective: str | None = None
    data: str | None = None
    max_failures: int = MAX_FAILURES
    labels: Mapping[str, str] = field(default_factory=dict)

    def to_argument(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, argument: str) -> Self:
        fields = json.loads(argument)
        return cls(**{**fields, "studies": tuple(fields["studies"])})
