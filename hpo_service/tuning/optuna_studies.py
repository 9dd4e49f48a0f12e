"""Studies of Optuna's own, as bodies that our API takes: `hpo import`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo_service.domain import measure, nul, sizes
from hpo_service.domain.json_types import Json
from hpo_service.tuning.optuna_conditions import conditions
from hpo_service.tuning.optuna_sources import CannotBeRead, Source, in_a_line

_NOTE = re.compile(r"dashboard:(?:(\d+):)?note_str:(\d+)")  # of a trial, by its id, or of the study


@dataclass(frozen=True)
class ForeignTrial:
    """number: its number there; body: for :import."""

    number: int
    body: Json


@dataclass(frozen=True)
class ForeignStudy:
    """fields: of the body for POST /v1/studies, without its name; left: what does not come along, in words."""

    name: str
    fields: Json
    trials: list[ForeignTrial] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def study_names(source: Source) -> dict[str, int]:
    """All studies there, with their ids."""
    try:
        return {study.study_name: study._study_id for study in source.storage.get_all_studies()}
    except Exception as error:
        raise CannotBeRead(f"no studies of Optuna's can be read there: {in_a_line(error)}") from None


def read_study(source: Source, name: str) -> ForeignStudy:
    """Raise CannotBeRead."""
    try:
        study = optuna.load_study(study_name=name, storage=source.storage)
        trials = study.get_trials(deepcopy=False)
        notes = _notes(source.storage.get_study_system_attrs(study._study_id))
    except Exception as error:
        raise CannotBeRead(f"it cannot be read: {in_a_line(error)}") from None
    finished = [trial for trial in trials if trial.state.is_finished()]
    if not any(trial.distributions for trial in finished):
        raise CannotBeRead("it has no finished trial with params: nothing says what it searches")
    space = _search_space(finished)
    when, lost = conditions(space, finished)
    fields: Json = {
        "directions": ["maximize" if d is StudyDirection.MAXIMIZE else "minimize" for d in study.directions],
        "search_space": space,
    }
    left = [*_unfinished(trials)]
    for parameter, condition in when.items():
        space[parameter]["when"] = condition
    if lost:
        fields["define_by_run"] = True
        left.append(_conditions_lost(lost))
    metadata = _metadata(study, notes.get(""), left)
    foreign = [ForeignTrial(trial.number, _trial(trial, notes.get(str(trial._trial_id)), left)) for trial in finished]
    return ForeignStudy(name, {**fields, "metadata": metadata}, foreign, left)


def _unfinished(trials: Sequence[FrozenTrial]) -> Iterator[str]:
    for state, words in ((TrialState.RUNNING, "still running"), (TrialState.WAITING, "enqueued and not begun")):
        count = sum(trial.state is state for trial in trials)
        if count:
            yield f"{count} {'trial' if count == 1 else 'trials'} {words}"


def _conditions_lost(names: Sequence[str]) -> str:
    exists = f"{names[0]} exists" if len(names) == 1 else f"{', '.join(names)} exist"
    return f"when {exists}: no categorical parameter decides it alone, so the study is defined by run"


def _notes(system_attrs: Mapping[str, Any]) -> dict[str, str]:
    """What was written in optuna-dashboard, which keeps a text in pieces: by the trial's id, "" for the study."""
    pieces: dict[str, dict[int, str]] = {}
    for key, text in system_attrs.items():
        if match := _NOTE.fullmatch(key):
            pieces.setdefault(match[1] or "", {})[int(match[2])] = str(text)
    return {
        owner: "".join(some[place] for place in sorted(some)).replace("\0", "\ufffd") for owner, some in pieces.items()
    }


def _metadata(study: optuna.Study, note: str | None, left: list[str]) -> Json:
    """What Optuna keeps with a study beside its trials."""
    found: Json = {}
    if study.user_attrs:
        found["user_attrs"] = _as_json(study.user_attrs)
    if study.metric_names:
        found["metric_names"] = list(study.metric_names)
    if note:
        found["note"] = note
    if sizes.size_of(found) > sizes.METADATA // 2:
        left.append("the study's user attributes and note: they are too large for its metadata")
        return {}
    return found


