"""A study against a model of it: whatever is called, in any order and at any time, answers and record are the model's.

As a drill (tests/faults) it runs longer: HPO_DRILL_EXAMPLES says how long, HPO_DRILL_COUNT names a file for the number
of calls, and where HPO_DRILL_SABOTAGE has broken a guarantee it need not look for the shortest way to show it.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hpo_service.api.app import create_app
from hpo_service.settings import Settings

EXAMPLES = int(os.environ.get("HPO_DRILL_EXAMPLES", "7"))
STEPS = 30
LEASE_SECONDS = 60
ATTEMPTS = 2
SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}, "c": {"type": "categorical", "choices": ["a", "b"]}}
FINISHED = ("COMPLETE", "PRUNED", "FAIL")

_numbers = itertools.count()


class Host:
    """One server on one database, which can be started again; a clock to turn."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.now = 1_800_000_000.0
        self.calls = 0
        self._open = ExitStack()
        self.restart()

    def restart(self) -> None:
        self._open.close()
        app = create_app(Settings(database_url=self.url), lambda: self.now, with_reaper=False, with_keys=False)
        self.client = self._open.enter_context(TestClient(app, raise_server_exceptions=False))

    def close(self) -> None:
        self._open.close()

    def call(self, method: str, path: str, json: Any = None) -> Any:
        self.calls += 1
        answer = self.client.request(method, path) if json is None else self.client.request(method, path, json=json)
        assert answer.status_code < 500, f"{method} {path} {json}: {answer.text}"
        return answer


@dataclass
class Trial:
    state: str = "WAITING"
    attempt: int = 0
    held_until: float = -math.inf
    given_back: bool = False
    ran_out: int = 0
    reports: dict[int, float] = field(default_factory=dict)
    told: tuple[Any, ...] | None = None
    values: list[Any] | None = None
    params: dict[str, Any] | None = None

    @property
    def is_finished(self) -> bool:
        return self.state in FINISHED

    @property
    def is_retry(self) -> bool:
        return self.state == "WAITING" and self.attempt > 0

    @property
    def is_queued(self) -> bool:
        return self.state == "WAITING" and self.attempt == 0


@dataclass
class Model:
    """What API.md says about a study, as plainly as it can be said."""

    limit: int | None
    running: int | None
    state: str = "ACTIVE"
    given_out: int = 0
    rounds: int = 1
    trials: list[Trial] = field(default_factory=list)

    def count(self, state: str) -> int:
        return sum(trial.state == state for trial in self.trials)

    def left(self) -> float:
        return math.inf if self.limit is None else max(0, self.limit - self.given_out)

    def can_give(self, count: int) -> int:
        if self.state != "ACTIVE":
            return 0
        retries = sum(trial.is_retry for trial in self.trials)
        free = math.inf if self.running is None else max(0, self.running - self.count("RUNNING"))
        return int(min(count, free, retries + self.left()))

    def look(self, now: float) -> None:
        """Take back what has run out."""
        for trial in self.trials:
            if trial.state == "RUNNING" and trial.held_until <= now:
                trial.ran_out += 1
                self._back(trial, exhausted=trial.ran_out >= ATTEMPTS)
        self.update_and_save()

    def give_back(self, trial: Trial) -> None:
        trial.given_back = True
        self._back(trial, exhausted=False)
        self.update_and_save()

    def _back(self, trial: Trial, exhausted: bool) -> None:
        trial.state = "FAIL" if exhausted or self.state in ("STOPPING", "CANCELLED") else "WAITING"

    def update_and_save(self) -> None:
        unfinished = any(trial.is_retry or trial.state == "RUNNING" for trial in self.trials)
        if self.state == "STOPPING" and self.count("RUNNING") == 0:
            self.state = "STOPPED"
        if self.state == "ACTIVE" and self.left() == 0 and not unfinished:
            self.state = "COMPLETED"

    def end(self, state: str) -> None:
        self.state = state
        for trial in self.trials:
            if trial.state == "WAITING":
                trial.state = "FAIL"
        self.update_and_save()

    def best(self) -> int | None:
        complete = [
            (-float(t.values[0]), number) for number, t in enumerate(self.trials) if t.state == "COMPLETE" and t.values
        ]
        return min(complete)[1] if complete else None


limits = st.one_of(st.none(), st.integers(1, 12))
trial_choice = st.integers(0, 12)
# Seldom another attempt than the last one; -1 is the one before, 1 one that was never given out.
attempt_offset = st.sampled_from([0, 0, 0, 0, 0, -1, 1])
state_told = st.sampled_from(["COMPLETE", "COMPLETE", "COMPLETE", "COMPLETE", "PRUNED", "FAIL"])
value = st.sampled_from([0.0, 0.25, 0.5, 0.5, 0.75, 1.0, -3.0])


