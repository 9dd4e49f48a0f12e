"""A trial whose lease this program holds: it trains the trial under heartbeats, and tells the result."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from hpo_service.client.api_calls import ApiCalls
from hpo_service.client.artifact_mixin import ArtifactMixin
from hpo_service.client.measures import with_floats
from hpo_service.client.objective_result import Retry, as_values, conclusion, ended_by, is_prune
from hpo_service.client.objective_trial import AnyParameter, ObjectiveTrial
from hpo_service.domain.errors import HpoError, LeaseLost, TrialFinished
from hpo_service.domain.json_types import Json
from hpo_service.domain.search_space import Params

FINISHED = ("COMPLETE", "PRUNED", "FAIL")

log = logging.getLogger(__name__)

Objective = Callable[[ObjectiveTrial], float | Sequence[float] | None]


class DirectLink:
    """Sends every report, suggest and heartbeat at once, as its own request (a worker queues them: OutboxLink)."""

    def __init__(self, client: ApiCalls, study: str, number: int, attempt: int) -> None:
        self._client = client
        self._trial = study, number, attempt
        self.stop_reason: str | None = None

    def report(self, step: int, value: float, metrics: Mapping[str, Any] | None) -> None:
        report: Json = {"step": step, "value": value}
        if metrics is not None:
            report["metrics"] = metrics
        self._learn(self._client.report(*self._trial, [report]))

    def suggest(self, parameters: Mapping[str, AnyParameter]) -> Params:
        return self._client.suggest(*self._trial, parameters)

    def heartbeat(self) -> None:
        self._learn(self._client.heartbeat(*self._trial))

    def _learn(self, answer: Json) -> None:
        if answer["should_stop"]:
            self.stop_reason = answer["reason"] or "stopped"


@dataclass(frozen=True)
class ObjectiveOutcome:
    """The tell's body for an objective that has ended. error: what it raised, unless that was Retry or TrialPruned."""

    result: Json
    error: BaseException | None = None


class HeldTrial(ObjectiveTrial, ArtifactMixin):
    """A trial to train: told, released, or silent for the length of its lease."""

    def __init__(self, client: ApiCalls, given: Json) -> None:
        self._client = client
        self._direct = DirectLink(client, given["study"], given["number"], given["attempt"])
        super().__init__(given, self._direct, client.definitions)
        self._keep_artifacts_of(client, given)
        self.lease_seconds: float = given["lease"]["duration_seconds"]

    def heartbeat(self) -> None:
        self._direct.heartbeat()

    def tell(
        self,
        value: float | Sequence[float] | None = None,
        *,
        state: str = "COMPLETE",
        reason: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        retry: bool = False,
    ) -> Json:
        """Tell the result. The same result may be told again; another one is ResultConflict.

        retry: with FAIL, the machine has failed and not the trial, which is given out again.
        """
        values = None if value is None else as_values(value)
        together = {**self.metrics, **(metrics or {})}
        told = self._client.tell(
            *(self.study, self.number, self.attempt, state),
            values=values,
            reason=reason,
            metrics=together or None,
            retry=retry,
        )
        return with_floats(told)

    def release(self, reason: str | None = None) -> Json:
        """Hand the trial back, for somebody else to train."""
        return with_floats(self._client.release(self.study, self.number, self.attempt, reason))

    def train(self, objective: Objective) -> ObjectiveOutcome:
        """Run the objective with the lease kept. Raise LeaseLost, TrialFinished; KeyboardInterrupt hands it back."""
        try:
            with _lease_kept(self._direct, self.lease_seconds, self.number):
                value = objective(self)
        except (LeaseLost, TrialFinished):
            raise
        except KeyboardInterrupt:
            with suppress(HpoError):
                self.release("interrupted")
            raise
        except BaseException as error:
            if isinstance(error, Retry):
                log.warning("trial %d of %s is to be tried again: %s", self.number, self.study, error)
            is_outcome = isinstance(error, Retry) or is_prune(error)
            return ObjectiveOutcome(ended_by(error, self.stop_reason), None if is_outcome else error)
        return ObjectiveOutcome(conclusion(value, self.last_value, self.obeyed))

    def conclude(self, result: Json, then_ask_for: str | None = None) -> Json:
        """Tell it, or FAIL with the rule that it breaks, as too many values do. then_ask_for: as in `ApiCalls.tell`."""
        try:
            return self._told(result, then_ask_for)
        except HpoError as refusal:
            if refusal.code not in ("invalid", "too_large"):
                raise
            why = refusal.detail
        except TypeError as error:  # a metric that cannot be written as JSON
            why = str(error)
        self.metrics = {}
        return self._told({"state": "FAIL", "reason": why}, then_ask_for)

    def _told(self, result: Json, then_ask_for: str | None) -> Json:
        body = {**result, "metrics": self.metrics} if self.metrics else result
        told = self._client.tell(self.study, self.number, self.attempt, then_ask_for=then_ask_for, **body)
        if told["state"] == "FAIL":  # also when COMPLETE was told with the value NaN
            log.warning("trial %d of %s has failed: %s", self.number, self.study, told["reason"])
        return told


@contextmanager
def _lease_kept(link: DirectLink, lease_seconds: float, number: int) -> Iterator[None]:
    """While the with block runs, a thread sends a heartbeat every third of the lease's duration."""
    done = threading.Event()
    beats = (link, lease_seconds / 3, done)
    threading.Thread(target=_beat, args=beats, name=f"heartbeat-{number}", daemon=True).start()
    try:
        yield
    finally:
        # Not joined: a heartbeat under way does no harm, and the server may be slow to answer it.
        done.set()


def _beat(link: DirectLink, seconds: float, done: threading.Event) -> None:
    while not done.wait(seconds):
        try:
            link.heartbeat()
        except (LeaseLost, TrialFinished):
            link.stop_reason = "lease_lost"
            return
        except HpoError:
            continue
