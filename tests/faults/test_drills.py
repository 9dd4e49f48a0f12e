"""Every drill, small: real servers, real workers, real faults, and nothing that was acknowledged is lost."""

from __future__ import annotations

import pytest
from drills.catalogue import DRILLS, Drill, run_drill
from drills.loaded_study import NotHere
from drills.nursery import Nursery


@pytest.mark.timeout(240)
@pytest.mark.parametrize("drill", DRILLS, ids=lambda drill: drill.name)
def test_nothing_is_lost_doubled_or_left(drill: Drill, nursery: Nursery, request: pytest.FixtureRequest) -> None:
    try:
        done = run_drill(drill, drill.short, nursery, lambda: request.getfixturevalue("postgres"))
    except NotHere as missing:
        pytest.skip(str(missing))
    assert done.outcome.violations == []
    assert done.outcome.count >= drill.short
