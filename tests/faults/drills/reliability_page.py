"""Writes docs/reliability.md: the table of what is promised, what was tried, how often, and what came of it."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from drills.catalogue import DRILLS, Drill, Run, bites

_HEAD = """# Reliability

What this service promises, what was done to break it, how often, and what came of it. This page is written by the runs
themselves: `make faults` runs every drill below at the size shown and writes its row. A small version of each is part
of `make test`.

"""

_FOOT = """
**Violations** are found by reading what the workers saw against what the service says afterwards. Eight workers (four
for power cuts) ask, report, tell and release over plain HTTP, and write down every request when it is sent and
every answer when it comes: acknowledged, refused, or never answered. After the last fault the study is given a limit
and drained. Then:

- every acknowledged result, report and grant is there, with that value and that attempt;
- no trial has two acknowledged results, and no attempt was given to two requests;
- trial numbers and attempts have no gap; nothing is left WAITING or RUNNING; the study is COMPLETED;
- exactly `limits.trials` were given out, and no trial ran out of more leases than `limits.attempts`;
- `best` is the best, the counts are those of the trials, and no draw and no exported row is there twice;
- a call that was never answered took effect wholly or not at all, a batch too; a refused one had no effect;
- once a newer attempt was acknowledged, no call of an older one was; no lease ended before its time (but where the
  clock itself was moved);
- a repeated call got the same answer; and every answer was a documented one, never a 500.

Of a confirmation all this is asked of its replicates, and besides: they are those asked for, each candidate once with
each seed; what the confirmation says is what they were told, each once; the search is as it was.

Ten drills look at other things. Slow connections have to be closed in time, and a newcomer has to be served. Calls
that schemathesis makes up have to get an answer that the API's own description has, with all of schemathesis' checks
on. Calls in any order have to get the answers of a model of the contract, and leave its record. Keys have to open what
they are for, on every route, and nothing else. A trial with as many reports as are kept, a study that is deleted and
a curve of many steps may cost no more memory, silence and time than is said. Artifacts have to be read as they were
sent, by their SHA-256: the last one of each name that was acknowledged, or a later one that was never answered;
refusals have to be 413, 429 or 503 with words; in the end there are as many objects as artifacts.

**Sabotage**: each drill is run once more against a server in which one guarantee is broken on purpose, in the server's
process and never in the product. The column says which, how often that was found, and what was measured then: that is
how it was before the guarantee was given. A drill that does not find it is marked.

