"""All drills at full size, and each with its guarantee broken; writes docs/reliability.md.

python tests/faults/run.py              small, as among the tests
python tests/faults/run.py --full       full size with sabotage: about twenty minutes on two idle cores
python tests/faults/run.py --full --only servers_killed
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from drills.catalogue import DRILLS, Drill, Run, bites, run_drill
from drills.loaded_study import NotHere
from drills.nursery import Nursery
from drills.reliability_page import Row, write_page

ROOT = Path(__file__).resolve().parents[2]
# What is broken may by chance go unseen, or break the drill off before its check.
TIMES_TO_SHOW = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="full size, with sabotage; writes docs/reliability.md")
    parser.add_argument("--only", action="append", default=[], metavar="DRILL", help="this drill; may be repeated")
    parser.add_argument("--seed", type=int, default=random.randrange(2**31), help="of the moments of the faults")
    options = parser.parse_args()
    names = [drill.name for drill in DRILLS]
    if unknown := set(options.only) - set(names):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    wanted = [drill for drill in DRILLS if not options.only or drill.name in options.only]
    print(f"seed {options.seed}", flush=True)
    good = True
    with ExitStack() as open_:
        nursery = Nursery()
        open_.callback(nursery.close)
        postgres = _cluster(open_)
        for drill in wanted:
            if not options.full and not drill.short:
                print(f"{drill.name}: its short form is a test of its own", flush=True)
                continue
            row = _rehearse(drill, options.full, options.seed, nursery, postgres)
            good = good and row.good
            if options.full:
                write_page(ROOT / "docs", row)
    return 0 if good else 1


def _rehearse(drill: Drill, full: bool, seed: int, nursery: Nursery, postgres: Callable[[], Any]) -> Row:
    print(f"{drill.name}: {drill.what}", flush=True)
    try:
        done = run_drill(drill, drill.full if full else drill.short, nursery, postgres, seed)
        _say("  ", done)
        if not full:
            return Row.of(drill, seed, done, None)
        for other_seed in range(seed, seed + TIMES_TO_SHOW):
            broken = run_drill(drill, drill.sabotaged, nursery, postgres, other_seed, drill.sabotage)
            if bites(drill, broken.outcome):
                break
        _say(
            f"  sabotaged ({drill.sabotage}), {'and shown' if bites(drill, broken.outcome) else 'NOT SHOWN'}: ", broken
        )
        return Row.of(drill, seed, done, broken)
    except NotHere as missing:
        print(f"  not here: {missing}", flush=True)
        return Row.not_here(drill, seed, str(missing))


def _say(indent: str, run: Run) -> None:
    outcome = run.outcome
    print(
        f"{indent}{outcome.count} in {run.seconds:.0f} s; {outcome.acknowledged} calls acknowledged, "
        f"{outcome.unknown} never answered; {len(outcome.violations)} violations",
        flush=True,
    )
    for kind, times in outcome.kinds().items():
        example = next(violation for violation in outcome.violations if violation.startswith(kind))
        print(f"    {times} × {example[:300]}", flush=True)


def _cluster(open_: ExitStack) -> Callable[[], Any]:
    """The tests' own PostgreSQL, started when it is first wanted."""
    started: list[Any] = []

    def cluster() -> Any:
        if not started:
            sys.path.insert(0, str(ROOT))  # for tests that import from each other
            from tests.conftest import Postgres

            folder = Path(tempfile.mkdtemp(prefix="hpo-pg-"))
            open_.callback(shutil.rmtree, folder, ignore_errors=True)
            started.append(Postgres(folder))
            open_.callback(started[0].stop, "immediate")
        return started[0]

    return cluster


if __name__ == "__main__":
    sys.exit(main())
