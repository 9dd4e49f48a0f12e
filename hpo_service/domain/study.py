"""A study: what is searched, how, until when; and the states it goes through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from hpo_service.domain import neural_network, sizes
from hpo_service.domain.confirmation import Confirmation
from hpo_service.domain.errors import StudyStateConflict
from hpo_service.domain.fast_replace import fast_replace
from hpo_service.domain.labels import Labels
from hpo_service.domain.measure import WHOLE, whole
from hpo_service.domain.narrowing import RangeChange
from hpo_service.domain.objectives import OBJECTIVES
from hpo_service.domain.refusal import STRICT, refuse
from hpo_service.domain.sampler_facts import SamplerName
from hpo_service.domain.search_space import SearchSpace
from hpo_service.domain.trial import EndReason
from hpo_service.domain.trial_counts import TrialCounts

StudyName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$")]
Caller = Annotated[str, StringConstraints(pattern=r"^[ -~]{1,128}$")]
Direction = Literal["minimize", "maximize"]
PrunerName = Literal["none", "median", "percentile", "halving", "hyperband", "patient", "threshold", "wilcoxon"]
LONGEST_REASON = 300  # of the last failed trial, in a study's state_reason
Count = Annotated[int, Field(ge=1, le=2**31 - 1), WHOLE]


_UNFINISHED = {
    "STOPPING": EndReason.STUDY_STOPPED,
    "STOPPED": EndReason.STUDY_STOPPED,
    "CANCELLED": EndReason.STUDY_CANCELLED,
}


class StudyState(StrEnum):
    """
    ACTIVE ⇄ PAUSED                     pause, or too many failures while nothing has come through; resume
    ACTIVE | PAUSED → STOPPING          stop: running trials finish
    STOPPING → STOPPED                  once nothing runs
    ACTIVE ⇄ COMPLETED                  a limit is reached and nothing runs; raising the limit, or confirming
    STOPPED ⇄ ACTIVE                    confirming its best trials, until that is done
    any → CANCELLED                     cancel: running trials are told to stop (not when sealed)
    """

    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"

    gives_out: bool
    waits: bool  # whether an ask has something to wait for
    reason_for_unfinished: EndReason | None  # of a trial that FAILs once released or expired; None: it waits

    def __init__(self, value: str) -> None:
        self.gives_out = value == "ACTIVE"
        self.waits = value in ("ACTIVE", "PAUSED")
        self.reason_for_unfinished = _UNFINISHED.get(value)


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
    """Return the state that the verb leads to; raise StudyStateConflict where it is not allowed."""
    if state not in _VERBS[verb]:
        allowed = ", ".join(_VERBS[verb])
        raise StudyStateConflict(f"a {state} study cannot {verb}; {verb} is for {allowed}")
    return _VERBS[verb][state]


class SamplerConfig(BaseModel):
    """Who draws the hyperparameters. `params` are the algorithm's own options."""

    model_config = STRICT
    name: SamplerName = "auto"
    seed: Annotated[int, Field(ge=0, le=2**53), WHOLE] | None = None
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
    attempts: Annotated[int, Field(ge=1, le=100), WHOLE] = 3
    failures: Annotated[
        Count | None,
        Field(description="so many told FAILs while nothing has been COMPLETE or PRUNED make the study PAUSED"),
    ] = 20

    def raises(self, before: Limits) -> bool:
        """Whether these limits allow anything that those before did not."""
        return (
            _more(self.trials, before.trials)
            or _more(self.running, before.running)
            or _more(self.seconds, before.seconds)
            or self.attempts > before.attempts
            or _more(self.failures, before.failures)
            or self.target != before.target
        )


def _more(limit: float | None, before: float | None) -> bool:
    return before is not None and (limit is None or limit > before)


class Narrowing(BaseModel):
    """Coarse to fine: after each round the ranges close in on what the best `keep` of all trials span."""

    model_config = STRICT
    rounds: Annotated[int, Field(ge=1, le=1000), WHOLE]
    trials_per_round: Annotated[int, Field(ge=1, le=1_000_000), WHOLE]
    keep: Annotated[float, Field(gt=0, le=1)] = 0.2
    expand: bool = False

    @property
    def trials(self) -> int:
        return self.rounds * self.trials_per_round


Objective = Annotated[dict[str, JsonValue], sizes.bounded("what the workers train", sizes.OBJECTIVE)]
Metadata = Annotated[dict[str, JsonValue], sizes.bounded("anything of the caller's", sizes.METADATA)]


def _with_direction(schema: dict[str, Any]) -> None:
    schema["properties"]["direction"] = {
        "enum": ["minimize", "maximize"],
        "type": "string",
        "description": "short for directions of one; a study has one of the two",
    }


