"""Studies, trials and leases as pure rules: every state against every call."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pydantic import ValidationError

from hpo_service.domain.errors import HpoError, LeaseLost, ResultConflict, StudyStateConflict, TrialFinished
from hpo_service.domain.study import Limits, Study, StudySpec, StudyState, state_after
from hpo_service.domain.trial import (
    AttemptEnd,
    Lease,
    Lifecycle,
    Told,
    TrialState,
    pruned_values,
    trial_seed,
)
from hpo_service.domain.trial_counts import TrialCounts

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}

VERBS = {
    #            ACTIVE       PAUSED       STOPPING     STOPPED      COMPLETED    CANCELLED
    "pause": ("PAUSED", "PAUSED", None, None, None, None),
    "resume": ("ACTIVE", "ACTIVE", None, None, None, None),
    "stop": ("STOPPING", "STOPPING", "STOPPING", "STOPPED", None, None),
    "cancel": ("CANCELLED",) * 6,
}


@pytest.mark.parametrize(
    ("verb", "state", "after"),
    [(verb, state, after) for verb, row in VERBS.items() for state, after in zip(StudyState, row, strict=True)],
)
def test_a_verb_leads_where_it_is_drawn(verb: str, state: StudyState, after: str | None) -> None:
    if after is None:
        with pytest.raises(StudyStateConflict):
            state_after(verb, state)
    else:
        assert state_after(verb, state) == after
        assert state_after(verb, StudyState(after)) == after, "it may be repeated"


def study(state: str = "ACTIVE", **fields: Any) -> Study:
    limits = Limits(**fields.pop("limits", {}))
    direction = fields.pop("direction", "maximize")
    spec = StudySpec.model_validate({"name": "s", "search_space": SPACE, "directions": [direction]})
    return Study(1, spec.model_copy(update={"limits": limits}), StudyState(state), 1000.0, **fields)


@pytest.mark.parametrize(
    ("limits", "fields", "now", "best", "reached"),
    [
        ({}, {"given_out": 10**6}, 1e12, 1e308, False),
        ({"trials": 5}, {"given_out": 4}, 0, None, False),
        ({"trials": 5}, {"given_out": 5}, 0, None, True),
        ({"trials": 5}, {"given_out": 6}, 0, None, True),
        ({"seconds": 60.0}, {}, 1059.9, None, False),
        ({"seconds": 60.0}, {}, 1060.0, None, True),
        ({"target": 0.5}, {}, 0, None, False),
        ({"target": 0.5}, {}, 0, 0.4, False),
        ({"target": 0.5}, {}, 0, 0.5, True),
        ({"target": 0.5}, {}, 0, math.inf, True),
        ({"target": 0.5}, {"direction": "minimize"}, 0, 0.6, False),
        ({"target": 0.5}, {"direction": "minimize"}, 0, 0.5, True),
        ({"running": 1}, {"counts": TrialCounts(running=1)}, 0, None, False),
        ({}, {"exhausted": True}, 0, None, True),
    ],
)
def test_when_a_limit_is_reached(limits: Any, fields: Any, now: float, best: float | None, reached: bool) -> None:
    assert study(limits=limits, **fields).limit_reached(now, best) is reached


@pytest.mark.parametrize(
    ("state", "given_out", "counts", "sealed", "settled"),
    [
        ("ACTIVE", 1, TrialCounts(running=1), False, "ACTIVE"),
        ("ACTIVE", 1, TrialCounts(retries=1), False, "ACTIVE"),
        ("ACTIVE", 1, TrialCounts(queued=1), False, "COMPLETED"),
        ("ACTIVE", 1, TrialCounts(), False, "COMPLETED"),
        ("ACTIVE", 0, TrialCounts(), False, "ACTIVE"),
        ("COMPLETED", 0, TrialCounts(), False, "ACTIVE"),
        ("COMPLETED", 0, TrialCounts(), True, "COMPLETED"),
        ("PAUSED", 1, TrialCounts(), False, "PAUSED"),
        ("STOPPING", 0, TrialCounts(running=1), False, "STOPPING"),
        ("STOPPING", 0, TrialCounts(), False, "STOPPED"),
        ("STOPPED", 0, TrialCounts(), False, "STOPPED"),
        ("CANCELLED", 1, TrialCounts(), False, "CANCELLED"),
    ],
)
def test_what_has_happened_settles_the_state(
    state: str, given_out: int, counts: TrialCounts, sealed: bool, settled: str
) -> None:
    found = study(state, limits={"trials": 1}, given_out=given_out, counts=counts, sealed=sealed)
    assert found.next_state(1000.0, None) == settled


@pytest.mark.parametrize(
    ("before", "after", "raises"),
    [
        ({"trials": 5}, {"trials": 6}, True),
        ({"trials": 5}, {"trials": None}, True),
        ({"trials": 5}, {"trials": 4}, False),
        ({"trials": None}, {"trials": 4}, False),
        ({"trials": 5}, {"trials": 5}, False),
        ({"running": 1}, {"running": 2}, True),
        ({"seconds": 1.0}, {"seconds": 2.0}, True),
        ({"seconds": 1.0}, {"seconds": 0.5}, False),
        ({"attempts": 3}, {"attempts": 4}, True),
        ({"attempts": 3}, {"attempts": 1}, False),
        ({"failures": 3}, {"failures": None}, True),
        ({"failures": 3}, {"failures": 2}, False),
    ],
)
def test_which_limits_allow_more(before: Any, after: Any, raises: bool) -> None:
    assert Limits(**after).raises(Limits(**before)) is raises


@pytest.mark.parametrize("fields", [{"trials": 0}, {"attempts": 101}, {"seconds": math.inf}, {"target": math.nan}])
def test_limits_refuse_what_is_none(fields: Any) -> None:
    with pytest.raises(ValidationError):
        Limits(**fields)


@pytest.mark.parametrize(
    ("now", "expired"),
    [(0.0, True), (939.9, True), (940.0, False), (999.9, False), (1000.0, True), (1e12, True)],
)
def test_a_lease_set_by_a_clock_that_has_stepped_back_is_over(now: float, expired: bool) -> None:
    assert Lease(expires_at=1000.0, duration=60.0).is_expired(now) is expired


@pytest.mark.parametrize(
    ("last", "directions", "values"),
    [
        (None, 1, None),
        (0.5, 1, (0.5,)),
        (math.inf, 1, (math.inf,)),
        (math.nan, 1, None),
        (0.5, 2, None),
    ],
)
def test_a_pruned_trial_is_worth_its_last_report(last: float | None, directions: int, values: Any) -> None:
    assert pruned_values(last, directions) == values


def test_seeds_are_32_bits_and_differ_by_study_and_number() -> None:
    seeds = [trial_seed(study_seed, number) for study_seed in (0, 1, 2**53) for number in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert trial_seed(1, 2) == trial_seed(1, 2)


@settings(max_examples=60, stateful_step_count=40, deadline=None)
class OneTrial(RuleBasedStateMachine):
    """A trial under any calls by any attempts at any time, beside a plainer account of who holds it."""

    LEASE = 10.0
    ATTEMPTS = 3

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.lifecycle = Lifecycle(TrialState.WAITING)
        self.result: tuple[int, float] | None = None
        self.given: list[int] = []
        self.released: set[int] = set()  # or told to be tried again
        self.last_retried: int | None = None

    def _take_back(self) -> None:
        self.lifecycle = self.lifecycle.expire(self.now, self.ATTEMPTS, None) or self.lifecycle

    @rule(seconds=st.sampled_from([0.0, 1.0, 9.9, 10.0, 11.0, -5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self._take_back()

    @precondition(lambda self: self.lifecycle.state is TrialState.WAITING)
    @rule()
    def is_given_out(self) -> None:
        self.lifecycle = self.lifecycle.start_attempt(self.now, self.LEASE)
        assert self.lifecycle.attempt not in self.given, "an attempt is given once"
        self.given.append(self.lifecycle.attempt)

    @rule(
        attempt=st.integers(0, 6),
        call=st.sampled_from(["keep", "tell", "release", "retry"]),
        value=st.sampled_from([1.0, 2.0]),
    )
    def calls(self, attempt: int, call: str, value: float) -> None:
        before = self.lifecycle
        holds = not before.state.is_finished and self.given[-1:] == [attempt] and attempt not in self.released
        try:
            if call == "keep":
                self.lifecycle = before.renew(attempt, self.now)
            elif call == "tell":
                told = Told(attempt, TrialState.COMPLETE, (value,))
                self.lifecycle = before.finish(told, TrialState.COMPLETE, None) or before
            elif call == "retry":
                again = Told(attempt, TrialState.FAIL, None)
                self.lifecycle = before.retry(again, "full", self.ATTEMPTS, None) or before
            else:
                self.lifecycle = before.release(attempt, None) or before
        except HpoError as error:
            refused: HpoError | None = error
        else:
            refused = None
        if refused is not None:
            assert self.lifecycle is before
            assert not holds
            finished = TrialFinished if call == "keep" else ResultConflict
            expected = finished if before.state.is_finished else LeaseLost
            assert type(refused) is expected
            return
        if call == "tell" and self.result is None:
            assert holds
            self.result = (attempt, value)
        elif call == "tell":
            assert self.result == (attempt, value), "only the very same result is taken again"
        elif call == "keep":
            assert holds
            assert self.lifecycle.state is TrialState.RUNNING
        elif self.lifecycle is not before:
            assert holds
            self.released.add(attempt)
            if call == "retry":
                self.last_retried = attempt
        elif call == "retry":
            assert self.last_retried == attempt, "only the very same call is taken again"

    @invariant()
    def there_is_one_result_and_one_holder(self) -> None:
        lifecycle = self.lifecycle
        assert lifecycle.attempt == len(self.given)
        assert 0 <= lifecycle.lapsed <= self.ATTEMPTS
        assert (lifecycle.state is TrialState.COMPLETE) is (self.result is not None)
        if lifecycle.state is TrialState.FAIL:
            assert lifecycle.lapsed == self.ATTEMPTS
            told = lifecycle.ended is AttemptEnd.TOLD
            assert lifecycle.reason == ("attempts_exhausted: full" if told else "attempts_exhausted")
        if lifecycle.state is TrialState.RUNNING:
            assert lifecycle.ended is None
            assert lifecycle.lease is not None
        if lifecycle.state is TrialState.WAITING and lifecycle.attempt:
            assert lifecycle.ended is not None
            assert (lifecycle.ended is AttemptEnd.TOLD) is (self.last_retried == lifecycle.attempt)


test_a_trial_has_one_holder_and_one_result_whatever_is_called = OneTrial.TestCase