class StudyMachine(RuleBasedStateMachine):
    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host
        self.name = f"rules-{next(_numbers)}"
        self.base = f"/v1/studies/{self.name}"
        self.remembered: dict[str, list[tuple[int, int]]] = {}

    # -- what is called ----------------------------------------------------------------------------------------------

    @initialize(limit=limits, running=st.one_of(st.none(), st.integers(1, 4)))
    def create(self, limit: int | None, running: int | None) -> None:
        self.model = Model(limit, running)
        body = {
            "name": self.name,
            "search_space": SPACE,
            "sampler": {"name": "random", "seed": 1},
            "limits": {"trials": limit, "running": running, "attempts": ATTEMPTS},
            "lease_seconds": LEASE_SECONDS,
        }
        assert self.host.call("POST", "/v1/studies", body).status_code == 201
        assert self.host.call("POST", "/v1/studies", body).status_code == 200

    @rule(count=st.sampled_from([1, 1, 2, 5]), worker=st.sampled_from(["a", "b"]))
    def ask(self, count: int, worker: str) -> None:
        request = f"{self.name}-{next(_numbers)}"
        self.model.look(self.host.now)
        expected = self.model.can_give(count)
        self._check_given(request, expected, self._ask(request, worker, count))

    def _check_given(self, request: str, expected: int, answer: dict[str, Any]) -> None:
        assert len(answer["trials"]) == expected
        for given in answer["trials"]:
            self._given(given)
        if expected:
            self.remembered[request] = [(given["number"], given["attempt"]) for given in answer["trials"]]
        self.model.update_and_save()
        assert answer["study_state"] == self.model.state

    def _given(self, given: dict[str, Any]) -> None:
        model = self.model
        number = given["number"]
        if number == len(model.trials):
            # A sampled one comes last: after what is to be tried again, and after what was enqueued.
            assert not any(trial.state == "WAITING" for trial in model.trials)
            model.trials.append(Trial())
        trial = model.trials[number]
        if trial.is_queued:
            assert not any(other.is_retry for other in model.trials)
            model.given_out += 1
        assert trial.state == "WAITING"
        assert given["attempt"] == trial.attempt + 1
        assert trial.params is None or given["params"].items() >= trial.params.items()
        trial.state, trial.attempt, trial.given_back = "RUNNING", given["attempt"], False
        trial.held_until = self.host.now + LEASE_SECONDS
        trial.reports.clear()
        trial.params = given["params"]

    @precondition(lambda self: self.remembered)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.remembered)))
        self.model.look(self.host.now)
        answer = self._ask(request, "a", 1)
        assert [(given["number"], given["attempt"]) for given in answer["trials"]] == self.remembered[request]

    def _ask(self, request: str, worker: str, count: int) -> Any:
        body = {"worker_id": worker, "request_id": request, "count": count}
        answer = self.host.call("POST", f"{self.base}/trials:ask", body)
        assert answer.status_code == 200
        return answer.json()

    @rule(
        choice=trial_choice,
        offset=attempt_offset,
        told=value,
        state=st.sampled_from(["COMPLETE"] * 4 + ["PRUNED", "FAIL"]),
        then_ask=st.sampled_from([0, 0, 1, 2]),
    )
    def tell(self, choice: int, offset: int, told: float, state: str, then_ask: int) -> None:
        self._tell(choice, offset, state, [told] if state == "COMPLETE" else None, then_ask)

    @rule(choice=trial_choice, told=st.sampled_from(["NaN", "Infinity", "-Infinity"]))
    def tell_what_is_no_number(self, choice: int, told: str) -> None:
        self._tell(choice, 0, "COMPLETE", [told])

    @precondition(lambda self: any(trial.told for trial in self.model.trials))
    @rule(data=st.data())
    def tell_again(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([n for n, trial in enumerate(self.model.trials) if trial.told]))
        attempt, state, values = self.model.trials[number].told or ()
        body = {"attempt": attempt, "state": state} | ({"values": values} if values is not None else {})
        answer = self.host.call("POST", f"{self.base}/trials/{number}:tell", body)
        assert answer.status_code == 200
        assert answer.json()["values"] == self.model.trials[number].values

    def _tell(self, choice: int, offset: int, state: str, values: list[Any] | None, then_ask: int = 0) -> None:
        """then_ask: so many trials, in the same call."""
        number, trial, attempt = self._pick(choice, offset)
        self.model.look(self.host.now)
        body = {"attempt": attempt, "state": state} | ({"values": values} if values is not None else {})
        request = f"{self.name}-{next(_numbers)}"
        if then_ask:
            body["next"] = {"worker_id": "a", "request_id": request, "count": then_ask}
        answer = self.host.call("POST", f"{self.base}/trials/{number}:tell", body)
        if trial is None:
            assert answer.status_code == 404
        elif trial.is_finished:
            same = trial.told == (attempt, state, values)
            assert self._code(answer) == ("200" if same else "result_conflict")
        elif not self._holds(trial, attempt):
            assert self._code(answer) == "lease_lost"
        else:
            assert answer.status_code == 200, answer.text
            trial.told = (attempt, state, values)
            if values == ["NaN"]:
                trial.state, trial.values = "FAIL", answer.json()["values"]
            else:
                last = [trial.reports[max(trial.reports)]] if trial.reports else None
                trial.state, trial.values = state, (last if state == "PRUNED" else values)
            self.model.update_and_save()
        if then_ask and answer.status_code == 200:
            self._check_given(request, self.model.can_give(then_ask), answer.json()["next"])
        else:
            assert "next" not in answer.json()

    @rule(choice=trial_choice, offset=attempt_offset, step=st.integers(0, 3), reported=value)
    def report(self, choice: int, offset: int, step: int, reported: float) -> None:
        body = {"reports": [{"step": step, "value": reported}]}
        if (trial := self._beat(choice, offset, "report", body)) is not None:
            trial.reports[step] = reported

    @rule(choice=trial_choice, offset=attempt_offset)
    def heartbeat(self, choice: int, offset: int) -> None:
        self._beat(choice, offset, "heartbeat", {})

    def _beat(self, choice: int, offset: int, call: str, body: dict[str, Any]) -> Trial | None:
        """The trial, if its holder was taken for it."""
        number, trial, attempt = self._pick(choice, offset)
        self.model.look(self.host.now)
        answer = self.host.call("POST", f"{self.base}/trials/{number}:{call}", {"attempt": attempt, **body})
        if trial is None:
            assert answer.status_code == 404
        elif trial.is_finished:
            assert self._code(answer) == "trial_finished"
        elif not self._holds(trial, attempt):
            assert self._code(answer) == "lease_lost"
        else:
            assert answer.status_code == 200, answer.text
            cancelled = self.model.state == "CANCELLED"
            assert (answer.json()["should_stop"], answer.json()["reason"]) == (
                cancelled,
                "study_cancelled" if cancelled else None,
            )
            if trial.state == "WAITING":  # it had run out, and nobody else was given it: it is the holder's again
                trial.ran_out -= 1
                trial.state = "RUNNING"
            trial.held_until = self.host.now + LEASE_SECONDS
            return trial
        return None

    @rule(choice=trial_choice, offset=attempt_offset)
    def release(self, choice: int, offset: int) -> None:
        number, trial, attempt = self._pick(choice, offset)
        self.model.look(self.host.now)
        answer = self.host.call("POST", f"{self.base}/trials/{number}:release", {"attempt": attempt})
        if trial is None:
            assert answer.status_code == 404
            return
        assert answer.status_code == 200, answer.text
        if trial.state == "RUNNING" and trial.attempt == attempt:
            self.model.give_back(trial)

    @rule(seconds=st.sampled_from([1.5, 17, 61, 61, 200]))
    def time_passes(self, seconds: float) -> None:
        self.host.now += seconds

    @rule(verb=st.sampled_from(["pause", "resume", "resume", "resume"]))
    def pause_or_resume(self, verb: str) -> None:
        self.model.look(self.host.now)
        allowed = self.model.state in ("ACTIVE", "PAUSED")
        answer = self.host.call("POST", f"{self.base}:{verb}")
        assert self._code(answer) == ("200" if allowed else "study_state")
        if allowed:
            self.model.state = "PAUSED" if verb == "pause" else "ACTIVE"
            self.model.update_and_save()

    # Both end most of what can happen: seldom, and not at first.
    @precondition(lambda self: len(self.model.trials) >= 5)
    @rule(verb=st.sampled_from(["stop", "cancel"]), really=st.integers(0, 3))
    def stop_or_cancel(self, verb: str, really: int) -> None:
        if really:
            return
        self.model.look(self.host.now)
        allowed = verb == "cancel" or self.model.state in ("ACTIVE", "PAUSED", "STOPPING", "STOPPED")
        answer = self.host.call("POST", f"{self.base}:{verb}")
        assert self._code(answer) == ("200" if allowed else "study_state")
        if verb == "cancel":
            self.model.end("CANCELLED")
        elif self.model.state in ("ACTIVE", "PAUSED"):
            self.model.end("STOPPING")

    @precondition(lambda self: self.model.state in ("ACTIVE", "PAUSED", "COMPLETED"))
    @rule(params=st.lists(st.sampled_from([{}, {"x": 0.5}, {"c": "b"}]), min_size=1, max_size=3))
    def enqueue(self, params: list[dict[str, Any]]) -> None:
        self.model.look(self.host.now)
        body = {"request_id": f"q-{next(_numbers)}", "trials": [{"params": given} for given in params]}
        first, second = (self.host.call("POST", f"{self.base}/trials:enqueue", body) for _ in range(2))
        assert first.status_code == second.status_code == 201
        numbers = [trial["number"] for trial in first.json()["trials"]]
        assert numbers == list(range(len(self.model.trials), len(self.model.trials) + len(params)))
        assert [trial["number"] for trial in second.json()["trials"]] == numbers
        self.model.trials += [Trial(params=given) for given in params]

    @precondition(lambda self: self.model.state in ("ACTIVE", "PAUSED", "COMPLETED"))
    @rule(told=value)
    def take_in(self, told: float) -> None:
        self.model.look(self.host.now)
        trial = {"params": {"x": 0.5, "c": "a"}, "state": "COMPLETE", "values": [told]}
        assert self.host.call("POST", f"{self.base}/trials:import", {"trials": [trial]}).status_code == 201
        self.model.trials.append(Trial("COMPLETE", values=[told]))

    @rule(limit=limits, running=st.one_of(st.none(), st.integers(1, 4)))
    def change_limits(self, limit: int | None, running: int | None) -> None:
        self.model.look(self.host.now)
        answer = self.host.call("PATCH", self.base, {"limits": {"trials": limit, "running": running}})
        assert answer.status_code == 200, answer.text
        self.model.limit, self.model.running = limit, running
        if self.model.state == "COMPLETED" and self.model.left() > 0:
            self.model.state = "ACTIVE"
        self.model.update_and_save()

    @precondition(lambda self: self.model.state == "ACTIVE")
    @rule()
    def narrow(self) -> None:
        self.model.look(self.host.now)
        if self.model.state == "ACTIVE" and self.model.rounds < 4:
            answer = self.host.call("POST", f"{self.base}:narrow", {"keep": 0.5})
            assert answer.status_code == 201, answer.text
            assert answer.json()["round"] == self.model.rounds
            self.model.rounds += 1

    @precondition(lambda self: len(self.model.trials) >= 3)
    @rule(really=st.integers(0, 2))
    def restart_the_server(self, really: int) -> None:
        if not really:
            self.host.restart()

    # -- what holds --------------------------------------------------------------------------------------------------

    @invariant()
    def the_record_is_the_models(self) -> None:
        if not hasattr(self, "model"):
            return
        model = self.model
        model.look(self.host.now)
        study = self.host.call("GET", self.base).json()
        assert study["state"] == model.state
        states = Counter(trial.state for trial in model.trials)
        assert study["counts"] == {state: states.get(state, 0) for state in study["counts"]}
        best = model.best()
        assert (study["best"] and study["best"]["number"]) == best
        assert len(study["rounds"]) == model.rounds
        trials = self.host.call("GET", f"{self.base}/trials?page_size=1000").json()["items"]
        assert [(t["number"], t["state"], t["attempt"], t["values"]) for t in trials] == [
            (number, trial.state, trial.attempt, trial.values) for number, trial in enumerate(model.trials)
        ]
        for found, trial in zip(trials, model.trials, strict=True):
            if not trial.is_finished:
                assert {r["step"]: r["value"] for r in found["reports"]} == trial.reports

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _pick(self, choice: int, offset: int) -> tuple[int, Trial | None, int]:
        """Mostly one of the trials, and its last attempt."""
        if choice == 12 or not self.model.trials:
            return len(self.model.trials), None, 1
        number = choice % len(self.model.trials)
        trial = self.model.trials[number]
        return number, trial, max(0, trial.attempt + offset)

    def _holds(self, trial: Trial, attempt: int) -> bool:
        return attempt == trial.attempt > 0 and not trial.given_back

    @staticmethod
    def _code(answer: Any) -> str:
        return "200" if answer.status_code < 300 else str(answer.json()["code"])


@pytest.fixture(params=["sqlite", "postgresql"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("_sqlite_template"), tmp_path / "hpo.db")
        url = f"sqlite:///{tmp_path / 'hpo.db'}"
    else:
        url = request.getfixturevalue("migrated")()
    started = Host(url)
    try:
        yield started
    finally:
        started.close()
        if (file := os.environ.get("HPO_DRILL_COUNT")) is not None:
            with Path(file).open("a") as counts:
                counts.write(f"{started.calls}\n")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_any_calls_in_any_order_have_the_models_answers_and_leave_the_models_record(host: Host) -> None:
    phases = [Phase.generate] if "HPO_DRILL_SABOTAGE" in os.environ else list(Phase)
    run_state_machine_as_test(
        lambda: StudyMachine(host),  # type: ignore[arg-type]  # called like the class it makes
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            phases=phases,
            deadline=None,
            database=None,
            derandomize="HPO_DRILL_EXAMPLES" not in os.environ,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
