"""Advice on what is searched: edges, ranges that ask for logarithms, parameters that hardly matter or never varied."""

from __future__ import annotations

import math
from collections.abc import Iterator

from hpo_service.domain.advice_input import Advice, AdviceInput, AdviceTrial, can_vary, distinct
from hpo_service.domain.objectives import built_in
from hpo_service.domain.search_space import CategoricalParameter, NumericParameter
from hpo_service.domain.wording_of_numbers import shown

AT_THE_EDGE = 0.1  # of the range
AT_THE_END = 0.02
BY_CHANCE = 0.002  # the highest probability of such a crowd, were the trials spread evenly
SIDES = {"low": "lower", "high": "upper"}
DECADES = 3
FEWEST_TO_VARY = 10
FEWEST_TO_MATTER = 20
TRIALS_A_PARAMETER = 8
EXPLAINS = 0.5  # of the variance, before a fit says what matters
NO_LOSS = 0.02  # by how much the unexplained share may grow without a parameter that hardly matters


def edges(seen: AdviceInput) -> Iterator[Advice]:
    """The sides of ranges where more of the best trials crowd than by chance, and no optimum lies just inside."""
    hardly = {advice.parameter for advice in hardly_matters(seen)}
    for name, searched in seen.space.items():
        if isinstance(searched, CategoricalParameter) or name in hardly or not searched.high > searched.low:
            continue
        places = [place_of(searched, trial.params[name]) for trial in seen.best if name in trial.params]
        for side, distances in (("low", places), ("high", [1 - place for place in places])):
            crowd = sum(distance <= AT_THE_EDGE for distance in distances)
            if crowd and _by_chance(crowd, len(distances)) < BY_CHANCE and _still_improves(seen, name, searched, side):
                yield _edge(seen, name, searched, side, crowd, len(distances))


def _edge(seen: AdviceInput, name: str, searched: NumericParameter, side: str, crowd: int, of: int) -> Advice:
    bound = searched.low if side == "low" else searched.high
    further = _further(seen, name, searched, side)
    beyond = "the objective takes nothing beyond" if further is None else f"search on to {shown(further)}"
    return Advice(
        "edge",
        name,
        f"{crowd} of the best {of} trials crowd the {SIDES[side]} end of {name} ({shown(bound)}): {beyond}",
        {"side": side, "bound": bound, "trials": crowd, "of": of},
        None if further is None else {"parameter": name, side: further},
    )


def place_of(searched: NumericParameter, value: object) -> float:
    """Where in its range a value lies: from 0 to 1, by its logarithm where that is how it is drawn."""
    into = math.log if searched.log else float
    low, high = into(searched.low), into(searched.high)
    number = float(value) if isinstance(value, int | float) else searched.low
    if searched.log and number <= 0:
        return 0.0
    return min(1.0, max(0.0, (into(number) - low) / (high - low)))


def _by_chance(crowd: int, of: int) -> float:
    """The probability that at least so many of evenly drawn places lie at one edge."""
    p = AT_THE_EDGE
    return sum(math.comb(of, k) * p**k * (1 - p) ** (of - k) for k in range(crowd, of + 1))


def _still_improves(seen: AdviceInput, name: str, searched: NumericParameter, side: str) -> bool:
    """Whether a third of the best lie at the very end, or trials near the edge are better the nearer they are to it.

    Else the best value lies inside, though near to the edge. With few trials there, it is taken to improve.
    """

    def distance(trial: AdviceTrial) -> float:
        place = place_of(searched, trial.params[name])
        return place if side == "low" else 1 - place

    at_the_end = sum(distance(trial) <= AT_THE_END for trial in seen.best if name in trial.params)
    if 3 * at_the_end >= len(seen.best):
        return True
    near = [trial for trial in seen.completed if name in trial.params and distance(trial) <= AT_THE_EDGE]
    near.sort(key=distance)
    half = len(near) // 2
    if half < 4:
        return True
    closer, others = near[:half], near[-half:]
    wins = sum(_is_better(seen, one, other) for one in closer for other in others)
    by_chance = half * half / 2, math.sqrt(half * half * (2 * half + 1) / 12)  # of a rank sum: mean, deviation
    return wins > by_chance[0] + by_chance[1]


def _is_better(seen: AdviceInput, one: AdviceTrial, other: AdviceTrial) -> bool:
    return one.told > other.told if seen.maximizes else one.told < other.told


def _further(seen: AdviceInput, name: str, searched: NumericParameter, side: str) -> float | None:
    """A bound ten times (log) or one width further out, within the objective's own; None if nothing is beyond."""
    bound = searched.low if side == "low" else searched.high
    sign = 1 if side == "high" else -1
    further = bound * 10.0**sign if searched.log else bound + sign * (searched.high - searched.low)
    objective = built_in(seen.study.spec.objective)
    lowest, highest = (None, None) if objective is None else objective.bounds(name)
    if lowest is not None:
        further = max(further, lowest)
    if highest is not None:
        further = min(further, highest)
    if searched.type == "int":
        further = max(1, round(further)) if searched.log else round(further)
    return None if not math.isfinite(further) or math.isclose(further, bound) else further


def log_scales(seen: AdviceInput) -> Iterator[Advice]:
    for name, given in seen.study.spec.search_space.items():
        if isinstance(given, CategoricalParameter) or given.log or given.low <= 0 or given.step not in (None, 1):
            continue
        decades = math.log10(given.high) - math.log10(given.low)
        if decades >= DECADES - 1e-9:
            yield Advice(
                "log_scale",
                name,
                f"{name} spans {decades:.1f} powers of ten evenly, so that nine in ten draws lie in the last one; "
                "with log = true each is searched alike",
                {"low": given.low, "high": given.high, "decades": round(decades, 2)},
                {"parameter": name, "log": True},
            )


def hardly_matters(seen: AdviceInput) -> Iterator[Advice]:
    """The parameters without which a smooth function of the others predicts the values no worse."""
    if not seen.has_one_direction:
        return
    for fit in seen.fits:
        wanted = max(FEWEST_TO_MATTER, TRIALS_A_PARAMETER * len(fit.without))
        if fit.trials < wanted or fit.explained < EXPLAINS:
            continue
        unexplained = 1 - fit.explained
        for name, without in fit.without.items():
            if 1 - without <= (1 + NO_LOSS) * unexplained:
                yield Advice(
                    "hardly_matters",
                    name,
                    f"{name} hardly matters in this range: the others explain {without:.0%} of the differences between "
                    f"trials without it, and {fit.explained:.0%} with it; fix it, and search something else",
                    {"explained": round(fit.explained, 4), "without": round(without, 4), "trials": fit.trials},
                )


def constants(seen: AdviceInput) -> Iterator[Advice]:
    for name, given in seen.space.items():
        values = [trial.params[name] for trial in seen.completed if name in trial.params]
        if can_vary(given) and len(values) >= FEWEST_TO_VARY and distinct(values) == 1:
            yield Advice(
                "constant",
                name,
                f"{name} was {shown(values[0])} in every COMPLETE trial that has it: nothing is known of other values",
                {"value": values[0], "trials": len(values)},
            )
