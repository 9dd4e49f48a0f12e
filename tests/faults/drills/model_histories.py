"""A drill without faults from outside: any calls in any order, against a model of the contract (tests/api)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from drills.loaded_study import Outcome, Place

_ROOT = Path(__file__).resolve().parents[3]
_TEST = "tests/api/test_any_rules.py"
_CALLS_AN_EXAMPLE = 70  # about
_SECONDS = 1800


def calls_in_any_order(place: Place, size: int) -> Outcome:
    """About `size` calls on each kind of database; Hypothesis draws them, its seed is ours."""
    counted = place.folder / "calls"
    variables = {"HPO_DRILL_EXAMPLES": str(max(5, size // _CALLS_AN_EXAMPLE)), "HPO_DRILL_COUNT": str(counted)}
    if place.sabotage:
        variables["HPO_DRILL_SABOTAGE"] = place.sabotage
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:randomly", _TEST, "--timeout", str(_SECONDS)]
    done = subprocess.run(
        [*command, "--hypothesis-seed", str(place.random.randrange(2**31))],
        capture_output=True,
        text=True,
        cwd=_ROOT,
        env={**os.environ, **variables},
        check=False,
    )
    outcome = Outcome(sum(map(int, counted.read_text().split())) if counted.exists() else 0)
    if done.returncode:
        failed = re.findall(r"^E +(\S.*)$", done.stdout, re.MULTILINE) or [done.stdout[-500:] + done.stderr[-500:]]
        outcome.violations = [f"answers and record are the model's: {line}" for line in failed[:5]]
    outcome.notes.append("on SQLite and on PostgreSQL, with a clock that is turned and servers that are started again")
    return outcome