class StudySpec(BaseModel):
    """What a study was created with: the body of POST /v1/studies, and a study file."""

    model_config = STRICT | ConfigDict(json_schema_extra=_with_direction)
    name: StudyName
    directions: Annotated[list[Direction], Field(min_length=1, max_length=10)] = ["maximize"]
    search_space: SearchSpace = SearchSpace({})
    define_by_run: Annotated[bool, Field(description="the search space grows by what trials suggest")] = False
    sampler: SamplerConfig = SamplerConfig()
    pruner: PrunerConfig = PrunerConfig()
    limits: Limits = Limits()
    lease_seconds: Annotated[float, Field(ge=1, le=86_400)] = 60
    narrowing: Narrowing | None = None
    objective: Objective | None = None
    requires: Annotated[Labels, Field(description="what a worker's labels have to be, to be given its trials")] = {}
    metadata: Metadata = {}

    @model_validator(mode="before")
    @classmethod
    def _one_direction(cls, body: Any) -> Any:
        """direction is short for directions of one."""
        if not isinstance(body, dict) or "direction" not in body:
            return body
        if "directions" in body:
            refuse((["direction"], "short for directions of one; a study has one of the two"))
        if body["direction"] not in ("minimize", "maximize"):
            refuse((["direction"], "minimize or maximize"))
        return {
            **{name: given for name, given in body.items() if name != "direction"},
            "directions": [body["direction"]],
        }

    @model_validator(mode="before")
    @classmethod
    def _rounds_bound_the_trials(cls, body: Any) -> Any:
        """limits.trials defaults to rounds × trials_per_round."""
        if not isinstance(body, dict) or not isinstance(body.get("narrowing"), dict):
            return body
        limits, narrowing = body.get("limits", {}), body["narrowing"]
        rounds, per_round = whole(narrowing.get("rounds")), whole(narrowing.get("trials_per_round"))
        if not isinstance(limits, dict) or type(rounds) is not int or type(per_round) is not int:
            return body
        if limits.get("trials") is None:
            body = {**body, "limits": {**limits, "trials": rounds * per_round}}
        return body

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.objective is not None:
            _check_kind(self.objective)
        if self.define_by_run:
            self._check_define_by_run()
        elif not len(self.search_space):
            refuse((["search_space"], "1 to 100 parameters; none is for a study with define_by_run: true"))
        if self.narrowing is None:
            return self
        if len(self.directions) != 1:
            refuse((["narrowing"], f"narrowing needs one direction; this study has {len(self.directions)}"))
        check_rounds_bound(self.limits, self.narrowing)
        return self

    def _check_define_by_run(self) -> None:
        """Refuse what has to know the search space before any trial runs."""
        faults: list[tuple[list[str | int], str]] = []
        if self.sampler.name == "grid":
            faults.append(
                (["sampler", "name"], "a grid has to know its points; with define_by_run use another sampler")
            )
        if self.narrowing is not None:
            faults.append((["narrowing"], "define_by_run has no ranges to narrow: the objective gives them"))
        if self.kind in OBJECTIVES:
            faults.append((["define_by_run"], f"the {self.kind} suggests nothing: give its search_space"))
        if faults:
            refuse(*faults)

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


@dataclass(frozen=True)
class Failures:
    """Trials told as FAIL while none was COMPLETE or PRUNED. since: when the first was; reason: that of the last.

    paused_because: the study's state_reason, once they have paused it.
    """

    told: int
    since: float
    reason: str | None
    paused_because: str | None = None


