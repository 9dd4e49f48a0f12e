"""A drill that makes calls up from the API's own description, by its rules and against them (schemathesis)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drills.loaded_study import STUDY, Outcome, Place
from drills.served import Server

_HOOKS = Path(__file__).with_name("made_up_calls_hooks.py")
# A name that is not made up by chance: whoever makes one up may delete its study.
_STUDY = "the-drills-own-study"
_TRIALS = 20
_SECONDS_A_RUN = 900

# Where a call can break a rule that a JSON schema cannot say: which values go with which state, what a study's
# parameters are, what an algorithm can do, that a page token is one of ours, that no text anywhere has a NUL.
_RULES_BEYOND_THE_SCHEMA = (
    "GET /v1/studies",
    "GET /v1/studies:overview",
    "GET /v1/workers",
    "GET /v1/studies/{study}/trials",
    "POST /v1/studies",
    "PATCH /v1/studies/{study}",
    "POST /v1/studies/{study}/test:tell",
    "POST /v1/studies/{study}/trials/{number}:report",
    "POST /v1/studies/{study}/trials/{number}:suggest",
    "POST /v1/studies/{study}/trials/{number}:tell",
    "POST /v1/studies/{study}/trials:enqueue",
    "POST /v1/studies/{study}/trials:import",
    "POST /v1/trials:batch",
)
# A study that was just created has no sealed test yet: 404 is right there.
_NOT_THERE_AT_FIRST = tuple(f"POST /v1/studies/{{study}}/test:{verb}" for verb in ("heartbeat", "release", "tell"))
_ACCEPTED = '["2xx", "3xx", 401, 403, 404, 409, 412, 429, "5xx"]'
_ACCEPTED_BEYOND = _ACCEPTED.replace("429", "422, 429")


def calls_made_up(place: Place, size: int) -> Outcome:
    """Runs with one seed after the other until there were `size` calls."""
    database = place.sqlite()
    server = Server(
        place.nursery, place.folder, database, place.sabotage, token=Server.key(place.nursery, place.folder, database)
    )
    place.at_end(server.kill)
    server.start()
    server.patiently("POST", "/v1/studies", {**STUDY, "name": _STUDY, "lease_seconds": 86_400})
    ask = {"worker_id": "w", "request_id": "r", "count": _TRIALS}
    server.patiently("POST", f"/v1/studies/{_STUDY}/trials:ask", ask)
    outcome = Outcome()
    errors: set[str] = set()
    for seed in _seeds(place):
        found = _run(place, server, seed, size - outcome.count)
        outcome.count += found["test_cases"]["generated"]
        for failure in found["failures"]:
            kind = "every answer is as described"
            outcome.violations += [f"{kind}: {failure['title']}: {call}" for call in failure["operations"]]
        errors |= {error["title"] for error in found["errors"]}
        if outcome.count >= size or found["test_cases"]["generated"] == 0 or place.sabotage:
            break
    if outcome.count < size and not place.sabotage:
        outcome.violations.append(f"the drill: {outcome.count} calls only")
    outcome.violations += [f"every call is answered: {title}" for title in sorted(errors) if "Network" in title]
    faults = [line for line in server.errors.read_text().splitlines() if "fault of the server" in line]
    outcome.violations += [f"no fault in the log: {line}" for line in faults[:20]]
    outcome.notes.append("the event stream is left out, which does not end by itself")
    return outcome


def _seeds(place: Place) -> Iterator[int]:
    while True:
        yield place.random.randrange(2**31)


def _run(place: Place, server: Server, seed: int, wanted: int) -> dict[str, Any]:
    """One run of schemathesis; small ones leave out the phases whose size cannot be chosen."""
    report = place.folder / f"made-up-{seed}.json"
    config = place.folder / "schemathesis.toml"
    config.write_text(_config())
    small = wanted < 2000
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config)),
        *("run", f"http://127.0.0.1:{server.port}/v1/openapi.json"),
        *("--checks", "all", "--seed", str(seed), "--no-color", "--generation-database", "none"),
        *("--phases", "examples,fuzzing" if small else "examples,coverage,fuzzing,stateful"),
        *("--max-examples", str(max(8, wanted // 45))),
        *("--exclude-path-regex", "/events$"),
        *("-H", f"Authorization: Bearer {server.token}"),
        *("--report", "json", "--report-json-path", str(report)),
    ]
    variables = {"HPO_DRILL_STUDY": _STUDY, "HPO_DRILL_TRIALS": str(_TRIALS), "HPO_DRILL_SEED": str(seed)}
    log = report.with_suffix(".log")
    with log.open("w") as output:
        subprocess.run(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            cwd=place.folder,
            timeout=_SECONDS_A_RUN,
            check=False,
        )
    if not report.exists():
        raise RuntimeError(f"schemathesis: {log.read_text()[-2000:]}")
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def _config() -> str:
    lines = [
        "request-timeout = 30",
        "continue-on-failure = true",
        f"hooks = {json.dumps(str(_HOOKS))}",
        "[checks.positive_data_acceptance]",
        f"expected-statuses = {_ACCEPTED}",
    ]
    for call in dict.fromkeys((*_RULES_BEYOND_THE_SCHEMA, *_NOT_THERE_AT_FIRST)):
        lines += ["[[operations]]", f"include-name = {json.dumps(call)}"]
        if call in _RULES_BEYOND_THE_SCHEMA:
            lines.append(f"checks.positive_data_acceptance.expected-statuses = {_ACCEPTED_BEYOND}")
        if call in _NOT_THERE_AT_FIRST:
            lines.append("checks.ensure_resource_availability.enabled = false")
    return "\n".join(lines) + "\n"
