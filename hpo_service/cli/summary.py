"""What a study has found, in words: the best trial, the rounds, what mattered, and what there is to say of it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from hpo_service.cli import wording
from hpo_service.cli.confirmed_words import confirmation_lines, measure
from hpo_service.cli.expectations import MeasuredExpectation, compared, rows
from hpo_service.cli.figure import figure_of, test_plan_of
from hpo_service.client import Client
from hpo_service.domain.errors import HpoError
from hpo_service.domain.json_types import Json

ENOUGH_TRIALS = 20  # with fewer, the importances are called unsure
MOST_BEST = 20  # in the table of the best; as many as a picture has curves
LARGEST_PAGE = 1000


@dataclass(frozen=True)
class Observation:
    """What a summary is made of. importances: None where the server cannot tell (yet)."""

    study: Json
    advice: Sequence[Json] = ()
    importances: Mapping[str, float | None] | None = None
    failures: Mapping[str, int] | None = None  # by reason
    expected: Sequence[MeasuredExpectation] = ()  # what metadata.figure asks for
    told: Mapping[int, float | str] = field(default_factory=dict)  # by number, the original values of confirmed trials


def observe(client: Client, name: str) -> Observation:
    study = client.study(name)
    importances, advice = None, []
    with suppress(HpoError):  # too few trials, several directions, or a server that cannot tell yet
        importances = client.importances(name)
    with suppress(HpoError):  # an older server
        advice = client.advice(name)
    failed = wording.of_the_search(client.trials(name, state="FAIL") if study["counts"]["FAIL"] else ())
    reasons = Counter(trial["reason"] or "no reason given" for trial in itertools.islice(failed, 1000))
    confirmed = (study["confirmation"] or {"ranking": []})["ranking"]
    told = {each["number"]: client.trial(name, each["number"])["values"][0] for each in confirmed}
    return Observation(study, advice, importances, reasons, _expected(client, study), told)


def best_lines(client: Client, study: Json) -> list[str]:
    """A table of the params of the twenty best trials, to see where to search next."""
    if len(study["directions"]) > 1 or study["counts"]["COMPLETE"] < 2:
        return []
    by_value = client.trials(study["name"], state="COMPLETE", order_by="value", page_size=MOST_BEST)
    best = list(itertools.islice(wording.of_the_search(by_value), MOST_BEST))
    names = list(study["search_space"])
    rows = [("trial", measure(study), *names)]
    for trial in best:
        params = (wording.number(trial["params"][name]) if name in trial["params"] else "-" for name in names)
        rows.append((str(trial["number"]), wording.number(trial["values"][0], 4), *params))
    return ["", f"The best {wording.count(len(best), 'trial')}", *wording.columns(rows)]


def _expected(client: Client, study: Json) -> list[MeasuredExpectation]:
    figure = figure_of(study)
    if figure is None or not figure.expected:
        return []
    return rows(figure, study, list(wording.of_the_search(client.trials(study["name"], page_size=LARGEST_PAGE))))


def summary_lines(seen: Observation) -> list[str]:
    """The summary, a line each; sections are separated by empty ones."""
    sections = (
        _standing(seen),
        _best(seen.study),
        confirmation_lines(seen.study, seen.told),
        _rounds(seen.study),
        _importances(seen),
        _advice(seen),
        _test(seen.study),
        _beside_the_claim(seen),
    )
    return list(itertools.chain.from_iterable([*section, ""] for section in map(list, sections) if section))[:-1]


def _standing(seen: Observation) -> Iterator[str]:
    study = seen.study
    counts = ", ".join(f"{amount} {state}" for state, amount in study["counts"].items() if amount)
    yield f"{study['name']}: {study['state']}, {wording.progress(study)} ({counts or 'none yet'})"
    if reason := study.get("state_reason"):
        yield f"  {reason}"
    for reason, amount in (seen.failures or {}).items():
        yield f"  {wording.count(amount, 'trial')} failed: {reason}"


def _beside_the_claim(seen: Observation) -> Iterator[str]:
    figure = figure_of(seen.study)
    if figure is not None:
        yield from compared(figure, seen.expected)


def _best(study: Json) -> Iterator[str]:
    if "front" in study:
        yield from _front(study["front"], wording.goal(study))
        return
    best = study.get("best")
    if not best:
        yield f"No trial has a result yet. The {measure(study)} is {wording.goal(study)}."
        return
    value = f"{measure(study)} {wording.number(best['values'][0], 4)} ({wording.goal(study)})"
    yield f"Best: trial {best['number']}, {value}"
    yield from wording.columns((name, wording.number(value, 4)) for name, value in best["params"].items())


def _front(front: Sequence[Json], directions: str) -> Iterator[str]:
    yield f"{wording.count(len(front), 'trial')} that no other beats in every direction ({directions}):"
    yield from wording.columns(
        (
            f"trial {best['number']}",
            ", ".join(wording.number(value, 4) for value in best["values"]),
            wording.params(best["params"]),
        )
        for best in front[:10]
    )


def _rounds(study: Json) -> Iterator[str]:
    rounds = study["rounds"]
    if len(rounds) < 2:
        return
    yield "Rounds: how the ranges moved"
    rows = []
    for before, now in zip([None, *rounds], rounds, strict=False):
        title, trials = f"round {now['round']}", wording.count(now["trials"], "trial")
        for name, given in now["search_space"].items():
            was = before["search_space"].get(name) if before else None
            rows.append((title, trials, name, wording.parameter_range(given), _movement(given, was)))
            title = trials = ""
    yield from wording.columns(rows)


def _movement(given: Json, was: Json | None) -> str:
    """How wide a range is, and what became of the range before."""
    if given["type"] == "categorical":
        dropped = len(was["choices"]) - len(given["choices"]) if was else 0
        return f"{wording.count(dropped, 'choice')} dropped" if dropped > 0 else ""
    moved = []
    span = wording.decades(given)
    if span is not None:
        moved.append(f"{span:.1f} decades")
        if was and abs(change := span - (wording.decades(was) or 0.0)) >= 0.05:
            moved.append(f"{abs(change):.1f} {'fewer' if change < 0 else 'more'}")
    elif was and was["high"] > was["low"]:
        moved.append(f"{(given['high'] - given['low']) / (was['high'] - was['low']):.0%} of the range before")
    if was and given["high"] > was["high"]:
        moved.append("upper side moved out")
    if was and given["low"] < was["low"]:
        moved.append("lower side moved out")
    return ", ".join(moved)


def _importances(seen: Observation) -> Iterator[str]:
    if not seen.importances or len(_varied(seen.study)) < 2:
        return
    complete = seen.study["counts"]["COMPLETE"]
    unsure = f"; {complete} are too few to be sure" if complete < ENOUGH_TRIALS else ""
    yield f"What mattered (share of the difference between trials{unsure})"
    hardly = {item["parameter"] for item in seen.advice if item["code"] == "hardly_matters"}
    shares = {name: share for name, share in seen.importances.items() if share is not None}
    rows = []
    for name, share in sorted(shares.items(), key=lambda item: -item[1]):
        says = "hardly matters in this range: fix it, and search something else" if name in hardly else ""
        rows.append((name, f"{share:4.0%}", says))
    rows += [(name, "   -", "never varied") for name, share in seen.importances.items() if share is None]
    yield from wording.columns(rows)


def _varied(study: Json) -> list[str]:
    """The parameters that can differ between trials."""
    space = study["search_space"].items()
    return [name for name, given in space if given["type"] != "categorical" or len(given["choices"]) > 1]


def _advice(seen: Observation) -> Iterator[str]:
    """All advice but that on importance, which `_importances` shows."""
    items = [item for item in seen.advice if item["code"] != "hardly_matters"]
    if items:
        yield "Advice"
    for item in items:
        yield f"  {item['detail']}."
        if item["code"] == "edge" and item["suggestion"]:
            yield from _search_there(seen.study, item["suggestion"])


def _search_there(study: Json, suggestion: Json) -> Iterator[str]:
    side = "low" if "low" in suggestion else "high"
    expand = "" if study["narrowing"] and study["narrowing"]["expand"] else ", or use [narrowing] with expand = true"
    bound = f"{suggestion['parameter']} {side} = {wording.number(suggestion[side])}"
    yield f"    In a study file with another name, give {bound}{expand}."


def _test(study: Json) -> Iterator[str]:
    test = study.get("test")
    if not test:
        if study["state"] in wording.DONE and test_plan_of(study).leave_sealed:
            yield "Test set: left sealed, as the study file says."
        return
    if test["state"] != "COMPLETE":
        reason = f": {test['reason']}" if test.get("reason") else ""
        yield f"Test set: the study is sealed; the evaluation is {test['state']}{reason}."
        return
    yield (
        f"Test accuracy {wording.number(test['test_accuracy'], 4)}, beside "
        f"{wording.number(test['validation_accuracy'], 4)} on validation (gap {wording.number(test['gap'], 2)})."
    )
    networks = (
        "the best configuration" if test["ensemble"] == 1 else f"{test['ensemble']} networks of the best configuration"
    )
    yield f"  Evaluated once: {networks}, trained again on training and validation images together."