@dataclass(frozen=True)
class Study:
    """A study as it is recorded. Times are seconds since 1970 by the database's clock.

    revision: rises with every change of the study or of one of its trials
    version: rises with limits, metadata and state (the ETag); touched: the revision at which it or its test last did
    round_trials, round_finished, round_revision: of the round under way, as its Round has them
    dataset_sha256: of the data that it is bound to, once a trial that was trained on it has reported or completed
    failures: counted from its creation, or from when it was last resumed, until a trial is COMPLETE or PRUNED
    """

    id: int
    spec: StudySpec
    state: StudyState
    created_at: float
    revision: int = 0
    version: int = 0
    touched: int = 0
    counts: TrialCounts = field(default_factory=TrialCounts)
    given_out: int = 0
    next_number: int = 0
    round: int = 0
    round_trials: int = 0
    round_finished: int = 0
    round_revision: int = 0
    exhausted: bool = False
    sealed: bool = False
    dataset_sha256: str | None = None
    failures: Failures | None = None
    confirmation: Confirmation | None = None

    @property
    def state_reason(self) -> str | None:
        """Why the study is PAUSED, if its failures and not a caller have paused it."""
        return self.failures.paused_because if self.failures and self.state is StudyState.PAUSED else None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def is_confirming(self) -> bool:
        """Whether replicates of its best trials are still to come."""
        return self.confirmation is not None and self.confirmation.is_under_way

    @property
    def has_been_stopped(self) -> bool:
        """Whether it gives out no trials of its search any more, whatever its limits say."""
        was_stopped = self.confirmation is not None and self.confirmation.of_stopped
        return was_stopped or self.state.reason_for_unfinished is not None

    @property
    def held(self) -> int:
        """How many trials are RUNNING, replicates too."""
        return self.counts.running + (self.confirmation.running if self.confirmation else 0)

    def differs_in_revision_only(self, other: Study) -> bool:
        if self.counts is not other.counts:
            return False  # as after most calls: found at once
        return fast_replace(self, revision=other.revision) == other

    def bound_to(self, dataset_sha256: str | None, *, has_shown_a_value: bool = True) -> Study:
        """Return the study bound to this data; StudyStateConflict if it is bound to other data. None: not said.

        A trial that has shown no value yet does not bind its study, and only studies of the built-in network are bound.
        """
        if dataset_sha256 in (None, self.dataset_sha256) or self.spec.kind != neural_network.KIND:
            return self
        if self.dataset_sha256 is None:
            return fast_replace(self, dataset_sha256=dataset_sha256) if has_shown_a_value else self
        raise StudyStateConflict(
            f"study {self.name!r} is bound to the dataset with the sha256 {self.dataset_sha256}, on which its first "
            f"trial was trained; this one has {dataset_sha256}. Give this worker the same files, or create another "
            "study for these"
        )

    def with_failure(self, now: float, reason: str | None) -> Study:
        """The study after a trial of it was told as FAIL."""
        if self.counts.came_through:
            return self
        before = self.failures or Failures(0, now, None)
        reason = None if reason is None else reason[:LONGEST_REASON]
        return fast_replace(self, failures=fast_replace(before, told=before.told + 1, reason=reason))

    @property
    def has_failed_too_often(self) -> bool:
        """Whether limits.failures is reached while no trial is COMPLETE or PRUNED: more would fail as well."""
        failures, limit = self.failures, self.spec.limits.failures
        if failures is None or limit is None or self.state is not StudyState.ACTIVE:
            return False
        return failures.told >= limit and not self.counts.came_through

    def limit_reached(self, now: float, best: float | None) -> bool:
        """Whether no new trial may be given out any more. best: the best first value so far."""
        limits = self.spec.limits
        if self.exhausted or (limits.trials is not None and self.given_out >= limits.trials):
            return True
        if limits.seconds is not None and now - self.created_at >= limits.seconds:
            return True
        if limits.target is None or best is None:
            return False
        return best >= limits.target if self.spec.maximizes else best <= limits.target

    def may_give(self, round: Round | None) -> int:
        """How many trials it could give out now, at most. round: the one under way, if it is known.

        limits.seconds and limits.target are not checked here, and enqueued trials count as new ones.
        """
        limits, narrowing = self.spec.limits, self.spec.narrowing
        if not self.state.gives_out or self.sealed:
            return 0
        replicates = self.confirmation.waiting if self.confirmation else 0
        if self.has_been_stopped:
            return replicates
        new = 2**31 if limits.trials is None else limits.trials - self.given_out
        if narrowing is not None and round is not None and round.round + 1 < narrowing.rounds:
            new = min(new, narrowing.trials_per_round - round.trials)
        may = self.counts.retries + (0 if self.exhausted else max(new, 0))
        if limits.running is not None:
            may = max(0, min(may, limits.running - self.counts.running))
        return replicates + may

    def next_state(self, now: float, best: float | None) -> StudyState:
        """The state that the study should be in now, by its running trials, its limits and its confirmation."""
        if self.state is StudyState.STOPPING and self.held == 0:
            return StudyState.STOPPED
        if self.state not in (StudyState.ACTIVE, StudyState.COMPLETED) or self.sealed:
            return self.state
        if self.is_confirming:
            return StudyState.ACTIVE
        if not self.search_is_over(now, best):
            return StudyState.ACTIVE
        return StudyState.STOPPED if self.has_been_stopped else StudyState.COMPLETED

    def search_is_over(self, now: float, best: float | None) -> bool:
        """Whether it has nothing more to give out but replicates, and waits for no result."""
        return self.has_been_stopped or (self.counts.unfinished_business == 0 and self.limit_reached(now, best))


@dataclass(frozen=True)
class Round:
    """One pass of the search: the ranges its trials are drawn from, and where these come from."""

    round: int
    search_space: SearchSpace
    first_trial: int | None = None
    trials: int = 0
    finished: int = 0
    from_trials: tuple[int, ...] = ()
    changes: tuple[RangeChange, ...] = ()
    revision: int = 0

    def is_given_out(self, narrowing: Narrowing | None) -> bool:
        """Whether this round has given out all its trials and another round is to follow it."""
        return narrowing is not None and self.round + 1 < narrowing.rounds and self.trials >= narrowing.trials_per_round
