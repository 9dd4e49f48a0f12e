"""A study: what is searched, how, until when; and the states it goes through."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, JsonValue, StringConstraints, model_validator

from hpo_service.domain.errors import StudyStateConflict
from hpo_service.domain.refusal import STRICT, refuse
from hpo_service.domain.search_space import SearchSpace

StudyName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$")]
Caller = Annotated[str, StringConstraints(pattern=r"^[ -~]{1,128}$")]
Direction = Literal["minimize", "maximize"]
SamplerName = Literal["random", "tpe", "cmaes", "gp", "qmc", "grid", "nsgaii"]
PrunerName = Literal["none", "median", "percentile", "halving", "hyperband", "patient", "threshold", "wilcoxon"]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


class StudyState(StrEnum):
    """
    ACTIVE ⇄ PAUSED                     pause, resume
    ACTIVE | PAUSED → STOPPING          stop: running trials finish
    STOPPING → STOPPED                  once nothing runs
    ACTIVE ⇄ COMPLETED                  a limit is reached and nothing runs; raising the limit
    any → CANCELLED                     cancel: running trials are told to stop (not when sealed)
    """

    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"

    @property
    def gives_out(self) -> bool:
        return self is StudyState.ACTIVE

    @property
    def waits(self) -> bool:
        """Whether an ask has something to wait for."""
        return self in (StudyState.ACTIVE, StudyState.PAUSED)

    @property
    def reason_for_unfinished(self) -> str | None:
        """Why a trial that lapses or is handed back now ends as FAIL, or None if it is given out again."""
        return _UNFINISHED.get(self)


_UNFINISHED = {
    StudyState.STOPPING: "study_stopped",
    StudyState.STOPPED: "study_stopped",
    StudyState.CANCELLED: "study_cancelled",
}

# verb -> state it is called in -> state it leads to; a verb may be repeated in the state it led to
_VERBS: Mapping[str, Mapping[StudyState, StudyState]] = {
    "pause": {StudyState.ACTIVE: StudyState.PAUSED, StudyState.PAUSED: StudyState.PAUSED},
    "resume": {StudyState.PAUSED: StudyState.ACTIVE, StudyState.ACTIVE: StudyState.ACTIVE},
    "stop": {
        StudyState.ACTIVE: StudyState.STOPPING,
        StudyState.PAUSED: StudyState.STOPPING,
        StudyState.STOPPING: StudyState.STOPPING,
        StudyState.STOPPED: StudyState.STOPPED,
    },
    "cancel": dict.fromkeys(StudyState, StudyState.CANCELLED),
}


def state_after(verb: str, state: StudyState) -> StudyState:
    """Return the state that the verb leads to; raise StudyStateConflict where it is not drawn."""
    if state not in _VERBS[verb]:
        allowed = ", ".join(_VERBS[verb])
        raise StudyStateConflict(f"a {state} study cannot {verb}; {verb} is for {allowed}")
    return _VERBS[verb][state]


class SamplerConfig(BaseModel):
    """Who draws the hyperparameters. `params` are the algorithm's own options."""

    model_config = STRICT
    name: SamplerName = "tpe"
    seed: Annotated[int, Field(ge=0, le=2**53)] | None = None
    params: dict[str, JsonValue] = {}


class PrunerConfig(BaseModel):
    """Who ends hopeless trials early. `params` are the algorithm's own options."""

    model_config = STRICT
    name: PrunerName = "none"
    params: dict[str, JsonValue] = {}


class Limits(BaseModel):
    """When giving out ends; null is no limit."""

    model_config = STRICT
    trials: Count | None = None
    running: Count | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None
    target: float | None = None
    attempts: Annotated[int, Field(ge=1, le=100)] = 3

    def raises(self, before: Limits) -> bool:
        """Whether these limits allow anything that those before did not."""
        return (
            _more(self.trials, before.trials)
            or _more(self.running, before.running)
            or _more(self.seconds, before.seconds)
            or self.attempts > before.attempts
            or self.target != before.target
        )


def _more(limit: float | None, before: float | None) -> bool:
    return before is not None and (limit is None or limit > before)


class Narrowing(BaseModel):
    """Coarse to fine: after each round the ranges close in on what the best `keep` of all trials span."""

    model_config = STRICT
    rounds: Annotated[int, Field(ge=1, le=1000)]
    trials_per_round: Annotated[int, Field(ge=1, le=1_000_000)]
    keep: Annotated[float, Field(gt=0, le=1)] = 0.2
    expand: bool = False

    @property
    def trials(self) -> int:
        return self.rounds * self.trials_per_round


Objective = dict[str, JsonValue]


class StudySpec(BaseModel):
    """What a study was created with: the body of POST /v1/studies, and a study file."""

    model_config = STRICT
    name: StudyName
    directions: Annotated[list[Direction], Field(min_length=1, max_length=10)] = ["maximize"]
    search_space: SearchSpace
    sampler: SamplerConfig = SamplerConfig()
    pruner: PrunerConfig = PrunerConfig()
    limits: Limits = Limits()
    lease_seconds: Annotated[float, Field(ge=1, le=86_400)] = 60
    narrowing: Narrowing | None = None
    objective: Objective | None = None
    metadata: dict[str, JsonValue] = {}

    @model_validator(mode="before")
    @classmethod
    def _rounds_bound_the_trials(cls, body: Any) -> Any:
        """limits.trials defaults to rounds × trials_per_round."""
        if not isinstance(body, dict) or not isinstance(body.get("narrowing"), dict):
            return body
        limits, narrowing = body.get("limits", {}), body["narrowing"]
        rounds, per_round = narrowing.get("rounds"), narrowing.get("trials_per_round")
        if not isinstance(limits, dict) or type(rounds) is not int or type(per_round) is not int:
            return body
        if limits.get("trials") is None:
            body = {**body, "limits": {**limits, "trials": rounds * per_round}}
        return body

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.objective is not None:
            _check_kind(self.objective)
        if self.narrowing is None:
            return self
        if len(self.directions) != 1:
            refuse((["narrowing"], f"narrowing needs one direction; this study has {len(self.directions)}"))
        check_rounds_bound(self.limits, self.narrowing)
        return self

    @property
    def kind(self) -> str | None:
        """The kind of the objective; None when the caller's own workers train."""
        return None if self.objective is None else str(self.objective["kind"])

    @property
    def maximizes(self) -> bool:
        return self.directions[0] == "maximize"


def check_rounds_bound(limits: Limits, narrowing: Narrowing) -> None:
    if limits.trials is None or limits.trials > narrowing.trials:
        detail = (
            f"limits.trials ({limits.trials}) may not pass rounds × trials_per_round "
            f"({narrowing.rounds} × {narrowing.trials_per_round} = {narrowing.trials})"
        )
        refuse((["limits", "trials"], detail))


def _check_kind(objective: Objective) -> None:
    kind = objective.get("kind")
    if not isinstance(kind, str) or not 1 <= len(kind) <= 64 or not kind.isprintable():
        refuse((["objective", "kind"], "an objective names its kind: a string of 1 to 64 printable characters"))
