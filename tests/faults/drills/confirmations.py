"""Drills in which the best trials are confirmed: each replicate is trained, told and counted once."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from drills.histories import History, read_histories
from drills.history_checker import FINISHED, Checker, RecordRead, read_record
from drills.load_worker import told_value
from drills.loaded_study import DRAIN_SECONDS, DRAIN_SECONDS_SABOTAGED, LoadedStudy, Outcome, Place
from drills.served import Server

SEARCHED = 24
TOP = 20
_MOST_SEEDS = 50
_NEARLY = 1e-12


def confirmation_killed(place: Place, size: int) -> Outcome:
    """While replicates are trained: kill -9 the server and start it again, and kill -9 a worker or three, by turns.

    In the end kill -9 all workers at once, when no replicate waits any more: those that they held are the last ones.
    """
    server = place.server(place.sqlite())
    # A trial takes a while, so that whoever is killed holds one.
    study = LoadedStudy(place, server, think_seconds=0.05)
    candidates = _search(server)
    before = server.patiently("GET", "/v1/studies/s")
    asked = {"top": TOP, "seeds": max(2, min(size, _MOST_SEEDS))}
    server.patiently("POST", "/v1/studies/s:confirm", asked)
    kills = 0
    with study:
        while kills < size - 1 and study.crew.is_busy():
            study.work_on()
            if kills % 2 == 0:
                server.kill()
                server.start()
            else:
                for index in place.random.sample(range(study.crew.size), place.random.randint(1, 3)):
                    study.crew.kill(index)
            kills += 1
        _wait_until_none_waits(server, study)
        for index in range(study.crew.size):
            study.crew.kill(index)
        faults = study.crew.drain(DRAIN_SECONDS_SABOTAGED if place.sabotage else DRAIN_SECONDS)
    return _checked(server, study, kills + 1, faults, before, candidates)


def _search(server: Server) -> list[int]:
    """Finish a search; return the numbers of its best trials, best first."""
    server.patiently("PATCH", "/v1/studies/s", {"limits": {"trials": SEARCHED}})
    ask = {"worker_id": "search", "request_id": "search", "count": SEARCHED}
    values = {}
    for trial in server.patiently("POST", "/v1/studies/s/trials:ask", ask)["trials"]:
        number, attempt = trial["number"], trial["attempt"]
        values[number] = told_value(number, attempt)
        tell = {"attempt": attempt, "state": "COMPLETE", "values": [values[number]]}
        server.patiently("POST", f"/v1/studies/s/trials/{number}:tell", tell)
    return sorted(values, key=values.__getitem__, reverse=True)[:TOP]


def _wait_until_none_waits(server: Server, study: LoadedStudy) -> None:
    while study.crew.is_busy():
        if not server.patiently("GET", "/v1/studies/s/trials?state=WAITING&page_size=1")["items"]:
            return
        time.sleep(0.01)


def _checked(
    server: Server, study: LoadedStudy, kills: int, faults: list[str], before: dict[str, Any], candidates: list[int]
) -> Outcome:
    history, record = read_histories(study.crew.histories()), read_record(server, "s")
    server.kill()
    server.start()
    again = server.patiently("GET", "/v1/studies/s")
    found = ConfirmationChecker(history, record, before, again, candidates)
    violations = [f"the drain: {fault}" for fault in faults] + found.violations()
    confirmed = sum(len(each["values"]) + each["failed"] for each in again["confirmation"]["ranking"])
    pruned = sum(trial["state"] == "PRUNED" for trial in found.record.trials)
    measured = f"{len(found.record.trials)} replicates: {confirmed} in the result, {pruned} told as PRUNED"
    return Outcome(kills, history.acknowledged, history.unknown, violations, measured=measured)


class ConfirmationChecker(Checker):
    """What holds for any trials, of the replicates; and what a confirmation promises beyond."""

    def __init__(
        self,
        history: History,
        record: RecordRead,
        before: dict[str, Any],
        again: dict[str, Any],
        candidates: list[int],
    ) -> None:
        """before: the study as it was read before it was confirmed; again: as it was read after the last restart."""
        self._before, self._again, self._candidates = before, again, candidates
        self._searched = {trial["number"]: trial for trial in record.trials if trial["replicate_of"] is None}
        replicates = [trial for trial in record.trials if trial["replicate_of"] is not None]
        numbers = {trial["number"] for trial in replicates}
        attempts = {number: rows for number, rows in record.attempts.items() if number in numbers}
        super().__init__(history, replace(record, trials=replicates, attempts=attempts))
        self._of: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for trial in replicates:
            self._of[trial["replicate_of"]].append(trial)

    def checks(self) -> list[Callable[[], Iterator[str]]]:
        return [
            self.acknowledged_results_are_recorded,
            self.no_trial_has_two_acknowledged_results,
            self.acknowledged_reports_are_recorded,
            self.no_attempt_is_given_to_two_requests,
            self.acknowledged_grants_are_recorded,
            self.nothing_is_left_unfinished,
            self.calls_took_effect_wholly_or_not_at_all,
            self.a_stale_holder_is_refused,
            self.a_repeated_call_gets_the_same_answer,
            self.every_answer_is_documented,
            self.no_lease_ends_early,
            self.the_replicates_are_those_asked_for,
            self.each_replicate_counts_once,
            self.the_search_is_as_it_was,
            self.a_restart_changes_nothing,
        ]

    def the_replicates_are_those_asked_for(self) -> Iterator[str]:
        seeds = {trial["seed"] for trial in self.record.trials}
        expected = self._again["confirmation"]["seeds"]
        if len(seeds) != expected:
            yield f"{len(seeds)} seeds, of {expected} asked for"
        wanted = Counter({(number, seed): 1 for number in self._candidates for seed in seeds})
        there = Counter((trial["replicate_of"], trial["seed"]) for trial in self.record.trials)
        for (number, seed), times in ((wanted - there) + (there - wanted)).items():
            yield f"trial {number} with seed {seed}: {times} too many or missing"
        for number, trials in self._of.items():
            if any(trial["params"] != self._searched[number]["params"] for trial in trials):
                yield f"a replicate of trial {number} has other params"

    def each_replicate_counts_once(self) -> Iterator[str]:
        confirmation = self.record.study["confirmation"]
        if confirmation["state"] != "COMPLETE":
            yield f"the confirmation is {confirmation['state']}"
        unfinished = sum(trial["state"] not in FINISHED for trial in self.record.trials)
        if unfinished and confirmation["state"] == "COMPLETE":
            yield f"the confirmation is COMPLETE, {unfinished} replicates are not"
        ranking = {each["number"]: each for each in confirmation["ranking"]}
        means = [each["mean"] for each in confirmation["ranking"]]
        if len(ranking) != len(means) or means != sorted(means, reverse=True):
            yield f"ranked {[each['number'] for each in confirmation['ranking']]} with means of {means}"
        for number in self._candidates:
            values = [trial["values"][0] for trial in self._of[number] if trial["state"] == "COMPLETE"]
            failed = sum(trial["state"] == "FAIL" for trial in self._of[number])
            if problem := _differs(ranking.get(number), values, failed):
                yield f"trial {number}: {problem}"

    def the_search_is_as_it_was(self) -> Iterator[str]:
        now = {**self.record.study, "confirmation": None}
        for name in sorted(now.keys() | self._before.keys()):
            if now.get(name) != self._before.get(name):
                yield f"{name} was {self._before.get(name)}, and reads {now.get(name)}"

    def a_restart_changes_nothing(self) -> Iterator[str]:
        if self._again != self.record.study:
            yield f"{self.record.study['confirmation']} before, {self._again['confirmation']} after"


def _differs(ranked: dict[str, Any] | None, values: list[float], failed: int) -> str | None:
    """How the line of the ranking is not what was told; a trial with fewer than two values has none."""
    if len(values) < 2:
        return None if ranked is None else f"is ranked with {len(values)} values told"
    if ranked is None:
        return f"is not ranked, with {len(values)} values told"
    if sorted(ranked["values"]) != sorted(values) or ranked["failed"] != failed:
        return f"{len(ranked['values'])} values, {ranked['failed']} failed; told were {len(values)}, and {failed} FAIL"
    mean = sum(values) / len(values)
    if abs(ranked["mean"] - mean) > _NEARLY * max(1.0, abs(mean)):
        return f"a mean of {ranked['mean']}; of what was told it is {mean}"
    return None
