"""A lease is charged with the time in which its holder could have renewed it, and with no other."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo_service.domain.outage import SHORTEST_OUTAGE_SECONDS, Outage, disjoint
from hpo_service.domain.trial import Lease, Lifecycle, TrialState

LEASE = Lease(expires_at=1000.0, duration=60.0)  # renewed at 940


@pytest.mark.parametrize(
    ("outages", "ends_at"),
    [
        ([], 1000.0),
        ([(900.0, 930.0)], 1000.0),  # over before it was renewed
        ([(950.0, 950.5)], 1000.5),  # a hiccup: no more than what was missed
        ([(950.0, 960.0)], 1020.0),  # felt: as if it had been renewed at the end
        ([(930.0, 945.0)], 1005.0),
        ([(990.0, 5000.0)], 5060.0),
        ([(1001.0, 1005.0)], 1000.0),  # it had run out before
        ([(950.0, 960.0), (1010.0, 1015.0)], 1075.0),
        ([(950.0, 950.5), (1000.2, 1000.9)], 1001.2),
    ],
)
def test_an_outage_lengthens_a_lease(outages: Any, ends_at: float) -> None:
    assert LEASE.ends_at(disjoint(Outage(*each) for each in outages)) == pytest.approx(ends_at)


@pytest.mark.parametrize(
    ("outages", "found"),
    [
        ([], []),
        ([(3, 4), (1, 2)], [(1, 2), (3, 4)]),
        ([(1, 3), (2, 5), (5, 6), (8, 9), (8, 8.5)], [(1, 6), (8, 9)]),
        ([(1, 9), (2, 3)], [(1, 9)]),
    ],
)
def test_outages_that_touch_are_one(outages: Any, found: Any) -> None:
    assert disjoint(Outage(*each) for each in outages) == tuple(Outage(*each) for each in found)


times = st.floats(0, 5000)
some_outages = st.lists(st.tuples(times, times).map(lambda pair: Outage(*sorted(pair))), max_size=12).map(disjoint)


@given(some_outages)
def test_no_outage_shortens_a_lease_and_the_dead_lose_it_within_twice_its_time(outages: tuple[Outage, ...]) -> None:
    end = LEASE.ends_at(outages)
    assert end >= LEASE.expires_at
    missed = sum(max(0.0, min(each.ended, end) - max(each.began, 940.0)) for each in outages)
    assert 60.0 - 1e-6 <= end - 940.0 - missed <= 2 * 60.0 + 1e-6


@given(some_outages, st.integers(0, 11))
def test_who_holds_a_lease_when_an_outage_that_is_felt_begins_has_all_of_it_at_its_end(
    outages: tuple[Outage, ...], place: int
) -> None:
    for outage in outages[place : place + 1]:
        held_till_then = LEASE.ends_at(outages[:place]) > outage.began and outage.ended > 940.0
        first = all(each.ended < 940.0 for each in outages[:place])
        if held_till_then and first and outage.ended - outage.began >= SHORTEST_OUTAGE_SECONDS:
            assert LEASE.ends_at(outages) >= min(outage.ended + 60.0, 940.0 + 120.0 + outage.ended - outage.began)


def test_a_lease_set_by_a_clock_that_has_stepped_back_is_over_whatever_was_missed() -> None:
    assert LEASE.is_expired(900.0, [Outage(800.0, 2000.0)])


def test_a_trial_does_not_lapse_in_an_outage() -> None:
    lifecycle = Lifecycle(TrialState.WAITING).start_attempt(940.0, 60.0)
    outage = [Outage(950.0, 2000.0)]
    assert lifecycle.expire(2000.0, 1, None, outage) is None
    assert lifecycle.expire(2059.9, 1, None, outage) is None
    lapsed = lifecycle.expire(2060.0, 1, None, outage)
    assert lapsed is not None
    assert lapsed.reason == "attempts_exhausted"
