"""What a study may not ask of a sampler or a pruner is refused at its place, with the rule."""

from __future__ import annotations

import inspect
from typing import Any

import optuna
import pytest

from hpo_service.domain.study import StudySpec
from hpo_service.tuning.pruners import PRUNERS
from hpo_service.tuning.samplers import SAMPLERS
from hpo_service.tuning.tuner import check

REAL = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
CHOICE = {"c": {"type": "categorical", "choices": ["a", "b"]}}


def faults(sampler: Any = None, pruner: Any = None, space: Any = None, **fields: Any) -> dict[str, str]:
    body = {"name": "s", "search_space": space or REAL, "sampler": {"name": "random", "seed": 1, **(sampler or {})}}
    spec = StudySpec.model_validate({**body, "pruner": pruner or {"name": "none"}, **fields})
    return dict(check(spec))


@pytest.mark.parametrize(
    ("given", "pointer", "words"),
    [
        ({"sampler": {"name": "tpe", "params": {"gamma": 3}}}, "/sampler/params/gamma", "no option 'gamma'"),
        ({"sampler": {"params": {"seed": 3}}}, "/sampler/params/seed", "beside params"),
        ({"sampler": {"name": "tpe", "params": {"a/b~": 3}}}, "/sampler/params/a~1b~0", "no option"),
        (
            {"sampler": {"name": "tpe", "params": {"n_startup_trials": -1}}},
            "/sampler/params/n_startup_trials",
            "at least 0",
        ),
        (
            {"sampler": {"name": "tpe", "params": {"n_startup_trials": True}}},
            "/sampler/params/n_startup_trials",
            "integer",
        ),
        (
            {"sampler": {"name": "tpe", "params": {"constant_liar": 1}}},
            "/sampler/params/constant_liar",
            "true or false",
        ),
        (
            {"sampler": {"name": "tpe", "params": {"group": True, "multivariate": False}}},
            "/sampler/params/group",
            "jointly",
        ),
        ({"sampler": {"name": "cmaes"}, "space": CHOICE}, "/search_space/c", "categorical"),
        ({"sampler": {"name": "cmaes"}, "directions": ["minimize", "minimize"]}, "/directions", "one direction"),
        ({"sampler": {"name": "cmaes", "params": {"popsize": 1}}}, "/sampler/params/popsize", "from 2"),
        (
            {"sampler": {"name": "cmaes", "params": {"lr_adapt": True, "with_margin": True}}},
            "/sampler/params/lr_adapt",
            "combined",
        ),
        ({"sampler": {"name": "grid"}}, "/search_space/x", "continuous"),
        (
            {"sampler": {"name": "grid"}, "space": CHOICE, "narrowing": {"rounds": 2, "trials_per_round": 3}},
            "/narrowing",
            "grid",
        ),
        ({"sampler": {"name": "qmc", "params": {"qmc_type": "lattice"}}}, "/sampler/params/qmc_type", '"halton"'),
        (
            {"sampler": {"name": "nsgaii", "params": {"population_size": 1}}},
            "/sampler/params/population_size",
            "from 2",
        ),
        (
            {"sampler": {"name": "nsgaii", "params": {"mutation_prob": 1.5}}},
            "/sampler/params/mutation_prob",
            "from 0 to 1",
        ),
        (
            {"space": {"x": {"type": "float", "low": 1e10, "high": 2e10, "step": 1e-6}}},
            "/search_space/x/step",
            "too fine",
        ),
        ({"pruner": {"name": "median"}, "directions": ["minimize", "minimize"]}, "/pruner/name", "one direction"),
        ({"pruner": {"name": "percentile"}}, "/pruner/params", "needs the option percentile"),
        (
            {"pruner": {"name": "percentile", "params": {"percentile": 101}}},
            "/pruner/params/percentile",
            "from 0 to 100",
        ),
        ({"pruner": {"name": "halving", "params": {"min_resource": "auto"}}}, "/pruner/params/min_resource", "integer"),
        ({"pruner": {"name": "hyperband"}}, "/pruner/params", "needs the option max_resource"),
        (
            {"pruner": {"name": "hyperband", "params": {"max_resource": 2, "min_resource": 3}}},
            "/pruner/params/max_resource",
            "below",
        ),
        ({"pruner": {"name": "threshold"}}, "/pruner/params", "lower, upper or both"),
        ({"pruner": {"name": "threshold", "params": {"lower": 2, "upper": 1}}}, "/pruner/params/upper", "below lower"),
        ({"pruner": {"name": "wilcoxon", "params": {"p_threshold": 2}}}, "/pruner/params/p_threshold", "from 0 to 1"),
        ({"pruner": {"name": "patient"}}, "/pruner/params", "needs the option patience"),
        (
            {"pruner": {"name": "patient", "params": {"patience": 1, "wrapped": "median"}}},
            "/pruner/params/wrapped",
            "name",
        ),
        (
            {"pruner": {"name": "patient", "params": {"patience": 1, "wrapped": {"name": "x"}}}},
            "/pruner/params/wrapped/name",
            "no pruner",
        ),
        (
            {
                "pruner": {
                    "name": "patient",
                    "params": {"patience": 1, "wrapped": {"name": "median", "params": {"y": 1}}},
                }
            },
            "/pruner/params/wrapped/params/y",
            "no option",
        ),
        (
            {"pruner": {"name": "patient", "params": {"patience": 1, "wrapped": {"name": "patient"}}}},
            "/pruner/params/wrapped/name",
            "cannot wrap",
        ),
    ],
)
def test_it_is_refused_at_its_place_with_the_rule(given: dict[str, Any], pointer: str, words: str) -> None:
    found = faults(**given)
    assert list(found) == [pointer]
    assert words in found[pointer]


