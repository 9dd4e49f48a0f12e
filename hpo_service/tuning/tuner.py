"""Sampling and pruning of one study: which params a trial gets, and whether it shall go on.

Samplers keep their state in the trials' system_attrs, as JSON, and rebuild the rest from the history, so that a
restarted server, or another one on the same database, goes on where the last one stopped. Nothing is ever unpickled:
Optuna's CMA-ES keeps pickles there, and whoever can write to the database could then run code in the server.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from hpo_service.domain.curve import Curve
from hpo_service.domain.errors import Fault
from hpo_service.domain.growing_space import EXPECTED, deferred_draws
from hpo_service.domain.parents import CannotExist, choices_of_parents
from hpo_service.domain.sampler_facts import SAMPLER_FACTS
from hpo_service.domain.search_space import Params, SearchSpace, Value
from hpo_service.domain.study import StudySpec
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.axes import Axes, axis
from hpo_service.tuning.deduplication import Deduplicator, is_deduplicated
from hpo_service.tuning.drawing import DrawnParams, Exhausted, uniforms
from hpo_service.tuning.pruners import Verdict, check_pruner, make_pruner
from hpo_service.tuning.samplers import check_sampler, is_quick, make_sampler

__all__ = [
    "DrawnParams",
    "Exhausted",
    "Tuner",
    "Verdict",
    "check",
    "draw_unknown",
    "history_bytes",
    "is_quick",
    "needs_history",
]

# About what a sampler and a pruner keep of a finished trial, and of each of its reports.
BYTES_A_TRIAL, BYTES_A_REPORT = 200, 16


def check(spec: StudySpec) -> list[Fault]:
    """What this study asks of its sampler and its pruner that they cannot do."""
    return [*check_sampler(spec), *check_pruner(spec)]


def needs_history(spec: StudySpec) -> bool:
    """Whether a draw has to know the earlier trials: the sampler learns from them, or may not repeat them."""
    return SAMPLER_FACTS[spec.sampler.name].learns or is_deduplicated(spec.search_space)


def history_bytes(trials: Iterable[HistoryTrial]) -> int:
    """Roughly what a tuner keeps in memory of these trials."""
    finished = (trial for trial in trials if trial.state.is_finished)
    return sum(BYTES_A_TRIAL + BYTES_A_REPORT * len(trial.reports) for trial in finished)


def deduplicator_of(spec: StudySpec) -> Deduplicator | None:
    """The deduplicator of a finite search space; None for any other, and for a grid, which repeats nothing."""
    if spec.sampler.name == "grid" or not is_deduplicated(spec.search_space):
        return None
    facts = SAMPLER_FACTS[spec.sampler.name]
    return Deduplicator(spec.sampler.seed or 0, near=facts.learns and not facts.draws_ahead)


def draw_unknown(spec: StudySpec, number: int, name: str) -> Value:
    """The value of a parameter that was not known when the trial was drawn: uniform, as before any trial has ended."""
    parameter = spec.search_space[name]
    position = uniforms(1, spec.sampler.seed or 0, number, f"suggest {name}")[0]
    return axis(name, parameter, parameter).at(float(position))


class Tuner:
    """Samples and prunes for one study; keeps its history in memory. In the server, the caller holds the write lock."""

    def __init__(self, spec: StudySpec, *, draws: bool = True) -> None:
        """spec: one in which `check` finds no fault, with sampler.seed set. draws: False for one that only judges."""
        self._spec = spec
        self._sampler = make_sampler(spec) if draws else None
        self._deduplicator = deduplicator_of(spec) if draws else None
        self._pruner = make_pruner(spec)
        self._space = spec.search_space
        self._axes = Axes(spec.search_space, spec.search_space)
        # With define_by_run: the parameters that every COMPLETE or PRUNED trial has; they are drawn jointly.
        self._shared = set(spec.search_space.names())

    def absorb(self, trials: Iterable[HistoryTrial]) -> None:
        """Take note of new or changed trials, in any order; call it after every change, whoever made it.

        A trial that was drawn counts as drawn once it is absorbed.
        """
        for trial in trials:
            if self._spec.define_by_run:
                trial = self._as_expected(trial)
            if self._sampler is not None:
                self._sampler.absorb(trial)
            if self._deduplicator is not None:
                self._deduplicator.absorb(trial)
            self._pruner.absorb(trial)

    def _as_expected(self, trial: HistoryTrial) -> HistoryTrial:
        """The trial, if it has not finished, with the params that it is expected to ask for."""
        if not trial.state.is_finished:
            return replace(trial, params={**trial.system_attrs.get(EXPECTED, {}), **trial.params})
        if trial.state is not TrialState.FAIL and not self._shared <= trial.params.keys():
            self._shared &= trial.params.keys()
            self._axes = Axes(self._spec.search_space, self._spec.search_space, self._shared)
        return trial

    def draw(self, number: int, space: SearchSpace, fixed: Params) -> DrawnParams:
        """The params of trial `number` within this round's `space`; raise Exhausted when a grid has no point left.

        fixed: taken as they are, and their parents so that they exist.
        """
        if self._spec.define_by_run:
            return self._draw_deferred(number, fixed)
        if space is not self._space:
            if space != self._space:
                self._axes = Axes(self._spec.search_space, space)
            self._space = space
        if fixed and self._spec.search_space.has_conditions():
            fixed = {**self._parents(number, fixed), **fixed}
        if fixed and self._axes.are_complete(fixed):
            return DrawnParams(self._axes.complete(fixed, lambda axis: axis.point(0)))
        return self._sampler_draws(number, fixed)

    def _draw_deferred(self, number: int, fixed: Params) -> DrawnParams:
        """With define_by_run: draw all known parameters into system_attrs. fixed: also unknown ones."""
        known = {name: value for name, value in fixed.items() if name in self._space}
        drawn = DrawnParams(known) if self._axes.are_complete(known) else self._sampler_draws(number, known)
        attrs = deferred_draws({**drawn.params, **fixed}, {*self._shared, *fixed})
        return DrawnParams({}, {**drawn.system_attrs, **attrs})

    def _sampler_draws(self, number: int, fixed: Params) -> DrawnParams:
        assert self._sampler is not None
        drawn = self._sampler.draw(number, self._axes, fixed)
        # If some trials lack parameters, the set of combinations is not known.
        if self._deduplicator is None or fixed or len(self._shared) < len(self._spec.search_space):
            return drawn
        return self._deduplicator.deduplicated(drawn, number, self._axes)

    def _parents(self, number: int, fixed: Params) -> Params:
        """A choice for each parent that is not fixed, such that all fixed params exist."""
        try:
            possible = choices_of_parents(self._spec.search_space, fixed)
        except CannotExist:  # refused by today's enqueue, but an older version took it
            return {}
        chosen: Params = {}
        for name, choices in possible.items():
            now = [choice for choice in choices if name in self._space and self._space[name].contains(choice)]
            position = uniforms(1, self._spec.sampler.seed or 0, number, f"parent {name}")[0]
            left = now or choices
            chosen[name] = left[int(position * len(left))]
        return chosen

    def judge(self, number: int, reports: Curve | Mapping[int, float], new: Collection[int] = ()) -> Verdict:
        """Whether the trial shall end at its latest step; new: the steps reported since it was last judged."""
        return self._pruner.judge(number, reports if isinstance(reports, Curve) else Curve.of(reports), new)
