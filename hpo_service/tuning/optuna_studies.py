"""Studies in a database of Optuna's own, as bodies that our API takes: `hpo import URL`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from hpo_service.domain import measure
from hpo_service.domain.json_types import Json


class CannotBeRead(Exception):
    """No Optuna database, or a study that a search space of ours cannot describe."""


@dataclass(frozen=True)
class ForeignStudy:
    """body: for POST /v1/studies; trials: for :import; left_out: how many have not finished."""

    name: str
    body: Json
    trials: list[Json] = field(default_factory=list)
    left_out: int = 0


def read_studies(url: str, names: Sequence[str] = ()) -> Iterator[ForeignStudy]:
    """Read the studies of that database, all or those named. Raise CannotBeRead."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage = optuna.storages.RDBStorage(url, skip_table_creation=True)
        found = optuna.get_all_study_names(storage)
    except ModuleNotFoundError:
        raise  # the driver of that kind of database: the command says how to get it
    except Exception as error:
        raise CannotBeRead(f"no database of Optuna's can be read there: {' '.join(str(error).split())[:300]}") from None
    missing = sorted(set(names) - set(found))
    if missing:
        raise CannotBeRead(f"it has no study {missing[0]!r}; it has {', '.join(found) or 'none'}")
    for name in names or found:
        yield _foreign(optuna.load_study(study_name=name, storage=storage))


def _foreign(study: optuna.Study) -> ForeignStudy:
    trials = study.get_trials(deepcopy=False)
    finished = [trial for trial in trials if trial.state.is_finished()]
    name = study_name(study.study_name)
    if not any(trial.distributions for trial in finished):
        raise CannotBeRead(
            f"study {study.study_name!r} has no finished trial with params: nothing says what it searches"
        )
    body = {
        "name": name,
        "directions": ["maximize" if d is StudyDirection.MAXIMIZE else "minimize" for d in study.directions],
        "search_space": _search_space(finished),
        "metadata": {"imported_from": study.study_name},
    }
    imported = [_trial(trial) for trial in finished]
    return ForeignStudy(name, body, imported, len(trials) - len(finished))


def study_name(name: str) -> str:
    """The nearest name that a study of ours can have."""
    slug = re.sub(r"[^a-z0-9_-]+", "-", name.lower())[:63].strip("-_")
    return slug or "imported"


def _search_space(trials: Sequence[FrozenTrial]) -> Json:
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


def _trial(trial: FrozenTrial) -> Json:
    state = trial.state.name
    imported: Json = {"params": dict(trial.params), "state": state}
    if state != "FAIL" and trial.values is not None:
        imported["values"] = [measure.to_json(value) for value in trial.values]
    if trial.intermediate_values:
        imported["reports"] = [
            {"step": step, "value": measure.to_json(value)} for step, value in sorted(trial.intermediate_values.items())
        ]
    return imported
