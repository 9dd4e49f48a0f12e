"""A trial: one set of hyperparameters, its attempts, and the one result it gets.

Pure functions: each takes the present state and the time, and returns the next state or raises the contract's error.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hpo_service.domain.errors import LeaseLost, ResultConflict, TrialFinished
from hpo_service.domain.fast_replace import fast_replace
from hpo_service.domain.outage import Outage
from hpo_service.domain.search_space import Params


class TrialState(StrEnum):
    """
    WAITING → RUNNING                       given out: attempt rises by one
    RUNNING → WAITING                       the lease ran out, was released, or the machine was told to have failed
    RUNNING → COMPLETE | PRUNED | FAIL      told, or attempts exhausted
    WAITING → FAIL                          stopped before it ran; or told late by its last holder, any result
    """

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"

    is_finished: bool

    def __init__(self, value: str) -> None:
        self.is_finished = value in ("COMPLETE", "PRUNED", "FAIL")


class AttemptEnd(StrEnum):
    TOLD = "told"
    EXPIRED = "expired"
    RELEASED = "released"


class EndReason(StrEnum):
    """Why a trial ends without a result of its own, or shall end: what workers say themselves are other words."""

    PRUNED = "pruned"  # the pruner thinks it hopeless; its worker is told
    STOPPED = "stopped"  # by a person
    STUDY_STOPPED = "study_stopped"
    STUDY_CANCELLED = "study_cancelled"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"  # so many leases have run out


@dataclass(frozen=True)
class Told:
    """The result as the worker told it: what a repeated tell must equal.

    In a trial that has not finished: the last tell that said that the machine has failed.
    """

    attempt: int
    state: TrialState
    values: tuple[float, ...] | None

    def same(self, other: Told | None) -> bool:
        return (
            other is not None
            and (self.attempt, self.state) == (other.attempt, other.state)
            and _same_values(self.values, other.values)
        )


def _same_values(a: tuple[float, ...] | None, b: tuple[float, ...] | None) -> bool:
    if a is None or b is None:
        return a is b
    return len(a) == len(b) and all(x == y or (math.isnan(x) and math.isnan(y)) for x, y in zip(a, b, strict=True))


@dataclass(frozen=True)
class Lease:
    """The right to work on one trial, as one attempt, until a time of the database's clock (seconds since 1970).

    expires_at: when it ends if there is no outage; `ends_at` adds the outages.
    """

    expires_at: float
    duration: float

    def ends_at(self, outages: Sequence[Outage] = ()) -> float:
        """When it ends unless it is renewed: once its duration has passed without the outages (disjoint, in order).

        After an outage that was felt it lasts as if it had just been renewed, since its holder may be waiting before it
        tries again. That adds at most one duration in all, so that the lease of a dead worker ends even if the server
        is down again and again.
        """
        renewed_at = self.expires_at - self.duration
        counted = end = heard_by = self.expires_at
        for outage in outages:
            if outage.began >= end:
                break
            counted += max(0.0, outage.ended - max(outage.began, renewed_at))
            if outage.is_felt:
                heard_by = outage.ended + self.duration
            end = max(counted, min(heard_by, counted + self.duration))
        return end

    def is_expired(self, now: float, outages: Sequence[Outage] = ()) -> bool:
        # An expiry further away than one lease was set by a clock that has since stepped back.
        return self.expires_at > now + self.duration or self.ends_at(outages) <= now

    def renewed(self, now: float) -> Lease:
        return fast_replace(self, expires_at=now + self.duration)


@dataclass(frozen=True)
class Lifecycle:
    """The state machine of a job (a trial, or the sealed test): its attempts, their leases, and the result told.

    attempt   the last one given out, 0 if none; the fencing token
    ended     how that attempt ended; None while it is held
    lapsed    how many leases have run out
    """

    state: TrialState
    attempt: int = 0
    ended: AttemptEnd | None = None
    lapsed: int = 0
    lease: Lease | None = None
    told: Told | None = None
    reason: str | None = None

    def start_attempt(self, now: float, duration: float) -> Lifecycle:
        return fast_replace(
            self,
            state=TrialState.RUNNING,
            attempt=self.attempt + 1,
            ended=None,
            lease=Lease(now + duration, duration),
            reason=None,
        )

    def renew(self, attempt: int, now: float) -> Lifecycle:
        """Report or heartbeat: renew the lease, or restore it if it has expired and nobody else has the trial."""
        if self.state.is_finished:
            raise TrialFinished(f"the trial has finished as {self.state}")
        self._check_holder(attempt)
        assert self.lease is not None
        lapsed = self.lapsed - 1 if self.ended is AttemptEnd.EXPIRED else self.lapsed
        return fast_replace(
            self,
            state=TrialState.RUNNING,
            ended=None,
            lapsed=lapsed,
            lease=self.lease.renewed(now),
            reason=None,
        )

    def finish(self, told: Told, state: TrialState, reason: str | None) -> Lifecycle | None:
        """Tell: take the result; None when this very result was told before."""
        if self.state.is_finished:
            if told.same(self.told):
                return None
            raise ResultConflict(f"the trial has finished as {self.state}, with another result or attempt")
        self._check_holder(told.attempt)
        lapsed = self.lapsed - 1 if self.ended is AttemptEnd.EXPIRED else self.lapsed
        return fast_replace(
            self, state=state, ended=AttemptEnd.TOLD, lapsed=lapsed, lease=None, told=told, reason=reason
        )

    def retry(self, told: Told, reason: str | None, attempts: int, fail_as: str | None) -> Lifecycle | None:
        """Tell that the machine has failed, which counts as an expired lease; None if this tell was made before."""
        if told.same(self.told):
            return None
        if self.state.is_finished:
            raise ResultConflict(f"the trial has finished as {self.state}, with another result or attempt")
        self._check_holder(told.attempt)
        lapsed = self.lapsed + (self.ended is not AttemptEnd.EXPIRED)
        if fail_as is None and lapsed >= attempts:
            exhausted = EndReason.ATTEMPTS_EXHAUSTED
            fail_as = exhausted if reason is None else f"{exhausted}: {reason}"
        ended = fast_replace(self, ended=AttemptEnd.TOLD, lapsed=lapsed, told=told, reason=fail_as)
        if fail_as is None:
            return fast_replace(ended, state=TrialState.WAITING)
        return fast_replace(ended, state=TrialState.FAIL, lease=None)

    def release(self, attempt: int, fail_as: str | None) -> Lifecycle | None:
        """Release the trial; None if this attempt does not hold it.

        fail_as: why the trial ends as FAIL instead of waiting for another worker.
        """
        if self.state is not TrialState.RUNNING or attempt != self.attempt:
            return None
        if fail_as is not None:
            return fast_replace(self, state=TrialState.FAIL, ended=AttemptEnd.RELEASED, lease=None, reason=fail_as)
        return fast_replace(self, state=TrialState.WAITING, ended=AttemptEnd.RELEASED)

    def expire(
        self, now: float, attempts: int, fail_as: str | None, outages: Sequence[Outage] = ()
    ) -> Lifecycle | None:
        """The lease ran out: back to WAITING, or FAIL after `attempts` of these; None while it is held."""
        if self.state is not TrialState.RUNNING or self.lease is None or not self.lease.is_expired(now, outages):
            return None
        lapsed = self.lapsed + 1
        if fail_as is None and lapsed >= attempts:
            fail_as = EndReason.ATTEMPTS_EXHAUSTED
        if fail_as is not None:
            return fast_replace(
                self,
                state=TrialState.FAIL,
                ended=AttemptEnd.EXPIRED,
                lapsed=lapsed,
                lease=None,
                reason=fail_as,
            )
        return fast_replace(self, state=TrialState.WAITING, ended=AttemptEnd.EXPIRED, lapsed=lapsed)

    def fail_waiting(self, reason: str) -> Lifecycle:
        assert self.state is TrialState.WAITING
        return fast_replace(self, state=TrialState.FAIL, lease=None, reason=reason)

    def _check_holder(self, attempt: int) -> None:
        if attempt != self.attempt or attempt == 0:
            raise LeaseLost(
                f"attempt {attempt} does not hold the trial; "
                + (f"the last one given out is {self.attempt}" if self.attempt else "it was never given out")
            )
        if self.ended is AttemptEnd.RELEASED:
            raise LeaseLost(f"attempt {attempt} has released the trial")
        if self.ended is AttemptEnd.TOLD:
            raise LeaseLost(f"attempt {attempt} was told to have failed, and the trial to be tried again")


@dataclass(frozen=True)
class Report:
    """An intermediate value: one per step, the last one told."""

    step: int
    value: float
    metrics: dict[str, Any] = field(default_factory=dict)


# Keys of a trial's system_attrs: who drew its params, where that is not the study's sampler alone, and why.
DRAWN_BY, BECAUSE = "sampler", "because"


@dataclass(frozen=True)
class HistoryTrial:
    """What samplers and pruners see of a trial, running or finished.

    reports: (step, value), by rising step; system_attrs: what an algorithm keeps with the trial, JSON.
    failed_in_training: it was told as FAIL, which ranks its params behind those of all COMPLETE and PRUNED ones.
    was_given_out: False for one that was imported, or that ended before a worker had it.
    """

    number: int
    state: TrialState
    params: Params
    values: tuple[float, ...] | None = None
    reports: tuple[tuple[int, float], ...] = ()
    system_attrs: dict[str, Any] = field(default_factory=dict)
    round: int = 0
    failed_in_training: bool = False
    was_given_out: bool = True


_GIVEN_BY_THE_SERVICE = (EndReason.STOPPED, EndReason.STUDY_STOPPED, EndReason.STUDY_CANCELLED)


def has_failed_in_training(state: TrialState, reason: str | None, stop: str | None) -> bool:
    """Whether FAIL was told for these params; a FAIL that the service set says nothing about them."""
    if state is not TrialState.FAIL or stop == EndReason.STOPPED:
        return False
    words = reason or ""
    return words not in _GIVEN_BY_THE_SERVICE and not words.startswith(EndReason.ATTEMPTS_EXHAUSTED)


def pruned_values(last: float | None, directions: int) -> tuple[float, ...] | None:
    """A PRUNED trial without told values is worth its last report (None: there is none), unless that is NaN."""
    if directions != 1 or last is None or math.isnan(last):
        return None
    return (last,)


def trial_seed(study_seed: int, number: int) -> int:
    """The seed a trial is trained with: the same for every attempt, on every server. 32 bits."""
    digest = hashlib.blake2b(f"{study_seed}/{number}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


@dataclass(frozen=True)
class Trial:
    """A trial as it is recorded. Times are seconds since 1970 by the database's clock.

    weight: the bytes of its metrics as JSON, where they were told to this server.
    replicate_of: the number of the trial that it confirms; its seed is then shared with replicates of others.
    """

    study: str
    number: int
    params: Params
    lifecycle: Lifecycle
    seed: int
    id: int | None = None
    values: tuple[float, ...] | None = None
    metrics: dict[str, Any] | None = None
    artifacts: tuple[str, ...] = ()
    worker_id: str | None = None
    stop: str | None = None
    round: int | None = None
    started_at: float | None = None
    finished_at: float | None = None
    system_attrs: dict[str, Any] = field(default_factory=dict)
    distributions: dict[str, str] | None = None
    user_attrs: dict[str, Any] = field(default_factory=dict)
    revision: int = 0
    weight: int = 0
    replicate_of: int | None = None

    @property
    def state(self) -> TrialState:
        return self.lifecycle.state

    def drawn_by(self, sampler: str) -> str:
        return drawn_by(self.state, self.lifecycle.attempt, self.system_attrs, sampler)

    @property
    def is_known_to_samplers(self) -> bool:
        """Not while it is queued, since not all its params are chosen yet; and not a replicate."""
        return self.replicate_of is None and (self.lifecycle.attempt > 0 or self.state.is_finished)

    def as_history(self, reports: Iterable[tuple[int, float]]) -> HistoryTrial:
        """reports: (step, value), by rising step."""
        return HistoryTrial(
            number=self.number,
            state=self.state,
            params=self.params,
            values=self.values,
            reports=tuple(reports),
            system_attrs=self.system_attrs,
            round=self.round or 0,
            failed_in_training=has_failed_in_training(self.state, self.lifecycle.reason, self.stop),
            was_given_out=self.lifecycle.attempt > 0,
        )


_NEW = Trial("", 0, {}, Lifecycle(TrialState.WAITING), seed=0)


def new_trial(study: str, number: int, params: Params, system_attrs: dict[str, Any]) -> Trial:
    """A trial that has not been given out yet; its seed is set later."""
    return fast_replace(_NEW, study=study, number=number, params=params, system_attrs=system_attrs)


def drawn_by(state: TrialState, attempt: int, system_attrs: Mapping[str, Any], sampler: str) -> str:
    """The name of the sampler that drew a trial's params, or "enqueued", or "imported"; sampler: the study's."""
    if attempt == 0 and state in (TrialState.COMPLETE, TrialState.PRUNED):
        return "imported"
    name: str = system_attrs.get(DRAWN_BY, sampler)
    return name
