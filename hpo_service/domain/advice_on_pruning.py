"""Advice on pruning: what a pruner would have saved, replayed on the trials that ran to their end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from hpo_service.domain.advice_input import Advice, AdviceInput, AdviceTrial

FEWEST_CURVES = 20
FEWEST_STEPS = 5  # of a trial
BEFORE_THE_FIRST = 5  # trials that run to their end before anything is judged
WORTH_IT = 0.3  # of all steps


def pruning(seen: AdviceInput) -> Iterator[Advice]:
    """What a median pruner would have saved where it would have lost nothing."""
    curves = [trial for trial in seen.curves if len(trial.reports) >= FEWEST_STEPS and trial.value is not None]
    if seen.study.spec.pruner.name != "none" or not seen.has_one_direction or len(curves) < FEWEST_CURVES:
        return
    run, survived = replayed(curves, maximize=seen.maximizes)
    steps = sum(len(trial.reports) for trial in curves)
    best_of = max if seen.maximizes else min
    best = [best_of(trial.told for trial in some) for some in (curves, survived)]
    saved = 1 - run / steps
    if saved >= WORTH_IT and best[0] == best[1]:
        yield Advice(
            "pruning",
            None,
            f"a median pruner would have saved {saved:.0%} of the steps of the {len(curves)} trials that were replayed "
            "and would not have lost the best of them",
            {"pruner": "median", "steps": steps, "saved": steps - run, "trials": len(curves), "lost": 0.0},
            {"pruner": {"name": "median"}},
        )


def replayed(curves: Sequence[AdviceTrial], *, maximize: bool) -> tuple[int, list[AdviceTrial]]:
    """How many steps would have run under a median pruner, and which trials to their end.

    A trial ends at the step at which its best so far is worse than the median of what the trials before had reported at
    that step.
    """
    sign = 1.0 if maximize else -1.0
    at_step: dict[int, list[float]] = {}
    run, survived = 0, []
    for count, trial in enumerate(curves):
        best, pruned = -math.inf, False
        for step, value in trial.reports:
            run += 1
            best = max(best, sign * value) if value == value else best
            before = at_step.get(step, [])
            pruned = (
                count >= BEFORE_THE_FIRST
                and len(before) >= BEFORE_THE_FIRST
                and best < sorted(before)[len(before) // 2]
            )
            if value == value:
                at_step.setdefault(step, []).append(sign * value)
            if pruned:
                break
        if not pruned:
            survived.append(trial)
    return run, survived
