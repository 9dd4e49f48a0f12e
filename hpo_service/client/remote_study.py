"""A study and its trials to work with from afar: ask, report, tell, or optimize an objective."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from hpo_service.client.api_calls import ApiCalls
from hpo_service.client.conclusion import Retry, as_values, conclusion, failed_by
from hpo_service.client.keeps_artifacts import KeepsArtifacts
from hpo_service.client.measures import with_floats
from hpo_service.client.stop_signal import StopSignal
from hpo_service.domain.errors import HpoError, Invalid, LeaseLost, TrialFinished
from hpo_service.domain.json_types import Json
from hpo_service.domain.search_space import Params

FINISHED = ("COMPLETE", "PRUNED", "FAIL")
RETRY_SECONDS = 1.0  # before a trial whose machine has failed is asked for again

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteStudy:
    """A study to search with: ask it for trials, or let it optimize an objective."""

    client: ApiCalls
    name: str

    def read(self) -> Json:
        """The study as it reads; values are floats, inf and nan too."""
        return with_floats(self.client.study(self.name))

    @property
    def best(self) -> Json | None:
        best: Json | None = self.read().get("best")
        return best

    def trials(self, *, state: str | None = None, order_by: str | None = None) -> Iterator[Json]:
        return map(with_floats, self.client.trials(self.name, state=state, order_by=order_by))

    def ask(self, count: int = 1, *, wait_seconds: float = 0, worker_id: str | None = None) -> list[HeldTrial]:
        """Trials to train, held by this program until told, released, or silent for the length of their lease."""
        return self._ask(count, wait_seconds, worker_id)[0]

    def _ask(self, count: int, wait_seconds: float, worker_id: str | None) -> tuple[list[HeldTrial], str | None]:
        """The trials, and the study's state; None where this worker is to ask no more."""
        answer = self.client.ask(worker_id or _this_program(), self.name, count=count, wait_seconds=wait_seconds)
        return self._held(answer), None if answer.get("drain") else answer["study_state"]

    def enqueue(self, *params: Mapping[str, Any]) -> list[Json]:
        return self.client.enqueue(self.name, [{"params": dict(each)} for each in params])

    def optimize(
        self,
        objective: Callable[[HeldTrial], float | Sequence[float] | None],
        n_trials: int | None = None,
        *,
        catch: tuple[type[Exception], ...] = (),
        worker_id: str | None = None,
    ) -> None:
        """Train trials until n_trials are done here or the study gives out no more.

        The lease is kept while the objective runs. An exception makes its trial FAIL, and is raised again
        unless it is one of `catch`; so does a return value that is no number, or too many or too few of them, and the
        next trial is trained. Retry has the trial given out again. A result and the ask for the next trial go in one
        call.
        """
        worker = worker_id or _this_program()
        done, waiting, paused = 0, list[HeldTrial](), False
        while n_trials is None or done < n_trials:
            if not waiting:
                waiting, state = self._ask(1, 20, worker)
                if not waiting and state not in ("ACTIVE", "PAUSED"):
                    return
                paused = self._say_if_paused(state, paused)
            if waiting:
                trial, done = waiting.pop(), done + 1
                is_last = done == n_trials
                with suppress(*catch), suppress(LeaseLost, TrialFinished):
                    told = trial.run(objective, then_ask_for=None if is_last else worker)
                    waiting = self._held(told["next"]) if "next" in told else []
                    if told["state"] not in FINISHED:  # to be tried again
                        done -= 1
                        time.sleep(RETRY_SECONDS)

    def _say_if_paused(self, state: str | None, said: bool) -> bool:
        """Say once, while the study is paused, that it is, and why."""
        if state == "PAUSED" and not said:
            reason = self.read().get("state_reason")
            log.warning("study %s is paused; waiting until it is resumed%s", self.name, f": {reason}" if reason else "")
        return state == "PAUSED"

    def _held(self, answer: Json) -> list[HeldTrial]:
        return [HeldTrial(self.client, given) for given in answer["trials"]]


