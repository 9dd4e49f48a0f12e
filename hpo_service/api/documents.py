"""What the answers look like, for the OpenAPI document."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, create_model

from hpo_service.domain.json_types import Json
from hpo_service.domain.narrowing import RangeChange
from hpo_service.domain.search_space import SearchSpace
from hpo_service.domain.study import Limits, Narrowing, PrunerConfig, SamplerConfig, StudyState
from hpo_service.domain.trial import AttemptEnd, EndReason, TrialState

Measured = float | Literal["NaN", "Infinity", "-Infinity"]


class _Document(BaseModel):
    """Fields without a default are always there; the others only where they apply."""


class FaultDocument(_Document):
    pointer: str
    detail: str


class Problem(_Document):
    """RFC 9457; `code` is the machine-readable word, `errors` say where a 422 lies."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    errors: list[FaultDocument] | None = None


class BestDocument(_Document):
    number: int
    params: Json
    values: list[Measured]
    attempt: int


class RoundDocument(_Document):
    round: int
    search_space: SearchSpace
    first_trial: int | None
    trials: int
    from_trials: list[int]
    changes: list[RangeChange]


class ConfirmedDocument(_Document):
    number: int
    mean: Measured
    low: Measured
    high: Measured
    values: list[Measured]
    failed: int


class ConfirmationDocument(_Document):
    state: Literal["RUNNING", "COMPLETE"]
    top: int
    seeds: int
    ranking: list[ConfirmedDocument]
    tied: list[int]


class StudyDocument(_Document):
    name: str
    directions: list[str]
    search_space: SearchSpace
    define_by_run: bool
    sampler: SamplerConfig
    pruner: PrunerConfig
    limits: Limits
    lease_seconds: float
    narrowing: Narrowing | None
    objective: Json | None
    requires: dict[str, str]
    metadata: Json
    state: StudyState
    state_reason: str | None
    counts: dict[TrialState, int]
    best: BestDocument | None = None
    front: list[BestDocument] | None = None
    rounds: list[RoundDocument]
    test: Json | None
    confirmation: ConfirmationDocument | None
    created_at: str
    dataset_sha256: str | None


class ReportDocument(_Document):
    step: int
    value: Measured
    metrics: Json


class TrialDocument(_Document):
    study: str
    number: int
    state: TrialState
    params: Json
    values: list[Measured] | None
    attempt: int
    worker_id: str | None
    reports: list[ReportDocument]
    metrics: Json | None
    reason: str | None
    round: int | None
    seed: int
    started_at: str | None
    finished_at: str | None
    sampler: str
    sampler_reason: str | None
    replicate_of: int | None
    artifacts: list[str]


class ArtifactDocument(_Document):
    name: str
    size: int
    sha256: str
    attempt: int
    at: str


class TrialsDocument(_Document):
    trials: list[TrialDocument]


class AttemptDocument(_Document):
    attempt: int
    worker_id: str
    started_at: str
    ended_at: str | None
    end: AttemptEnd | None


class LeaseDocument(_Document):
    expires_at: str
    duration_seconds: float


class GrantedDocument(_Document):
    study: str
    number: int | None
    attempt: int
    params: Json
    seed: int
    objective: Json | None
    reports: list[ReportDocument]
    lease: LeaseDocument
    artifacts: list[str] = []
    purpose: Literal["test"] | None = None
    ensemble: int | None = None


class AskDocument(_Document):
    trials: list[GrantedDocument]
    study_state: StudyState | None = None
    drain: bool | None = None


class ToldDocument(TrialDocument):
    next: AskDocument | None = None


class KeptDocument(_Document):
    should_stop: bool
    reason: Literal[EndReason.PRUNED, EndReason.STOPPED, EndReason.STUDY_CANCELLED] | None
    lease_expires_at: str
    study_state: StudyState


class SuggestDocument(_Document):
    params: Json


class BatchResult(_Document):
    status: int
    body: Json


