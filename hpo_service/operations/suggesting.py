"""A trial asks for the values of parameters that it names: as they were drawn for it, or now, where a name is new."""

from __future__ import annotations

from collections.abc import Mapping

from hpo_service.domain.errors import Fault, Invalid
from hpo_service.domain.growing_space import check_definitions, drawn_before, fitting, grown
from hpo_service.domain.json_pointer import pointer
from hpo_service.domain.json_types import Json
from hpo_service.domain.search_space import Parameter, Params, SearchSpace, check_choice_sizes
from hpo_service.domain.trial import Trial
from hpo_service.operations.calls import Suggest
from hpo_service.operations.study_work import StudyWork
from hpo_service.tuning import tuner


def suggest(work: StudyWork, number: int, call: Suggest) -> Json:
    trial = work.transaction.trial(work.study, number)
    lifecycle = trial.lifecycle.renew(call.attempt, work.transaction.now)
    if work.study.spec.define_by_run:
        _let_grow(work, call.parameters)
        params = {**trial.params, **_suggested(work, trial, call.parameters)}
    else:
        _check_known(work.study.spec.search_space, call.parameters)
        params = trial.params
    work.change(trial, lifecycle, params=params)
    return {"params": {name: params[name] for name in call.parameters if name in params}}


def _let_grow(work: StudyWork, asked: Mapping[str, Parameter]) -> None:
    """Have names that are new to the study join its search space; raise Invalid for what its sampler cannot draw."""
    spec = work.study.spec
    space = grown(spec.search_space, asked)
    if space is spec.search_space:
        return
    larger = spec.model_copy(update={"search_space": space})
    check_choice_sizes(space)
    if faults := tuner.check(larger):
        raise Invalid([Fault(_in_this_call(fault.pointer), fault.detail) for fault in faults])
    work.grow(larger)


def _in_this_call(place: str) -> str:
    below = "/search_space/"
    return "/parameters/" + place.removeprefix(below) if place.startswith(below) else "/parameters"


def _suggested(work: StudyWork, trial: Trial, asked: Mapping[str, Parameter]) -> Params:
    """The values of the names that the trial does not have yet."""
    suggested: Params = {}
    for name, parameter in asked.items():
        if name in trial.params:
            continue
        drawn = drawn_before(trial.system_attrs, name)
        if drawn is None:  # nobody knew it when the trial was given out: no trial can have taught anything about it
            suggested[name] = tuner.draw_unknown(work.study.spec, trial.number, name)
        else:
            suggested[name] = fitting(name, parameter, drawn[0])
    return suggested


def _check_known(space: SearchSpace, asked: Mapping[str, Parameter]) -> None:
    faults = [
        Fault(pointer("parameters", name), f"not a parameter of this study; it has {', '.join(space.names())}")
        for name in asked
        if name not in space
    ]
    if faults:
        raise Invalid(faults)
    check_definitions(space, asked)
