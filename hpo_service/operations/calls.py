"""The bodies of the calls, as the contract gives them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, JsonValue, StringConstraints, model_validator
from pydantic.json_schema import SkipJsonSchema

from hpo_service.domain import sizes
from hpo_service.domain.choices import Choice
from hpo_service.domain.labels import NO_NUL, Labels
from hpo_service.domain.measure import WHOLE, Measure
from hpo_service.domain.refusal import STRICT, refuse
from hpo_service.domain.search_space import MOST_PARAMETERS, Parameter, ParameterName
from hpo_service.domain.study import Caller, Count, StudyName

Number = Annotated[int, Field(ge=0, le=2**31 - 1), WHOLE]
Reason = Annotated[str, StringConstraints(max_length=2000, pattern=NO_NUL)]
GivenParams = dict[str, Choice]
Keep = Annotated[float, Field(gt=0, le=1)]


ReportMetrics = Annotated[dict[str, JsonValue], sizes.bounded("measured at this step", sizes.REPORT_METRICS)]
TellMetrics = Annotated[dict[str, JsonValue], sizes.bounded("measured in the end", sizes.TELL_METRICS)]
_REPORTS = (
    f"of a trial at most {sizes.MOST_STEPS:,} different steps are kept (422), and {sizes.TRIAL_REPORTS:,} bytes of "
    "compact JSON in all (413), over all its calls"
)


class NextAsk(BaseModel):
    """An ask that does not wait, of the study that is spoken of."""

    model_config = STRICT
    worker_id: Caller
    request_id: Caller
    count: Annotated[int, Field(ge=1, le=100), WHOLE] = 1


class Ask(NextAsk):
    wait_seconds: Annotated[float, Field(ge=0, le=30)] = 0
    objectives: (
        Annotated[
            list[Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NO_NUL)]], Field(max_length=1000)
        ]
        | None
    ) = None
    labels: Labels = Field(
        default_factory=dict,  # a default of its own would be copied for every ask, by slow means
        description="what the worker's machine has, for studies that require it",
        json_schema_extra={"default": {}},
    )


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ReportedValue(BaseModel):
    model_config = STRICT
    step: Number
    value: Measure
    metrics: ReportMetrics | None = None


class Reports(BaseModel):
    model_config = STRICT
    attempt: Number
    reports: Annotated[
        list[ReportedValue],
        Field(max_length=sizes.MOST_STEPS, description=_REPORTS, json_schema_extra={"x-maxBytes": sizes.TRIAL_REPORTS}),
    ]
    dataset_sha256: Sha256 | None = None


class Heartbeat(BaseModel):
    model_config = STRICT
    attempt: Number
    dataset_sha256: Sha256 | None = None


class Suggest(BaseModel):
    model_config = STRICT
    attempt: Number
    parameters: Annotated[
        dict[ParameterName, Parameter],
        Field(min_length=1, max_length=MOST_PARAMETERS, description="as in a search space, without `when`"),
    ]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, parameter in self.parameters.items():
            if parameter.when is not None:
                refuse((["parameters", name, "when"], "whether it exists in this trial shows in that it is asked for"))
        return self


class Result(BaseModel):
    model_config = STRICT
    attempt: Number
    state: Literal["COMPLETE", "PRUNED", "FAIL"]
    values: list[Measure] | None = None
    reason: Reason | None = None
    metrics: TellMetrics | None = None
    dataset_sha256: Sha256 | None = None
    retry: Annotated[
        bool,
        Field(
            description="the machine has failed, and not the trial: it is given out again, as after a lease that has "
            "run out, up to limits.attempts times; only with FAIL"
        ),
    ] = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_values(self.state, self.values)
        if self.retry and self.state != "FAIL":
            refuse((["retry"], f"only a FAIL is tried again; this is {self.state}"))
        return self


class Tell(Result):
    """next: what the same worker asks for next, in the same transaction."""

    next: NextAsk | None = None


def check_values(state: str, values: list[float] | None) -> None:
    if state == "FAIL" and values is not None:
        refuse((["values"], "a FAIL has no values"))
    if state == "COMPLETE" and values is None:
        refuse((["values"], "a COMPLETE trial needs its values, one for each direction"))


class Release(BaseModel):
    model_config = STRICT
    attempt: Number
    reason: Reason | None = None


class EnqueuedTrial(BaseModel):
    model_config = STRICT
    params: GivenParams


class Enqueue(BaseModel):
    model_config = STRICT
    request_id: Caller | None = None
    trials: Annotated[list[EnqueuedTrial], Field(min_length=1, max_length=1000)]


class ImportedTrial(BaseModel):
    """reason: of a FAIL or a PRUNED trial, as where it came from; metrics: what else is known of it."""

    model_config = STRICT
    params: GivenParams
    state: Literal["COMPLETE", "PRUNED", "FAIL"]
    values: list[Measure] | None = None
    reason: Reason | None = None
    metrics: TellMetrics | None = None
    reports: Annotated[list[ReportedValue], Field(max_length=sizes.MOST_STEPS, description=_REPORTS)] = []

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_values(self.state, self.values)
        return self


class Import(BaseModel):
    model_config = STRICT
    request_id: Caller | None = None
    trials: Annotated[list[ImportedTrial], Field(min_length=1, max_length=1000)]


class LimitsPatch(BaseModel):
    """Only the limits that are named change; null takes one away."""

    model_config = STRICT
    trials: Count | None = None
    running: Count | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None
    target: float | None = None
    attempts: Annotated[int, Field(ge=1, le=100), WHOLE] | None = None
    failures: Count | None = None


class Patch(BaseModel):
    model_config = STRICT
    limits: LimitsPatch | SkipJsonSchema[None] = None
    metadata: (
        Annotated[dict[str, JsonValue], sizes.bounded("anything of the caller's", sizes.METADATA)]
        | SkipJsonSchema[None]
    ) = None

    @model_validator(mode="before")
    @classmethod
    def _no_nulls(cls, body: Any) -> Any:
        if isinstance(body, dict):
            for name in ("limits", "metadata"):
                if name in body and body[name] is None:
                    refuse(([name], "null; leave it out to keep it as it is"))
        return body


class NarrowByHand(BaseModel):
    model_config = STRICT
    keep: Keep | None = None


class ConfirmRequest(BaseModel):
    model_config = STRICT
    top: Annotated[int, Field(ge=1, le=50, description="so many of the best trials"), WHOLE] = 5
    seeds: Annotated[int, Field(ge=2, le=50, description="so many times each"), WHOLE] = 5


class TestRequest(BaseModel):
    model_config = STRICT
    ensemble: Annotated[int, Field(ge=1, le=100), WHOLE] = 1


class TestResult(BaseModel):
    model_config = STRICT
    attempt: Number
    state: Literal["COMPLETE", "FAIL"]
    test_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    validation_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    members: (
        Annotated[list[JsonValue], Field(max_length=100), sizes.bounded("of the ensemble", sizes.TELL_METRICS)] | None
    ) = None
    dataset_sha256: Sha256 | None = None
    reason: Reason | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        needed = ("test_accuracy", "validation_accuracy", "members", "dataset_sha256")
        missing = [name for name in needed if getattr(self, name) is None]
        if self.state == "COMPLETE" and missing:
            refuse(*(([name], "a COMPLETE test needs it") for name in missing))
        return self


class _BatchCall(BaseModel):
    model_config = STRICT
    study: StudyName
    number: Number


class BatchReport(_BatchCall, Reports):
    call: Literal["report"]


class BatchHeartbeat(_BatchCall, Heartbeat):
    call: Literal["heartbeat"]


class BatchSuggest(_BatchCall, Suggest):
    call: Literal["suggest"]


class BatchTell(_BatchCall, Result):
    call: Literal["tell"]


class BatchRelease(_BatchCall, Release):
    call: Literal["release"]


BatchCall = Annotated[
    BatchReport | BatchHeartbeat | BatchSuggest | BatchTell | BatchRelease, Field(discriminator="call")
]


class Batch(BaseModel):
    model_config = STRICT
    calls: Annotated[list[BatchCall], Field(max_length=1000)]
