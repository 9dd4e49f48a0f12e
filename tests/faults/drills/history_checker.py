"""Reads the workers' histories against the record: was anything lost, doubled, stolen, or made up?"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from drills.histories import Call, History, Outcome
from drills.served import Server

FINISHED = ("COMPLETE", "PRUNED", "FAIL")
# What the two clocks (the server's and the machine's monotonic one) may differ by over one lease.
CLOCK_SLACK_SECONDS = 0.1


@dataclass
class RecordRead:
    """The study as the API reads after the drain."""

    study: dict[str, Any]
    trials: list[dict[str, Any]]
    attempts: dict[int, list[dict[str, Any]]]
    exported: list[dict[str, Any]]


def read_record(server: Server, study: str) -> RecordRead:
    trials: list[dict[str, Any]] = []
    token = ""
    while True:
        page = server.patiently("GET", f"/v1/studies/{study}/trials?page_size=1000&page_token={token}")
        trials += page["items"]
        token = page["next_page_token"]
        if not token:
            break
    attempts = {
        trial["number"]: server.patiently("GET", f"/v1/studies/{study}/trials/{trial['number']}/attempts")["items"]
        for trial in trials
    }
    return RecordRead(server.patiently("GET", f"/v1/studies/{study}"), trials, attempts, _export(server, study))


def _export(server: Server, study: str) -> list[dict[str, Any]]:
    import http.client

    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    try:
        connection.request("GET", f"/v1/studies/{study}/trials:export?format=jsonl", headers=server.headers())
        return [json.loads(line) for line in connection.getresponse().read().splitlines() if line]
    finally:
        connection.close()


class Checker:
    """The invariants, each a generator of violations in words."""

    def __init__(self, history: History, record: RecordRead, early_ends: int = 0) -> None:
        """early_ends: how many leases may end early, since the database's clock was moved."""
        self.history = history
        self.record = record
        self.by_number = {trial["number"]: trial for trial in record.trials}
        self.limits = record.study["limits"]
        self.lease_seconds = record.study["lease_seconds"]
        self.tells: dict[int, list[Call]] = defaultdict(list)
        self.reports: dict[int, list[Call]] = defaultdict(list)
        for call in history.of("tell"):
            self.tells[call.number or 0].append(call)
        for call in history.of("report"):
            self.reports[call.number or 0].append(call)
        self._early_ends = early_ends

    def violations(self) -> list[str]:
        return [f"{check.__name__.replace('_', ' ')}: {found}" for check in self.checks() for found in check()]

    def checks(self) -> list[Callable[[], Iterator[str]]]:
        return [
            self.acknowledged_results_are_recorded,  # I1
            self.no_trial_has_two_acknowledged_results,  # I2
            self.acknowledged_reports_are_recorded,  # I3
            self.no_attempt_is_given_to_two_requests,  # I4
            self.acknowledged_grants_are_recorded,
            self.numbers_have_no_gap,  # I5
            self.nothing_is_left_unfinished,  # I6
            self.limits_are_kept,  # I7, I8
            self.best_is_the_best,  # I9
            self.calls_took_effect_wholly_or_not_at_all,  # I10
            self.each_result_counts_once,  # I11
            self.a_stale_holder_is_refused,
            self.a_repeated_call_gets_the_same_answer,
            self.every_answer_is_documented,
            self.no_lease_ends_early,
        ]

    # -- I1 to I3: nothing acknowledged is lost ---------------------------------------------------------------

    def acknowledged_results_are_recorded(self) -> Iterator[str]:
        for call in self.history.of("tell"):
            if call.outcome is Outcome.OK and not self._is_recorded(call):
                yield f"trial {call.number} was told {_told(call)}, but reads {_result(self._trial(call))}"

    def no_trial_has_two_acknowledged_results(self) -> Iterator[str]:
        for number, calls in self.tells.items():
            results = {_told(call) for call in calls if call.outcome is Outcome.OK}
            if len(results) > 1:
                yield f"trial {number}: {sorted(results)}"

    def acknowledged_reports_are_recorded(self) -> Iterator[str]:
        for call in self.history.of("report"):
            trial = self._trial(call)
            if call.outcome is not Outcome.OK or (trial is not None and call.attempt != trial["attempt"]):
                continue  # reports of an earlier attempt are dropped when the trial is given out again
            for report in call.body["reports"]:
                if trial is None or _value_at(trial, report["step"]) != report["value"]:
                    yield f"trial {call.number}, attempt {call.attempt}, step {report['step']} is missing or another"

    # -- I4, I5: who was given what ---------------------------------------------------------------------------

    def no_attempt_is_given_to_two_requests(self) -> Iterator[str]:
        given: dict[tuple[int, int], set[str]] = defaultdict(set)
        for call in self.history.of("ask"):
            for grant in _grants(call):
                given[grant].add(call.body["request_id"])
        for (number, attempt), requests in given.items():
            if len(requests) > 1:
                yield f"attempt {attempt} of trial {number} to {sorted(requests)}"

    def acknowledged_grants_are_recorded(self) -> Iterator[str]:
        recorded = {
            (number, row["attempt"]): row["worker_id"] for number, rows in self.record.attempts.items() for row in rows
        }
        granted = set()
        for call in self.history.of("ask"):
            for grant in _grants(call):
                granted.add(grant)
                if recorded.get(grant) != call.worker_id:
                    yield f"attempt {grant[1]} of trial {grant[0]} was given to {call.worker_id}, but is not recorded"
        unanswered = Counter(
            call.worker_id
            for call in self.history.of("ask")
            if call.outcome is Outcome.UNKNOWN
            for _ in range(call.body["count"])
        )
        unseen = Counter(worker for grant, worker in recorded.items() if grant not in granted)
        for worker, count in unseen.items():
            if count > unanswered[worker]:
                yield f"{worker} has {count} attempts that it never heard of, with {unanswered[worker]} asks unanswered"

    def numbers_have_no_gap(self) -> Iterator[str]:
        numbers = [trial["number"] for trial in self.record.trials]
        if numbers != list(range(len(numbers))):
            yield f"{numbers[:20]}…"
        for number, rows in self.record.attempts.items():
            if [row["attempt"] for row in rows] != list(range(1, self.by_number[number]["attempt"] + 1)):
                yield f"attempts of trial {number}: {[row['attempt'] for row in rows]}"

    # -- I6 to I9: the study as a whole -----------------------------------------------------------------------

    def nothing_is_left_unfinished(self) -> Iterator[str]:
        for trial in self.record.trials:
            if trial["state"] not in FINISHED:
                yield f"trial {trial['number']} is {trial['state']}"
        if self.record.study["state"] != "COMPLETED":
            yield f"the study is {self.record.study['state']}"

    def limits_are_kept(self) -> Iterator[str]:
        given_out = sum(trial["attempt"] > 0 for trial in self.record.trials)
        if given_out != self.limits["trials"]:
            yield f"{given_out} trials given out, {self.limits['trials']} allowed"
        for number, rows in self.record.attempts.items():
            expired = sum(row["end"] == "expired" for row in rows)
            exhausted = self.by_number[number]["reason"] == "attempts_exhausted"
            if exhausted != (expired >= self.limits["attempts"]) or expired > self.limits["attempts"]:
                yield f"trial {number}: {expired} leases ran out, of {self.limits['attempts']} allowed; {exhausted=}"

    def best_is_the_best(self) -> Iterator[str]:
        acknowledged = [
            (call.body["values"][0], call.number or 0)
            for call in self.history.of("tell")
            if call.outcome is Outcome.OK and call.body["state"] == "COMPLETE"
        ]
        best = self.record.study["best"]
        recorded = [
            (trial["values"][0], trial["number"]) for trial in self.record.trials if trial["state"] == "COMPLETE"
        ]
        expected = max(recorded, default=None)
        found = None if best is None else (best["values"][0], best["number"])
        if found != expected or (acknowledged and (found is None or max(acknowledged) > found)):
            yield f"reads {found}, the record says {expected}, acknowledged were {max(acknowledged, default=None)}"

    # -- I10, I11: wholly or not at all, and once -------------------------------------------------------------

    def calls_took_effect_wholly_or_not_at_all(self) -> Iterator[str]:
        for trial in self.record.trials:
            number = trial["number"]
            if trial["state"] in FINISHED and trial["reason"] != "attempts_exhausted":
                causes = [call for call in self.tells[number] if _told(call) == _result(trial)]
                if not any(call.outcome is not Outcome.REFUSED for call in causes):
                    refused = ", although that was refused" if causes else ", which nobody told"
                    yield f"trial {number} reads {_result(trial)}{refused}"
            by_step: dict[int, list[Call]] = defaultdict(list)
            for call in self.reports[number]:
                for report in call.body["reports"]:
                    if call.attempt == trial["attempt"] and report["value"] == _value_at(trial, report["step"]):
                        by_step[report["step"]].append(call)
            for report in trial["reports"]:
                causes = [call for call in by_step[report["step"]] if call.outcome is not Outcome.REFUSED]
                if not causes:
                    yield f"trial {number}, attempt {trial['attempt']}: step {report['step']} was not reported by it"
                elif all(call.in_batch is not None for call in causes):
                    keys = {call.key for call in causes}
                    if not any(call.key in keys and self._is_recorded(call) for call in self.tells[number]):
                        yield f"trial {number}: the report of a batch is there, its tell is not"

    def each_result_counts_once(self) -> Iterator[str]:
        states = Counter(trial["state"] for trial in self.record.trials)
        counts = {state: count for state, count in self.record.study["counts"].items() if count}
        if counts != dict(states):
            yield f"counts read {counts}, the trials are {dict(states)}"
        exported = Counter(row["number"] for row in self.record.exported)
        if exported != Counter(list(self.by_number)):
            yield f"{len(self.record.exported)} rows are exported, of {len(self.by_number)} trials"
        drawn = Counter(json.dumps(trial["params"], sort_keys=True) for trial in self.record.trials)
        for params, times in drawn.items():
            if times > 1:
                yield f"{params} was drawn {times} times"

    # -- leases -----------------------------------------------------------------------------------------------

    def a_stale_holder_is_refused(self) -> Iterator[str]:
        newer = self._first_grants()
        for call in self.history.of("report", "tell", "heartbeat"):
            for one in call.tries:
                if not call.succeeded(one):
                    continue
                for attempt, (_, known_at) in newer[call.number or 0].items():
                    if attempt > call.attempt and one.began > known_at:
                        yield f"{call.op} of trial {call.number}, attempt {call.attempt}, after attempt {attempt} began"

    def no_lease_ends_early(self) -> Iterator[str]:
        early = list(self._leases_that_ended_early())
        if len(early) > self._early_ends:
            yield from early

    def _leases_that_ended_early(self) -> Iterator[str]:
        grants = self._first_grants()
        renewed: dict[tuple[int, int], float] = {}
        for number, attempts in grants.items():
            for attempt, (began, _) in attempts.items():
                renewed[number, attempt] = began
        for call in self.history.of("report"):
            successes = [one.began for one in call.tries if call.succeeded(one)]
            key = (call.number or 0, call.attempt)
            if successes and key in renewed:
                renewed[key] = max(renewed[key], *successes)
        released = {(call.number, call.attempt) for call in self.history.of("release")}
        for number, attempts in grants.items():
            for attempt, (_, known_at) in attempts.items():
                before = (number, attempt - 1)
                if before in released or before not in renewed:
                    continue
                held = known_at - renewed[before]
                if held < self.lease_seconds - CLOCK_SLACK_SECONDS:
                    yield f"attempt {attempt} of trial {number} began {held:.2f} s after the holder was last heard"

    def _first_grants(self) -> dict[int, dict[int, tuple[float, float]]]:
        """By trial and attempt: when the ask that was first given it was sent, and when it was answered."""
        found: dict[int, dict[int, tuple[float, float]]] = defaultdict(dict)
        for call in self.history.of("ask"):
            for one in call.tries:
                for number, attempt in one.line.get("grants", ()):
                    assert one.ended is not None
                    seen = found[number].get(attempt)
                    # The first try may have been given it without an answer: that is when the lease began.
                    began = min(each.began for each in call.tries)
                    if seen is None or one.ended < seen[1]:
                        found[number][attempt] = (began, one.ended)
        return found

    # -- answers ----------------------------------------------------------------------------------------------

    def a_repeated_call_gets_the_same_answer(self) -> Iterator[str]:
        for call in self.history.of("ask", "tell"):
            if call.in_batch is not None:
                continue
            given = [one for one in call.tries if one.at == "ok" and (call.op == "tell" or one.line["grants"])]
            if len({one.line["digest"] for one in given}) > 1:
                yield f"{call.op} {call.body.get('request_id', call.number)} was answered in two ways"
            if given and any(one.at != "ok" for one in call.tries if one.began > given[0].began and one.at == "fail"):
                yield f"{call.op} {call.body.get('request_id', call.number)} was acknowledged, then refused"
        for call in self.history.of("tell"):
            if self._is_recorded(call) and any(call.refused(one) for one in call.tries):
                yield f"the tell of trial {call.number} took effect, but its repetition was refused"

    def every_answer_is_documented(self) -> Iterator[str]:
        for status, times in self.history.statuses.items():
            if status not in (0, 200, 207, 409, 503):
                yield f"{times} calls were answered {status}"

    def _trial(self, call: Call) -> dict[str, Any] | None:
        return self.by_number.get(call.number or 0)

    def _is_recorded(self, call: Call) -> bool:
        trial = self._trial(call)
        return trial is not None and _result(trial) == _told(call)


def _told(call: Call) -> str:
    values = call.body.get("values")
    return f"{call.body['state']} {values or call.body.get('reason')} by attempt {call.attempt}"


def _result(trial: dict[str, Any] | None) -> str:
    if trial is None:
        return "nothing at all"
    return f"{trial['state']} {trial['values'] or trial['reason']} by attempt {trial['attempt']}"


def _value_at(trial: dict[str, Any], step: int) -> float | None:
    return next((report["value"] for report in trial["reports"] if report["step"] == step), None)


def _grants(call: Call) -> set[tuple[int, int]]:
    return {(number, attempt) for one in call.tries for number, attempt in one.line.get("grants", ())}
