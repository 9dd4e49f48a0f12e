"""Which trials of a study a process trains side by side, and how many of them it asks for.

docs/decisions/0011-trials-in-groups.md says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog

from hpo_service.client import Json, conclusion
from hpo_service.domain import neural_network
from hpo_service.domain.neural_network import NetworkConfiguration
from hpo_service.domain.sampler_facts import draws_ahead
from hpo_worker.datasets import load
from hpo_worker.objective import DIVERGED, NeuralNetwork, TrainingTrial, configuration_of, result_of
from hpo_worker.trainer import MAX_GROUP_SIZE, PER_TRIAL_SETTINGS, EpochReport, Member, TrialGroup, can_train_together

log = structlog.get_logger()


def trains_in_groups(study: Json) -> bool:
    """Whether trials of this study may train in one group: equal array shapes, and a sampler that needs no results."""
    return (
        (study["objective"] or {}).get("kind") == neural_network.KIND
        and draws_ahead(study["sampler"]["name"])
        and PER_TRIAL_SETTINGS.issuperset(study["search_space"])
    )


def extra_trials_in(study: Json) -> int:
    """How many more trials of this study a process that was given one of it should ask for."""
    if not trains_in_groups(study) or study["state"] != "ACTIVE":
        return 0
    return extra_trials(_left(study), study["counts"]["RUNNING"])


def extra_trials(left: int, running: int) -> int:
    """How many more trials to ask for. left: still to be given out; running: including the one that is held.

    At most an equal share of what is left: other processes shall find some too, and no more processes are at work than
    trials are running.
    """
    return min(MAX_GROUP_SIZE - 1, left // max(1, running))


def _left(study: Json) -> int:
    """How many trials the limit and the current round still allow; WAITING ones are still to be given out."""
    counts, narrowing, current = study["counts"], study["narrowing"], study["rounds"][-1]
    limit = study["limits"]["trials"]
    left = 2**31 if limit is None else limit - sum(counts.values()) + counts["WAITING"]
    if narrowing is not None and current["round"] + 1 < narrowing["rounds"]:
        left = min(left, narrowing["trials_per_round"] - current["trials"])
    return max(0, left)


def train_side_by_side(trials: Sequence[TrainingTrial], folder: Path | None) -> Iterator[tuple[TrainingTrial, Json]]:
    """Train trials of one study; yield each with its result as soon as it has ended."""
    left = list(trials)
    try:
        for group in _groups({trial: configuration_of(trial) for trial in trials}):
            for trial, result in _train(group, folder):
                left.remove(trial)
                yield trial, result
    except (Exception, SystemExit):
        # One by one only the faulty trial fails, and one needs less memory than a group.
        log.exception("the group failed; its trials train alone", trials=[trial.number for trial in left])
        for trial in left:
            yield trial, result_of(NeuralNetwork(folder), trial)


Group = dict[TrainingTrial, NetworkConfiguration]


def _groups(trials: Group) -> list[Group]:
    """Split the trials into groups that can train together."""
    groups: list[Group] = []
    for trial, configuration in trials.items():
        for group in groups:
            if can_train_together(next(iter(group.values())), configuration):
                group[trial] = configuration
                break
        else:
            groups.append({trial: configuration})
    return groups


def _train(group: Group, folder: Path | None) -> Iterator[tuple[TrainingTrial, Json]]:
    """Train a group an epoch at a time; a trial that has ended leaves the group, the others go on."""
    first, configuration = next(iter(group.items()))
    members = [Member(each, trial.seed) for trial, each in group.items()]
    together = TrialGroup(members, study_seed=first.study_seed, dataset=load(configuration.dataset, folder))
    training = list(group)
    while training:
        staying = []
        for place, report in enumerate(together.train_epoch()):
            result = _end(training[place], report, group[training[place]].epochs)
            if result is None:
                staying.append(place)
            else:
                yield training[place], result
        training = [training[place] for place in staying]
        together.retain(staying)


def _end(trial: TrainingTrial, report: EpochReport | None, epochs: int) -> Json | None:
    """Report a trial's epoch; return its result if it ends with that, else None."""
    if report is None:
        return DIVERGED
    if trial.report(report.value, report.step, report.metrics) or report.step == epochs:
        return conclusion(None, trial.last_value, trial.obeyed)
    return None