class HeldTrial(KeepsArtifacts):
    """A trial whose lease this program holds.

    params: its hyperparameters; seed: for the objective's random numbers, the same in every attempt.
    """

    def __init__(self, client: ApiCalls, given: Json) -> None:
        self._client = client
        self._keep_artifacts_of(client, given)
        self.study: str = given["study"]
        self.number: int = given["number"]
        self.attempt: int = given["attempt"]
        self.params: Params = given["params"]
        self.seed: int = given["seed"]
        self.objective: Json | None = given["objective"]
        self.lease_seconds: float = given["lease"]["duration_seconds"]
        self.stop_reason: str | None = None
        self._last_value: float | None = None
        self._obeyed = False

    def __repr__(self) -> str:
        return f"<trial {self.number} of {self.study}, attempt {self.attempt}: {self.params}>"

    @property
    def should_stop(self) -> bool:
        """Whether the objective should return now: the trial is pruned, stopped or cancelled."""
        self._obeyed = self.stop_reason is not None
        return self._obeyed

    def report(self, step: int, value: float, metrics: Mapping[str, Any] | None = None) -> bool:
        """Report an intermediate value; return whether the objective should return now, as should_stop says."""
        self._last_value = float(value)
        report: Json = {"step": step, "value": self._last_value}
        if metrics is not None:
            report["metrics"] = metrics
        self._learn(self._client.report(self.study, self.number, self.attempt, [report]))
        return False if self.stop_reason is None else cast("bool", StopSignal(self._obey))

    def _obey(self) -> None:
        self._obeyed = True

    def heartbeat(self) -> None:
        self._learn(self._client.heartbeat(self.study, self.number, self.attempt))

    def _learn(self, answer: Json) -> None:
        if answer["should_stop"]:
            self.stop_reason = answer["reason"] or "stopped"

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
        told = self._client.tell(
            self.study, self.number, self.attempt, state, values=values, reason=reason, metrics=metrics, retry=retry
        )
        return with_floats(told)

    def release(self, reason: str | None = None) -> Json:
        """Hand the trial back, for somebody else to train."""
        return with_floats(self._client.release(self.study, self.number, self.attempt, reason))

    def run(
        self,
        objective: Callable[[HeldTrial], float | Sequence[float] | None],
        *,
        then_ask_for: str | None = None,
    ) -> Json:
        """Train, with the lease kept, and tell what came out of it. then_ask_for: as in `ApiCalls.tell`."""
        try:
            with _HeartbeatThread(self):
                value = objective(self)
        except (LeaseLost, TrialFinished):
            raise
        except KeyboardInterrupt:
            with suppress(HpoError):
                self.release("interrupted")
            raise
        except Retry as error:
            log.warning("trial %d of %s is to be tried again: %s", self.number, self.study, error)
            return self.tell(**failed_by(error))
        except BaseException as error:
            self.tell(**failed_by(error))
            raise
        result = conclusion(value, self._last_value, self.stop_reason if self._obeyed else None)
        try:
            return self._conclude(result, then_ask_for)
        except Invalid as refusal:  # too many values, or too few
            return self._conclude({"state": "FAIL", "reason": refusal.detail}, then_ask_for)

    def _conclude(self, result: Json, then_ask_for: str | None) -> Json:
        told = self._client.tell(self.study, self.number, self.attempt, then_ask_for=then_ask_for, **result)
        if told["state"] == "FAIL":  # a NaN makes one of what was told as COMPLETE
            log.warning("trial %d of %s has failed: %s", self.number, self.study, told["reason"])
        return told


class _HeartbeatThread:
    """Keeps a lease while the with block runs: a heartbeat every third of its duration."""

    def __init__(self, trial: HeldTrial) -> None:
        self._trial = trial
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{trial.number}", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        # Not joined: a heartbeat on its way does no harm, and the server may take its time.
        self._done.set()

    def _beat(self) -> None:
        while not self._done.wait(self._trial.lease_seconds / 3):
            try:
                self._trial.heartbeat()
            except (LeaseLost, TrialFinished):
                self._trial.stop_reason = "lease_lost"
                return
            except HpoError:
                continue


def new_worker_id() -> str:
    """host-pid-random, in printable ASCII: who holds a trial, for people who look for it."""
    host = "".join(letter if " " < letter <= "~" else "-" for letter in socket.gethostname())[:80]
    return f"{host or 'localhost'}-{os.getpid()}-{secrets.token_hex(3)}"


_worker_ids: dict[int, str] = {}  # by process: a fork is another worker


def _this_program() -> str:
    return _worker_ids.setdefault(os.getpid(), new_worker_id())
