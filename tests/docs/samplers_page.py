"""Writes docs/reference/samplers-and-pruners.md from their tables: `python -m tests.docs.samplers_page`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from optuna.samplers import CmaEsSampler, NSGAIISampler, QMCSampler
from pydantic import ValidationError

from hpo_service.domain.sampler_facts import SAMPLER_FACTS
from hpo_service.domain.study import StudySpec
from hpo_service.tuning.algorithm_options import Option, Options
from hpo_service.tuning.draw_cost import MOST_SECONDS
from hpo_service.tuning.gp import GaussianProcess
from hpo_service.tuning.pruners import (
    PRUNERS,
    HalvingPruner,
    HyperbandPruner,
    PercentilePruner,
    ThresholdPruner,
    WilcoxonPruner,
)
from hpo_service.tuning.qmc import QuasiRandom
from hpo_service.tuning.samplers import SAMPLERS, check_sampler
from hpo_service.tuning.tpe import Tpe

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "samplers-and-pruners.md"

HEAD = """\
# Samplers and pruners

In the study file, with the options under `params`; an unknown option, or a value out of its range, is refused with those
that there are. How they choose: [samplers](../explanation/samplers.md), [verdicts](../explanation/verdicts.md); how well:
[search quality](../search-quality.md).

```toml
name = "with-options"
sampler = { name = "tpe", seed = 7, params = { n_startup_trials = 20 } }
pruner = { name = "percentile", params = { percentile = 25.0, n_warmup_steps = 3 } }

[search_space]
lr = { type = "float", low = 1e-5, high = 0.1, log = true }
```

