"""Drills that are tests of the API: run at length, and with a guarantee broken first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from drills.loaded_study import Outcome, Place

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[2]
_CALLS_AN_EXAMPLE = 70  # about
_SECONDS = 1800


def calls_in_any_order(place: Place, size: int) -> Outcome:
    """About `size` calls on each kind of database; Hypothesis draws them, its seed is ours."""
    counted = place.folder / "calls"
    variables = {"HPO_DRILL_EXAMPLES": str(max(5, size // _CALLS_AN_EXAMPLE)), "HPO_DRILL_COUNT": str(counted)}
    seed = ("--hypothesis-seed", str(place.random.randrange(2**31)))
    violations = _run(place, "tests/api/test_any_rules.py", "answers and record are the model's", variables, *seed)
    count = sum(map(int, counted.read_text().split())) if counted.exists() else 0
    notes = ["on SQLite and on PostgreSQL, with a clock that is turned and servers that are started again"]
    return Outcome(count, violations=violations, notes=notes)


def keys_on_every_route(place: Place, size: int) -> Outcome:
    """Every route that the API describes, with every kind of key: the test's own number of cases."""
    report = place.folder / "report.xml"
    path = "tests/api/test_keys_on_every_route.py"
    violations = _run(place, path, "a key opens what it is for", {}, "--junitxml", str(report))
    if not report.exists():
        return Outcome(violations=violations)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    skipped = int(suite.attrib["skipped"])
    if skipped:
        violations.append(f"the drill: {skipped} cases were skipped")
    return Outcome(int(suite.attrib["tests"]) - skipped, violations=violations)


def _run(place: Place, path: str, kind: str, variables: dict[str, str], *options: str) -> list[str]:
    """One violation for each kind of line that says why a test failed."""
    environment = {**os.environ, **variables}
    command = [sys.executable, "-m", "pytest", "-n", "0", path, "--timeout", str(_SECONDS), *options]
    if place.sabotage:
        environment |= {"HPO_DRILL_SABOTAGE": place.sabotage, "PYTHONPATH": str(_HERE)}
        command += ["-p", "saboteur"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT, env=environment, check=False)
    if done.returncode == 0:
        return []
    if done.returncode != 1:  # other than that tests have failed
        raise RuntimeError(f"pytest: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    failed = re.findall(r"^E +(\S.*)$", done.stdout, re.MULTILINE)
    return [f"{kind}: {line}" for line in failed[:20]]