"""

_BROKEN = {
    "answer-before-commit": "the answer leaves before the commit",
    "leases-never-end": "leases never end",
    "forgets-answers": "a repeated ask is a new one",
    "no-attempt-check": "no check of the attempt",
    "replays-refused": "a repeated tell is a second result",
    "no-row-locks": "no row locks",
    "postgres-commits-later": "synchronous_commit off",
    "no-fsync": "synchronous=NORMAL",
    "commit-errors-swallowed": "a failed commit is acknowledged",
    "no-clock-clamp": "a lease ends at its end, however far away",
    "no-migration-lock": "no lock around the migrations",
    "no-file-lock": "no lock on the file",
    "deaf": "SIGTERM is ignored",
    "frameworks-refusals": "refusals in the framework's own words",
    "scopes-unchecked": "any key opens every route",
    "slow-ones-stay": "no deadlines for connections",
    "says-nothing": "failures are answered and not logged",
    "keys-by-count": "keys are read again when their number changes",
    "takes-all-that-comes": "requests are parsed before their turn, and trailers kept",
    "checks-each-time": "a commit for each call of /readyz",
    "locks-are-waited-for": "the writer waits for any lock, up to 30 s",
    "absence-is-silence": "a lease ends whether anybody could renew it or not",
    "locks-names": "only the name is locked",
    "file-unwatched": "nobody looks where the file is",
    "unbounded-trials": "no bounds for reports and answers",
    "deletes-in-one-go": "a study is deleted in one transaction",
    "reads-the-whole-curve": "each verdict looks at all reports",
    "commands-outlive": "nothing ends the command",
    "every-change-wakes-all": "every change wakes every waiting call, and each stream reads by itself twice a second",
    "draws-in-the-writer": "draws are made in the writer, inside a transaction",
    "retried-replicates-forgotten": "a replicate that was given back is not waited for",
    "nobody-sweeps": "nobody sweeps away what a dead server was writing",
    "keeps-what-was-lost": "an artifact is kept though not all of it was taken",
}


@dataclass(frozen=True)
class Row:
    """One drill's last run at full size. sabotage_violations: None where it was not run."""

    drill: str
    date: str
    seed: int
    count: int
    seconds: float
    acknowledged: int
    unanswered: int
    violations: list[str]
    sabotage_violations: int | None
    sabotage_shown: bool
    notes: list[str]
    missing: str | None = None
    measured: str = ""
    sabotage_measured: str = ""

    @classmethod
    def of(cls, drill: Drill, seed: int, done: Run, broken: Run | None) -> Row:
        return cls(
            drill=drill.name,
            date=_today(),
            seed=seed,
            count=done.outcome.count,
            seconds=round(done.seconds, 1),
            acknowledged=done.outcome.acknowledged,
            unanswered=done.outcome.unknown,
            violations=[f"{times} × {kind}" for kind, times in done.outcome.kinds().items()],
            sabotage_violations=None if broken is None else len(broken.outcome.violations),
            sabotage_shown=broken is not None and bites(drill, broken.outcome),
            notes=done.outcome.notes,
            measured=done.outcome.measured,
            sabotage_measured="" if broken is None else broken.outcome.measured,
        )

    @classmethod
    def not_here(cls, drill: Drill, seed: int, missing: str) -> Row:
        return cls(drill.name, _today(), seed, 0, 0.0, 0, 0, [], None, False, [], missing)

    @property
    def good(self) -> bool:
        return not self.violations and (self.sabotage_violations is None or self.sabotage_shown)


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def write_page(folder: Path, new: Row) -> None:
    """Put the row in its place; the rows of other drills stay as their last runs left them."""
    kept = folder / "reliability.json"
    rows = {row["drill"]: row for row in json.loads(kept.read_text())} if kept.exists() else {}
    rows[new.drill] = asdict(new)
    in_order = [Row(**rows[drill.name]) for drill in DRILLS if drill.name in rows]
    kept.write_text(json.dumps([asdict(row) for row in in_order], indent=2, ensure_ascii=False) + "\n")
    (folder / "reliability.md").write_text(_HEAD + _table(in_order) + _FOOT + _details(in_order))


def _table(rows: list[Row]) -> str:
    drills = {drill.name: drill for drill in DRILLS}
    lines = [
        "| promise | drill | count | seconds | acknowledged | violations | measured | with the guarantee broken |",
        "|---|---|---:|---:|---:|---|---|---|",
    ]
    for row in rows:
        drill = drills[row.drill]
        if row.missing is not None:
            lines.append(f"| {drill.promise} | {drill.what} | – | – | – | not run: {row.missing} | – | – |")
            continue
        broken = _BROKEN[drill.sabotage]
        many = row.sabotage_violations != 1
        found = f"{row.sabotage_violations} violation{'s' * many}" if row.sabotage_shown else "**not found**"
        if row.sabotage_measured:
            found += f" ({row.sabotage_measured})"
        violations = "; ".join(row.violations) or "0"
        lines.append(
            f"| {drill.promise} | {drill.what} | {row.count} {drill.unit} | {row.seconds:.0f} | "
            f"{row.acknowledged or '–'} | {violations} | {row.measured or '–'} | {broken}: {found} |"
        )
    return "\n".join(lines) + "\n"


def _details(rows: list[Row]) -> str:
    lines = ["Each drill's last run:", ""]
    for row in rows:
        notes = "".join(f"; {note}" for note in row.notes)
        lines.append(f"- `{row.drill}`: {row.date}, seed {row.seed}, {row.unanswered} calls never answered{notes}")
    return "\n".join(lines) + "\n"