# -- the search space -------------------------------------------------------------------------------------


def _search_space(trials: Sequence[FrozenTrial]) -> dict[str, Json]:
    """What the trials' distributions span together: Optuna lets a range change from trial to trial."""
    space: dict[str, Json] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            parameter = _parameter(name, distribution)
            space[name] = _joined(name, space[name], parameter) if name in space else parameter
    return space


def _parameter(name: str, distribution: BaseDistribution) -> Json:
    if isinstance(distribution, CategoricalDistribution):
        return {"type": "categorical", "choices": list(distribution.choices)}
    if isinstance(distribution, FloatDistribution | IntDistribution):
        kind = "int" if isinstance(distribution, IntDistribution) else "float"
        parameter: Json = {"type": kind, "low": distribution.low, "high": distribution.high, "log": distribution.log}
        step = distribution.step
        if step is not None and not distribution.log and not (kind == "int" and step == 1):
            parameter["step"] = step
        return parameter
    raise CannotBeRead(f"parameter {name!r} has a distribution that is not known here: {distribution}")


def _joined(name: str, one: Json, other: Json) -> Json:
    if one == other:
        return one
    if one["type"] != other["type"] or one["type"] == "categorical" or one["log"] != other["log"]:
        raise CannotBeRead(f"parameter {name!r} changes its kind from trial to trial: {one} and {other}")
    wider = {**one, "low": min(one["low"], other["low"]), "high": max(one["high"], other["high"])}
    wider.pop("step", None)  # two grids need not have their points in common
    return wider


# -- trials -----------------------------------------------------------------------------------------------


def _trial(trial: FrozenTrial, note: str | None, left: list[str]) -> Json:
    """A trial that violates a constraint is a FAIL: Optuna never takes one for the best, whatever its value."""
    infeasible = trial.state is TrialState.COMPLETE and not all(c <= 0 for c in trial.constraints.values())
    body: Json = {"params": dict(trial.params), "state": "FAIL" if infeasible else trial.state.name}
    values = None if trial.values is None else [measure.to_json(value) for value in trial.values]
    if infeasible:
        body["reason"] = "infeasible"
    elif body["state"] != "FAIL" and values is not None:
        body["values"] = values
    if trial.intermediate_values:
        body["reports"] = [
            {"step": step, "value": measure.to_json(value)} for step, value in sorted(trial.intermediate_values.items())
        ]
    origin = _origin(trial, note, values if infeasible else None)
    attributes = _as_json(trial.user_attrs)
    body["metrics"] = {**attributes, "imported": origin}
    if sizes.size_of(body["metrics"]) > sizes.TELL_METRICS:
        left.append(f"the user attributes of trial {trial.number}: they are too large")
        body["metrics"] = {"imported": {"number": trial.number}}
    elif "imported" in attributes:
        left.append(f"the user attribute 'imported' of trial {trial.number}: the word is taken")
    return body


def _origin(trial: FrozenTrial, note: str | None, values: list[Any] | None) -> Json:
    """What the trial was where it came from. Optuna's times are naive, in the reader's local time."""
    times = {"started_at": trial.datetime_start, "finished_at": trial.datetime_complete}
    told = {name: time.astimezone(UTC).isoformat() for name, time in times.items() if time is not None}
    found: Json = {"number": trial.number, **told}
    if values is not None:
        found |= {"values": values, "constraints": _as_json(trial.constraints)}
    if note:
        found["note"] = note
    return found


def _as_json(attributes: Mapping[str, Any]) -> Json:
    """With strings for NaN and the infinities, which JSON lacks, and without NUL, which no database keeps."""
    made: Json = json.loads(nul.replaced(json.dumps(_speakable(dict(attributes)), default=str).encode()))
    return made


def _speakable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return measure.to_json(value)
    if isinstance(value, dict):
        return {str(key): _speakable(each) for key, each in value.items()}
    return [_speakable(each) for each in value] if isinstance(value, list | tuple) else value
