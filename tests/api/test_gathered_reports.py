"""A verdict does not depend on how reports were gathered into calls: a pruner judges after each, in their order."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

PRUNERS: list[dict[str, Any]] = [
    {"name": "median", "params": {"n_startup_trials": 2}},
    {"name": "median", "params": {"n_startup_trials": 1, "n_warmup_steps": 3, "interval_steps": 4}},
    {"name": "percentile", "params": {"percentile": 25, "n_startup_trials": 2, "n_min_trials": 2}},
    {"name": "halving", "params": {"min_resource": 1, "reduction_factor": 2}},
    {"name": "halving", "params": {"min_resource": 2, "reduction_factor": 3, "bootstrap_count": 1}},
    {"name": "hyperband", "params": {"max_resource": 27}},
    {"name": "patient", "params": {"patience": 3}},
    {"name": "patient", "params": {"patience": 2, "wrapped": {"name": "median", "params": {"n_startup_trials": 1}}}},
    {"name": "threshold", "params": {"lower": 0.05, "upper": 0.97}},
    {"name": "threshold", "params": {"upper": 0.9, "n_warmup_steps": 5, "interval_steps": 3}},
    {"name": "wilcoxon", "params": {"n_startup_steps": 3}},
]
STEPS = 30


def curve(chance: random.Random) -> list[dict[str, Any]]:
    """Reports with gaps, and a NaN now and then; by rising step, as an objective makes them."""
    level = chance.random()
    steps = sorted(chance.sample(range(STEPS), chance.randint(1, STEPS)))
    values = ["NaN" if chance.random() < 0.02 else (level + chance.random()) / 2 for _ in steps]
    return [{"step": step, "value": value} for step, value in zip(steps, values, strict=True)]


def portions(chance: random.Random, reports: list[Any]) -> list[list[Any]]:
    """The same in calls of several, each call's in any order."""
    found, at = [], 0
    while at < len(reports):
        size = chance.choice([1, 2, 5, STEPS])
        found.append(chance.sample(some := reports[at : at + size], len(some)))
        at += size
    return found


def train(api: Any, name: str, calls: list[list[Any]]) -> bool:
    """Report in these calls until it is to stop, and tell the result; return whether it was to stop."""
    (given,) = api.ask(name)
    number = given["number"]
    for reports in calls:
        if api.work(name, number, "report", reports=reports).json()["should_stop"]:
            api.work(name, number, "tell", state="PRUNED")
            return True
    last = calls[-1]
    value = max(last, key=lambda report: report["step"])["value"]
    api.tell(name, number, 0.5 if value == "NaN" else value)
    return False


_names = itertools.count()


@pytest.mark.parametrize("direction", ["minimize", pytest.param("maximize", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "pruner", [PRUNERS[0], *(pytest.param(pruner, marks=pytest.mark.slow) for pruner in PRUNERS[1:])], ids=str
)
def test_reports_gathered_in_any_way_are_judged_as_each_by_itself(
    request: pytest.FixtureRequest, pruner: dict[str, Any], direction: str
) -> None:
    """On two databases, so that both studies have one name: hyperband draws a trial's bracket from it."""
    one, other = (request.getfixturevalue(name) for name in ("_sqlite_api", "_postgres_api"))
    name = f"gathered-{next(_names)}-{direction}"
    body = {
        "name": name,
        "search_space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
        "directions": [direction],
        "sampler": {"name": "random", "seed": 1},
        "pruner": pruner,
    }
    for api in (one, other):
        assert api.post("/v1/studies", body).status_code == 201
    chance = random.Random(name)
    verdicts = []
    for _ in range(14):
        reports = curve(chance)
        alone = train(one, name, [[report] for report in reports])
        together = train(other, name, portions(chance, reports))
        assert together is alone
        verdicts.append(alone)
    assert any(verdicts), "else it was tried on nothing"


def kept(api: Any, name: str, *values: Any) -> Any:
    (given,) = api.ask(name)
    reports = [{"step": step, "value": value} for step, value in enumerate(values)]
    return api.work(name, given["number"], "report", reports=reports).json()


def test_a_spike_between_the_reports_of_a_call_is_seen(either: Any) -> None:
    name = either.create(pruner={"name": "threshold", "params": {"upper": 10}})
    spike = kept(either, name, *[1.0] * 20, 11.0, *[1.0] * 20)
    assert (spike["should_stop"], spike["reason"]) == (True, "pruned")
    assert len(either.trial(name, 0)["reports"]) == 41, "what came after it is kept"
    assert kept(either, name, *[1.0] * 41)["should_stop"] is False


def test_nan_between_the_reports_of_a_call_is_seen(either: Any) -> None:
    name = either.create(pruner={"name": "threshold", "params": {"upper": 10}})
    assert kept(either, name, 1.0, "NaN", 1.0)["should_stop"] is True


def test_halving_takes_the_value_at_its_rung_and_no_later_one(either: Any) -> None:
    pruner = {"name": "halving", "params": {"min_resource": 2, "reduction_factor": 2}}
    name = either.create(pruner=pruner, directions=["minimize"])
    kept(either, name, 9.0, 9.0, 3.0, 0.0)  # 3 at the rung of step 2
    assert kept(either, name, 9.0, 9.0, 2.0, 9.0, 1.0)["should_stop"] is False
    assert kept(either, name, 0.0, 0.0, 2.5, 0.0)["should_stop"] is True


def test_of_two_values_for_a_step_in_one_call_both_are_judged_and_the_last_is_kept(either: Any) -> None:
    name = either.create(pruner={"name": "threshold", "params": {"upper": 10}})
    either.ask(name)
    reports = [{"step": 1, "value": 11}, {"step": 1, "value": 1}]
    assert either.work(name, 0, "report", reports=reports).json()["should_stop"] is True
    assert either.trial(name, 0)["reports"] == [{"step": 1, "value": 1.0, "metrics": {}}]


def test_a_refused_call_leaves_nothing_of_its_reports(either: Any) -> None:
    name = either.create(pruner={"name": "halving", "params": {"min_resource": 1}})
    either.ask(name)
    metrics = {"x": "y" * 100_000}
    reports = [{"step": 1, "value": 1}, {"step": 2, "value": 1, "metrics": metrics}]
    assert either.work(name, 0, "report", reports=reports).status_code == 413
    assert either.trial(name, 0)["reports"] == []


def test_a_batch_judges_each_of_its_reports(either: Any) -> None:
    name = either.create(pruner={"name": "threshold", "params": {"upper": 10}})
    either.ask(name, count=2)
    calls = [
        {
            "study": name,
            "number": n,
            "call": "report",
            "attempt": 1,
            "reports": [{"step": s, "value": v} for s, v in of],
        }
        for n, of in ((0, [(0, 1), (1, 99), (2, 1)]), (1, [(0, 1), (1, 2)]))
    ]
    results = either.post("/v1/trials:batch", {"calls": calls}).json()["results"]
    assert [result["body"]["should_stop"] for result in results] == [True, False]
