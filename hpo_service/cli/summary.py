"""What a study has found, in words: the best trial, the rounds, what mattered, whether to search further out."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hpo_service.cli import wording
from hpo_service.cli.confirmed_words import confirmation_lines, measure
from hpo_service.cli.expectations import Row, beside, rows
from hpo_service.cli.figure import figure_of, test_plan_of
from hpo_service.domain.errors import HpoError
from hpo_service.domain.json_types import Json
from hpo_service.domain.objectives import built_in

if TYPE_CHECKING:
    from hpo_service.client import Client

NO_DIFFERENCE = 0.1  # a parameter with a smaller share of the importance hardly matters
AT_THE_EDGE = 0.1  # of the range searched
ENOUGH_TRIALS = 20  # before importances say something
CROWD = 1 / 3  # of the best trials
FEWEST_BEST = 5  # trials that count as the best
FEWEST_AT_THE_EDGE = 3  # fewer may be there by chance
LARGEST_PAGE = 1000


@dataclass(frozen=True)
class Observation:
    """What a summary is made of. importances: None where the server cannot tell (yet)."""

    study: Json
    best_trials: Sequence[Json] = ()
    importances: Mapping[str, float | None] | None = None
    failures: Mapping[str, int] | None = None  # by reason
    expected: Sequence[Row] = ()  # what metadata.figure asks for
    told: Mapping[int, float | str] = field(default_factory=dict)  # the values of the trials that were confirmed


@dataclass(frozen=True)
class Edge:
    """A side of a searched range at which the best trials crowd."""

    parameter: str
    side: str
    bound: float
    trials: int
    of: int
    further: float | None  # a bound to try next; None: the objective takes nothing beyond


def observe(client: Client, name: str) -> Observation:
    study = client.study(name)
    importances = best_trials = None
    with suppress(HpoError):  # too few trials, several directions, or a server that cannot tell yet
        importances = client.importances(name)
    if len(study["directions"]) == 1:
        complete = study["counts"]["COMPLETE"]
        several = min(max(FEWEST_BEST, math.ceil(complete / 10)), 20)
        by_value = wording.of_the_search(client.trials(name, state="COMPLETE", order_by="value", page_size=several))
        best_trials = list(itertools.islice(by_value, several))
    failed = wording.of_the_search(client.trials(name, state="FAIL") if study["counts"]["FAIL"] else ())
    reasons = Counter(trial["reason"] or "no reason given" for trial in itertools.islice(failed, 1000))
    confirmed = (study["confirmation"] or {"ranking": []})["ranking"]
    told = {each["number"]: client.trial(name, each["number"])["values"][0] for each in confirmed}
    return Observation(study, best_trials or (), importances, reasons, _expected(client, study), told)


def _expected(client: Client, study: Json) -> list[Row]:
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
        _edges(seen),
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
        yield from beside(figure, seen.expected)


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
    shares = {name: share for name, share in seen.importances.items() if share is not None}
    rows = []
    for name, share in sorted(shares.items(), key=lambda item: -item[1]):
        hardly = "" if _matters(seen, name) else "hardly matters in this range: fix it, and search something else"
        rows.append((name, f"{share:4.0%}", hardly))
    rows += [(name, "   -", "never varied") for name, share in seen.importances.items() if share is None]
    yield from wording.columns(rows)


def _varied(study: Json) -> list[str]:
    """The parameters that can differ between trials."""
    space = study["search_space"].items()
    return [name for name, given in space if given["type"] != "categorical" or len(given["choices"]) > 1]


def _matters(seen: Observation, name: str) -> bool:
    share = (seen.importances or {}).get(name)
    if not seen.importances or share is None or seen.study["counts"]["COMPLETE"] < ENOUGH_TRIALS:
        return True
    return share >= min(NO_DIFFERENCE, 0.5 / len(seen.importances))


def edges(seen: Observation) -> Iterator[Edge]:
    """The sides at which the best trials crowd, of the parameters that matter."""
    for name, searched in _searched(seen.study).items():
        values = [trial["params"][name] for trial in seen.best_trials if name in trial["params"]]
        if not _matters(seen, name) or not searched["high"] > searched["low"]:
            continue
        into = math.log if searched.get("log") else float
        low, high = into(searched["low"]), into(searched["high"])
        margin = AT_THE_EDGE * (high - low)
        for side, at_the_edge in (
            ("low", sum(into(value) <= low + margin for value in values)),
            ("high", sum(into(value) >= high - margin for value in values)),
        ):
            if at_the_edge >= max(FEWEST_AT_THE_EDGE, CROWD * len(values)):
                further = _further(seen.study, name, searched, side)
                yield Edge(name, side, searched[side], at_the_edge, len(values), further)


def _searched(study: Json) -> dict[str, dict[str, Any]]:
    """Each numeric parameter with the range that all rounds together have searched."""
    searched: dict[str, dict[str, Any]] = {}
    for one in study["rounds"] or [{"search_space": study["search_space"]}]:
        for name, given in one["search_space"].items():
            if given["type"] == "categorical":
                continue
            so_far = searched.setdefault(name, dict(given))
            so_far["low"] = min(so_far["low"], given["low"])
            so_far["high"] = max(so_far["high"], given["high"])
    return searched


def _further(study: Json, name: str, searched: Json, side: str) -> float | None:
    """A bound ten times, or one width, further out, as far as the objective goes."""
    width = searched["high"] - searched["low"]
    sign = 1 if side == "high" else -1
    bound: float = searched[side] * 10.0**sign if searched.get("log") else searched[side] + sign * width
    lowest, highest = _taken_by_objective(study, name)
    if lowest is not None:
        bound = max(bound, lowest)
    if highest is not None:
        bound = min(bound, highest)
    if searched["type"] == "int":
        bound = round(bound)
    return None if math.isclose(bound, searched[side]) else bound


def _taken_by_objective(study: Json, name: str) -> tuple[float | None, float | None]:
    objective = built_in(study.get("objective"))
    return (None, None) if objective is None else objective.bounds(name)


def _edges(seen: Observation) -> Iterator[str]:
    if seen.study["state"] not in wording.DONE:
        return  # too early to say
    found = list(edges(seen))
    if not found and _searched(seen.study) and len(seen.best_trials) >= FEWEST_BEST:
        yield "Edges: the best trials lie inside the ranges searched, not at an edge."
    for edge in found:
        side = "upper" if edge.side == "high" else "lower"
        yield (
            f"Edges: {edge.trials} of the best {edge.of} trials crowd the {side} end of {edge.parameter}"
            f" ({wording.number(edge.bound)})."
        )
        if edge.further is None:
            yield "  The objective takes nothing beyond."
            continue
        yield "  Better values may lie beyond. Search there: in a study file with another name, give"
        expand = "" if _expands(seen.study) else ", or use [narrowing] with expand = true"
        yield f"  {edge.parameter} {edge.side} = {wording.number(edge.further)}{expand}."


def _expands(study: Json) -> bool:
    return bool(study["narrowing"] and study["narrowing"]["expand"])


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
