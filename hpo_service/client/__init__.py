"""The Python SDK: every route of the contract as a method, and on top of them studies and trials to work with.

    with Client("http://127.0.0.1:8000") as hpo:
        study = hpo.create_study("mine", search_space={"lr": log_uniform(1e-5, 1e-1)})
        study.optimize(objective, n_trials=50)

The methods of `Client` take and return the JSON of the contract. What goes wrong is raised in the words of
`hpo_service.domain.errors`, and beside them:

HpoError
├── Refused             any other refusal; `code` says which
├── UnexpectedAnswer    whatever answered, it was not this service
├── Unreachable         nobody answered
└── BrokenOff           an answer that comes piece by piece ended before its end
"""

from hpo_service.client.answers import BrokenOff, Refused, UnexpectedAnswer, Unreachable, error_of, in_one_line
from hpo_service.client.api_calls import FINAL_STATES, new_request_id
from hpo_service.client.artifact_mixin import ArtifactMixin
from hpo_service.client.event_stream import Event, parse_events
from hpo_service.client.held_trial import HeldTrial
from hpo_service.client.http_transport import write_json
from hpo_service.client.objective_result import (
    Retry,
    TrialPruned,
    as_values,
    conclusion,
    ended_by,
    failed_by,
    is_prune,
    storable_text,
)
from hpo_service.client.objective_trial import AnyParameter, Definitions, ObjectiveTrial, TrialLink
from hpo_service.client.recorded_trial import RecordedTrial
from hpo_service.client.remote_study import RemoteStudy, new_worker_id
from hpo_service.client.retries import NEVER, PATIENTLY, Retries
from hpo_service.client.sdk import Client
from hpo_service.client.stop_signal import StopSignal
from hpo_service.domain.errors import Forbidden, RateLimited, Unauthenticated
from hpo_service.domain.json_types import Json
from hpo_service.domain.search_space import choice, integer, log_uniform, uniform

__all__ = [
    "FINAL_STATES",
    "NEVER",
    "PATIENTLY",
    "AnyParameter",
    "ArtifactMixin",
    "BrokenOff",
    "Client",
    "Definitions",
    "Event",
    "Forbidden",
    "HeldTrial",
    "Json",
    "ObjectiveTrial",
    "RateLimited",
    "RecordedTrial",
    "Refused",
    "RemoteStudy",
    "Retries",
    "Retry",
    "StopSignal",
    "TrialLink",
    "TrialPruned",
    "Unauthenticated",
    "UnexpectedAnswer",
    "Unreachable",
    "as_values",
    "choice",
    "conclusion",
    "ended_by",
    "error_of",
    "failed_by",
    "in_one_line",
    "integer",
    "is_prune",
    "log_uniform",
    "new_request_id",
    "new_worker_id",
    "parse_events",
    "storable_text",
    "uniform",
    "write_json",
]