class BatchDocument(_Document):
    results: list[BatchResult]


class ImportancesDocument(_Document):
    importances: dict[str, float | None]


class AdviceItem(_Document):
    code: Literal[
        "edge",
        "hardly_matters",
        "log_scale",
        "few_trials",
        "within_noise",
        "stagnation",
        "failures",
        "constant",
        "workers",
        "pruning",
    ]
    parameter: str | None
    detail: str
    evidence: Json
    suggestion: Json | None


class WorkerDocument(_Document):
    worker_id: str
    last_seen_at: str
    trials: int
    draining: bool
    labels: dict[str, str]
    told: int
    failed: int


class LastReportDocument(_Document):
    step: int
    value: Measured


class HistoryItem(_Document):
    """A trial without its reports; last_report only while it is RUNNING, metrics only numbers and short texts."""

    number: int
    state: TrialState
    params: Json
    values: list[Measured] | None
    last_report: LastReportDocument | None
    metrics: dict[str, float | bool | str]
    attempt: int
    worker_id: str | None
    reason: str | None
    round: int | None
    started_at: str | None
    finished_at: str | None
    sampler: str
    replicate_of: int | None


class HistoryDocument(_Document):
    """revision: what to send as Last-Event-ID to /events, to hear of all that comes after."""

    study: str
    revision: int
    trials: int
    shown: int
    best_so_far: list[int]
    items: list[HistoryItem]


class CurveDocument(_Document):
    """reports: how many there are; steps and values: some of them, spread evenly, the first and the last among them."""

    number: int
    state: TrialState
    value: Measured | None
    reports: int
    steps: list[int]
    values: list[Measured]


class FailureDocument(_Document):
    reason: str | None
    count: int
    first_trial: int
    last_trial: int


class FailuresDocument(_Document):
    total: int
    items: list[FailureDocument]


class HeldDocument(_Document):
    number: int
    attempt: int
    started_at: str | None
    lease_expires_at: str | None


class StudyWorkerDocument(_Document):
    """counts: the trials that this worker was the last to hold, by their states."""

    worker_id: str
    last_seen_at: str | None
    draining: bool
    holds: list[HeldDocument]
    counts: dict[TrialState, int]


class BestValueDocument(_Document):
    number: int
    value: Measured


class OverviewItem(_Document):
    """best_so_far: [number, value] of the last trials that beat all before them; workers: those that hold trials."""

    name: str
    state: StudyState
    state_reason: str | None
    directions: list[str]
    counts: dict[TrialState, int]
    limits: Limits
    best: BestValueDocument | None
    best_so_far: list[tuple[int, Measured]]
    workers: int
    created_at: str
    active_at: str
    seconds_left: float | None


class VersionDocument(_Document):
    version: str
    api: str


class HealthDocument(_Document):
    status: str


class ReadinessDocument(_Document):
    ready: bool
    faults: list[str]


def _list_of(item: type[BaseModel], name: str) -> type[BaseModel]:
    return create_model(name, items=(list[item], ...))  # type: ignore[valid-type]  # a type that is known when it runs


def _page_of(item: type[BaseModel], name: str) -> type[BaseModel]:
    """A list that goes on where it has a token."""
    return create_model(name, __base__=_list_of(item, name), next_page_token=(str | None, ...))


StudyPage = _page_of(StudyDocument, "StudyPage")
ArtifactsDocument = _list_of(ArtifactDocument, "ArtifactsDocument")
TrialPage = _page_of(TrialDocument, "TrialPage")
AttemptsDocument = _list_of(AttemptDocument, "AttemptsDocument")
AdviceDocument = _list_of(AdviceItem, "AdviceDocument")
WorkerPage = _page_of(WorkerDocument, "WorkerPage")
CurvesDocument = _list_of(CurveDocument, "CurvesDocument")
StudyWorkersDocument = _list_of(StudyWorkerDocument, "StudyWorkersDocument")
OverviewPage = _page_of(OverviewItem, "OverviewPage")
