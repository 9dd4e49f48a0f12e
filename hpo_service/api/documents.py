"""What the answers look like, for the OpenAPI document."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from hpo_service.domain.json_types import Json
from hpo_service.domain.narrowing import Change
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
    changes: list[Change]


class StudyDocument(_Document):
    name: str
    directions: list[str]
    search_space: SearchSpace
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
    created_at: str
    dataset_sha256: str | None


class StudyPage(_Document):
    items: list[StudyDocument]
    next_page_token: str | None


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
    artifacts: list[str]


class ArtifactDocument(_Document):
    name: str
    size: int
    sha256: str
    attempt: int
    at: str


class ArtifactsDocument(_Document):
    items: list[ArtifactDocument]


class TrialPage(_Document):
    items: list[TrialDocument]
    next_page_token: str | None


class TrialsDocument(_Document):
    trials: list[TrialDocument]


class AttemptDocument(_Document):
    attempt: int
    worker_id: str
    started_at: str
    ended_at: str | None
    end: AttemptEnd | None


class AttemptsDocument(_Document):
    items: list[AttemptDocument]


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


class BatchResult(_Document):
    status: int
    body: Json


class BatchDocument(_Document):
    results: list[BatchResult]


class ImportancesDocument(_Document):
    importances: dict[str, float]


class WorkerDocument(_Document):
    worker_id: str
    last_seen_at: str
    trials: int
    draining: bool
    labels: dict[str, str]
    told: int
    failed: int


class WorkerPage(_Document):
    items: list[WorkerDocument]
    next_page_token: str | None


class VersionDocument(_Document):
    version: str
    api: str


class HealthDocument(_Document):
    status: str


class ReadinessDocument(_Document):
    ready: bool
    faults: list[str]
