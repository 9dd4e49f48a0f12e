"""Every drill, small: real servers, real workers, real faults, and nothing that was acknowledged is lost."""

from __future__ import annotations

import pytest
from drills.catalogue import DRILLS, Drill, bites, run_drill
from drills.loaded_study import NotHere
from drills.nursery import Nursery

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
@pytest.mark.parametrize("drill", [pytest.param(drill, id=drill.name) for drill in DRILLS if drill.short])
def test_nothing_is_lost_doubled_or_left(drill: Drill, nursery: Nursery, request: pytest.FixtureRequest) -> None:
    try:
        done = run_drill(drill, drill.short, nursery, lambda: request.getfixturevalue("postgres"))
    except NotHere as missing:
        pytest.skip(str(missing))
    assert done.outcome.violations == []
    assert done.outcome.count >= drill.short


QUICKLY_SABOTAGED = ("power_cut", "second_servers_refused")  # the others at full size only, by run.py


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", QUICKLY_SABOTAGED)
def test_a_drill_finds_the_guarantee_that_is_broken(name: str, nursery: Nursery) -> None:
    drill = next(drill for drill in DRILLS if drill.name == name)
    try:
        done = run_drill(drill, drill.sabotaged, nursery, lambda: None, sabotage=drill.sabotage)
    except NotHere as missing:
        pytest.skip(str(missing))
    assert bites(drill, done.outcome), done.outcome.violations