*Written from the tables by which options are checked (`python -m tests.docs.samplers_page`); a test compares the two.*
"""

WHEN: Mapping[str, str] = {
    "auto": "The default. One direction and at most 20 numeric parameters: `gp`, with `tpe` drawing every third trial once "
    "there are 40 (10 where others run meanwhile), `gp` drawing another third close to the best from 100 on where there "
    "is little noise, and `tpe` alone from 1,000 trials on. Several directions, or more parameters: `tpe`. Each trial says who drew it, and why (`hpo trial show`).",
    "random": "Uniform in each range, or in its logarithm. For a first look, for narrowing, and as what others are measured by.",
    "tpe": "Draws where good trials are dense and others are not. For any space, thousands of trials, and several directions.",
    "cmaes": "A normal distribution that moves and reshapes with each generation. For numbers only, hundreds of "
    "trials, and a smooth objective. Of `use_separable_cma`, `with_margin` and `lr_adapt` one may be true.",
    "gp": "A Gaussian process. For few and expensive trials: it learns most from the first hundred.",
    "qmc": "A Sobol' or Halton sequence: more even than random draws, and as indifferent to results.",
    "grid": "Every combination once, in a shuffled order; the study is COMPLETED with the last one.",
    "nsgaii": "Generations bred from the best of those before. For several directions and many trials.",
}
PRUNING: Mapping[str, str] = {
    "none": "No trial is ended early. The default.",
    "median": "Ends a trial whose best report so far is worse than the median of what COMPLETE trials reported at this step.",
    "percentile": "The same with a percentile: with 25, only the best quarter goes on.",
    "halving": "Successive halving without waiting for others: at each rung the best 1 of `reduction_factor` goes on.",
    "hyperband": "Several brackets of halving, of which some begin to judge later; a trial's bracket follows from its number.",
    "patient": "Ends a trial whose last `patience` reports and one are worse than those before; with `wrapped`, if that pruner agrees.",
    "threshold": "Ends a trial whose report is out of bounds, or NaN. One bound at least has to be given.",
    "wilcoxon": "For objectives that are a mean over instances, a report each (the step says which): ends a trial that a "
    "signed-rank test finds worse than the best one on the same instances.",
}
NO_EFFECT = "taken, since Optuna has it, and without effect here"
MEANING: Mapping[str, str] = {
    "tpe.n_startup_trials": "as many are drawn at random first",
    "tpe.n_ei_candidates": f"drawn for each trial, of which the best is taken; a draw may take {MOST_SECONDS:g} s, which is checked",
    "tpe.multivariate": "false: each parameter by itself",
    "tpe.group": "in groups of parameters that exist together, by Optuna's own code; not with `multivariate` false",
    "tpe.constant_liar": "running trials count as not good, so that workers side by side keep apart",
    "cmaes.n_startup_trials": "as many are drawn at random first",
    "cmaes.popsize": "trials of a generation; null: 4 + ⌊3 ln n⌋ of n parameters",
    "cmaes.consider_pruned_trials": "a PRUNED trial counts, with its last report",
    "cmaes.use_separable_cma": "no correlations: quicker with many parameters",
    "cmaes.with_margin": "for integers and steps: keeps a generation from standing still on one value",
    "cmaes.lr_adapt": "a learning rate of its own, for noise and many optima",
    "cmaes.warn_independent_sampling": NO_EFFECT,
    "gp.n_startup_trials": "as many cover the space evenly first; null: one more than numeric parameters, from 5 to 10",
    "gp.deterministic_objective": "the same params always give the same value",
    "gp.warn_independent_sampling": NO_EFFECT,
    "qmc.qmc_type": "the sequence",
    "qmc.scramble": "shuffle it by the seed",
    "qmc.warn_asynchronous_seeding": NO_EFFECT,
    "qmc.warn_independent_sampling": NO_EFFECT,
    "nsgaii.population_size": f"trials of a generation; a draw may take {MOST_SECONDS:g} s, which is checked",
    "nsgaii.mutation_prob": "that a param is drawn anew; null: one of them in the mean",
    "nsgaii.crossover_prob": "that a trial has two parents",
    "nsgaii.swapping_prob": "that a param comes from the second one",
    "percentile": "the share that goes on, in percent",
    "n_startup_trials": "so many have to be COMPLETE before any is judged",
    "n_warmup_steps": "steps below this are not judged",
    "interval_steps": "judged at the first report in each interval of so many steps",
    "n_min_trials": "so many have to have reported at this step",
    "min_resource": "the step at which the first rung stands",
    "halving.min_resource": "the step at which the first rung stands; left out: the first report, and reports are counted, not steps",
    "max_resource": "the last step of a whole training",
    "reduction_factor": "one of so many goes on; the next rung stands so many times as far",
    "min_early_stopping_rate": "the first so many rungs are left out",
    "bootstrap_count": "so many have to have come to a rung before one goes on from it",
    "patience": "so many reports are compared with those before them",
    "min_delta": "by how much more than this the best of these has to be worse than the best before them",
    "wrapped": "a second opinion",
    "lower": "the least that a report may be",
    "upper": "the most",
    "p_threshold": "so unlikely it has to be that it is no worse",
    "n_startup_steps": "so many instances have to be reported, two at least",
}
# Who takes the options, and so knows their defaults; the first that names one counts.
TAKEN_BY: Mapping[str, tuple[Callable[..., Any], ...]] = {
    "tpe": (Tpe,),
    "cmaes": (CmaEsSampler,),
    "gp": (GaussianProcess,),
    "qmc": (QuasiRandom, QMCSampler),
    "nsgaii": (NSGAIISampler,),
    "median": (PercentilePruner,),
    "percentile": (PercentilePruner,),
    "halving": (HalvingPruner,),
    "hyperband": (HyperbandPruner,),
    "threshold": (ThresholdPruner,),
    "wilcoxon": (WilcoxonPruner,),
}
OF_PATIENT: Mapping[str, Any] = {"min_delta": 0.0, "wrapped": None}

_X = {"type": "float", "low": 0.0, "high": 1.0}
_KIND = {"type": "categorical", "choices": ["a", "b"]}
_STEPS = {"type": "int", "low": 1, "high": 9}
_TWO = ["minimize", "minimize"]
_ROUNDS = {"rounds": 2, "trials_per_round": 5}
# What a sampler is asked whether it takes; each is beside that a space that every sampler takes.
ABILITIES: Mapping[str, Mapping[str, Any]] = {
    "real numbers": {"search_space": {"x": _X}},
    "choices": {"search_space": {"x": _STEPS, "kind": _KIND}},
    "several directions": {"search_space": {"x": _STEPS}, "directions": _TWO},
    "narrowing": {"search_space": {"x": _STEPS}, "narrowing": _ROUNDS},
    "define by run": {"search_space": {}, "define_by_run": True},
}


def page() -> str:
    lines = [HEAD, "## What each takes", "", *_abilities(), ""]
    lines += ["*draws ahead*: does not wait for results, so that workers may fetch several trials at a time.", ""]
    for name, kind in SAMPLERS.items():
        lines += [f"## Sampler {name}", "", WHEN[name], "", *_options(name, kind.options)]
    lines += ["## What pruners see", "", _OF_ALL_PRUNERS, ""]
    for name, pruner in PRUNERS.items():
        lines += [f"## Pruner {name}", "", PRUNING[name], "", *_options(name, pruner.options)]
    return "\n".join(lines)


_OF_ALL_PRUNERS = """\
A pruner judges by the values that trials report, in a study of one direction. It decides as Optuna's pruner of that name does on
the same reports; a test compares every decision."""


def takes(sampler: str, asked: Mapping[str, Any]) -> bool:
    try:
        spec = StudySpec.model_validate({"name": "asked", "sampler": {"name": sampler}, **asked})
    except ValidationError:
        return False
    return check_sampler(spec) == []


def _abilities() -> Iterator[str]:
    yield f"| sampler | {' | '.join(ABILITIES)} | draws ahead |"
    yield f"|---|{'---|' * (len(ABILITIES) + 1)}"
    for name in SAMPLERS:
        known = [takes(name, asked) for asked in ABILITIES.values()] + [SAMPLER_FACTS[name].draws_ahead]
        yield f"| `{name}` | {' | '.join('yes' if each else 'no' for each in known)} |"


def _options(name: str, options: Options) -> Iterator[str]:
    if not options:
        yield from ("It has no options.", "")
        return
    yield "| option | takes | default | |"
    yield "|---|---|---|---|"
    for option, rule in options.items():
        default = "required" if rule.required else _default(name, option, rule)
        meaning = MEANING.get(f"{name}.{option}") or MEANING[option]
        yield f"| `{option}` | {rule.rule} | {default} | {meaning} |"
    yield ""


def _default(name: str, option: str, rule: Option) -> str:
    default = default_of(name, option)
    return "left out" if default is None and not rule.accepts(None) else f"`{json.dumps(default)}`"


def default_of(name: str, option: str) -> Any:
    if name == "patient":
        return OF_PATIENT[option]
    for taker in TAKEN_BY[name]:
        parameters = inspect.signature(taker).parameters
        if option in parameters and parameters[option].default is not inspect.Parameter.empty:
            return parameters[option].default
    raise LookupError(f"nobody knows the default of {name}'s {option}")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