@pytest.mark.parametrize("sampler", ["cmaes", "gp"])
def test_of_several_directions_it_says_what_to_take_instead(sampler: str) -> None:
    found = faults(sampler={"name": sampler}, directions=["maximize", "minimize"])
    assert "use tpe or nsgaii" in found["/directions"]


def test_all_that_works_passes() -> None:
    assert faults() == {}
    assert faults(sampler={"name": "tpe"}, space=CHOICE, directions=["minimize", "maximize"]) == {}
    assert faults(sampler={"name": "grid"}, space=CHOICE, directions=["minimize", "maximize"]) == {}
    wrapped = {"name": "halving", "params": {"min_resource": 1}}
    assert faults(pruner={"name": "patient", "params": {"patience": 3, "wrapped": wrapped}}) == {}


CLASSES: dict[str, Any] = {
    "random": optuna.samplers.RandomSampler,
    "tpe": optuna.samplers.TPESampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "qmc": optuna.samplers.QMCSampler,
    "grid": optuna.samplers.GridSampler,
    "nsgaii": optuna.samplers.NSGAIISampler,
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "threshold": optuna.pruners.ThresholdPruner,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
    "none": optuna.pruners.NopPruner,
}
# Deprecated, callables and objects; and what the study itself says.
NOT_OPTIONS = {
    *("consider_prior", "prior_weight", "consider_magic_clip", "consider_endpoints", "gamma", "weights"),
    *("constraints_func", "x0", "sigma0", "restart_strategy", "inc_popsize", "independent_sampler", "source_trials"),
    *("mutation", "crossover", "elite_population_selection_strategy", "child_generation_strategy"),
    *("after_trial_strategy", "seed", "search_space", "self"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_every_option_of_optunas_class_that_is_plain_json_is_an_option(name: str) -> None:
    theirs = set(inspect.signature(CLASSES[name].__init__).parameters) - NOT_OPTIONS - {"args", "kwargs"}
    ours = (SAMPLERS[name] if name in SAMPLERS else PRUNERS[name]).options
    deprecated_for_tpe = {"warn_independent_sampling"} if name == "tpe" else set()
    assert set(ours) == theirs - deprecated_for_tpe


def test_the_names_are_those_of_the_contract() -> None:
    assert set(SAMPLERS) == {"auto", "random", "tpe", "cmaes", "gp", "qmc", "grid", "nsgaii"}
    assert set(PRUNERS) == {"none", "median", "percentile", "halving", "hyperband", "patient", "threshold", "wilcoxon"}
