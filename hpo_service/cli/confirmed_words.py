"""What the replicates of the best trials have shown, in words: the winner, what it is worth, and what was luck."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hpo_service.cli import wording
from hpo_service.domain.confirmation import worth
from hpo_service.domain.json_types import Json
from hpo_service.domain.objectives import built_in

Told = Mapping[int, float | str]  # the original values of the confirmed trials, by number


def confirmation_lines(study: Mapping[str, Any], told: Told) -> Iterator[str]:
    confirmation = study.get("confirmation")
    if not confirmation:
        return
    under_way, ranking = confirmation["state"] == "RUNNING", confirmation["ranking"]
    if under_way:
        best = wording.count(confirmation["top"], "trial")
        so_far = "so far:" if ranking else "nothing is known yet."
        yield f"Confirming: the best {best} trained again, {confirmation['seeds']} times each; {so_far}"
    if not ranking:
        if not under_way:
            yield "Confirmed: nothing. Of no trial have two trainings with fresh seeds come through."
        return
    first, worths = ranking[0], worth([list(map(float, each["values"])) for each in ranking])
    probably = {each["number"]: value for each, value in zip(ranking, worths, strict=True)}
    yield f"Confirmed: trial {first['number']}, {measure(study)} {wording.number(probably[first['number']], 4)}"
    trainings = wording.count(len(first["values"]), "training")
    yield f"  Mean of {trainings} with fresh seeds: {mean_and_interval(first)}."
    if len(ranking) > 1:
        yield f"  The best of {len(ranking)} means is a little too good itself; the first line allows for that."
    yield from _luck(study, ranking, told, probably)
    yield from _others(confirmation["tied"], [each["number"] for each in ranking[1:]])
    if failed := sum(each["failed"] for each in ranking):
        yield f"  {wording.count(failed, 'training')} failed."


def measure(study: Mapping[str, Any]) -> str:
    """What a trial's value is called."""
    objective = built_in(study.get("objective"))
    return "value" if objective is None else objective.value


def mean_and_interval(confirmed: Json) -> str:
    low, high = (wording.number(confirmed[side]) for side in ("low", "high"))
    return f"{wording.number(confirmed['mean'], 4)} ({low} … {high}, in 95 of 100 cases)"


def _luck(
    study: Mapping[str, Any], ranking: Sequence[Json], told: Told, probably: Mapping[int, float]
) -> Iterator[str]:
    """How much of the original value was luck: for the first of the ranking, and for the trial with the best value."""
    best = (study.get("best") or {}).get("number")
    for each in ranking:
        number = each["number"]
        if number not in told or (each is not ranking[0] and number != best):
            continue
        what = "It" if each is ranking[0] else f"Trial {number}, the best told,"
        is_worth = "" if each is ranking[0] else f" and is worth {wording.number(probably[number], 4)}"
        before, after = float(told[number]), probably[number]
        luck = before - after if study["directions"][0] == "maximize" else after - before
        was_luck = f"{wording.number(luck, 2)} of that was luck" if luck > 0 else "none of that was luck"
        yield f"  {what} had told {wording.number(told[number], 4)}{is_worth}: {was_luck}."


def _others(tied: Sequence[int], others: Sequence[int]) -> Iterator[str]:
    if tied:
        numbers = ", ".join(map(str, tied))
        yield f"  Cannot be told from it: {'trial' if len(tied) == 1 else 'trials'} {numbers}."
    worse = len(others) - len(tied)
    if worse:
        yield f"  Worse, in 95 of 100 cases: {wording.count(worse, 'other trial')}."
