"""What a worker trains: the built-in neural network, or a function of the user's own.

An objective is a function of a trial that returns its value, or a generator that yields (step, value) or
(step, value, metrics) after each epoch.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import structlog

from hpo_service.client import (
    NEVER,
    AnyParameter,
    ArtifactMixin,
    Client,
    Definitions,
    Json,
    ObjectiveTrial,
    conclusion,
    ended_by,
    failed_by,
    in_one_line,
    is_prune,
    storable_text,
)
from hpo_service.domain import neural_network
from hpo_service.domain.errors import Fault, HpoError, Invalid, LeaseLost, NotFound, TrialFinished
from hpo_service.domain.objectives import OBJECTIVES
from hpo_service.domain.search_space import Params
from hpo_worker.datasets import Dataset, DatasetMissing, load
from hpo_worker.outbox import HeldJob, Outbox, check_size
from hpo_worker.shutdown import Leaving
from hpo_worker.trainer import Diverged, TestAccuracies, evaluate_on_test_set, train

KINDS = tuple(OBJECTIVES)  # what a worker without an objective of the user's trains
DIVERGED: Json = {"state": "FAIL", "reason": "diverged"}

log = structlog.get_logger()

Objective = Callable[["TrainingTrial"], Any]
AskServer = Callable[[HeldJob, Mapping[str, AnyParameter]], Params]  # returns the values of these parameters


class LostTrial(Exception):
    """The trial under training is no longer this worker's."""


class FailedTrial(Exception):
    """Raised by an objective whose trial has failed: the message is the trial's reason, word for word."""


class OutboxLink:
    """Queues a trial's reports in the outbox, so that training goes on; a suggest blocks until it is answered."""

    def __init__(self, job: HeldJob, outbox: Outbox, ask_server: AskServer) -> None:
        self._job, self._outbox, self._ask_server = job, outbox, ask_server

    @property
    def stop_reason(self) -> str | None:
        return self._job.lost or self._job.stop_reason

    def report(self, step: int, value: float, metrics: Mapping[str, Any] | None) -> None:
        self._outbox.report(self._job, step, value, metrics)

    def suggest(self, parameters: Mapping[str, AnyParameter]) -> Params:
        """Raise LostTrial."""
        try:
            return self._ask_server(self._job, parameters)
        except (LeaseLost, TrialFinished, NotFound) as error:
            raise LostTrial(str(error)) from error


class TrainingTrial(ObjectiveTrial, ArtifactMixin):
    """A trial that a worker trains. study_seed: of its study's sampler."""

    def __init__(
        self,
        given: Json,
        job: HeldJob,
        outbox: Outbox,
        study_seed: int,
        ask_server: AskServer,
        definitions: Definitions,
        client: Client,
    ) -> None:
        super().__init__(given, OutboxLink(job, outbox, ask_server), definitions)
        self._keep_artifacts_of(client, given)
        self.study_seed = study_seed


def result_of(objective: Objective, trial: TrainingTrial) -> Json:
    """Train, and return what to tell: the state, and the values or the reason. Raise DatasetMissing."""
    try:
        returned = objective(trial)
        if isinstance(returned, Iterator):
            returned = _follow(returned, trial)
        return _with_metrics(conclusion(returned, trial.last_value, trial.obeyed), trial)
    except Diverged:
        return DIVERGED
    except FailedTrial as failure:
        return {"state": "FAIL", "reason": storable_text(str(failure))}
    except (DatasetMissing, Leaving, LostTrial, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever it is, only this trial fails by it
        if not is_prune(error):
            log.exception("the objective failed", study=trial.study, trial=trial.number)
        ended = ended_by(error, trial.stop_reason)
        with suppress(TypeError, ValueError):
            return _with_metrics(ended, trial)
        return ended


def _with_metrics(result: Json, trial: TrainingTrial) -> Json:
    """Raise TypeError, ValueError for metrics that cannot be sent."""
    if not trial.metrics:
        return result
    check_size("the metrics of the result", trial.metrics)
    return {**result, "metrics": trial.metrics}


def _follow(epochs: Iterator[Any], trial: TrainingTrial) -> Any:
    """Report what the generator yields, until it ends or the trial is to stop; return what it returned."""
    while True:
        try:
            step, value, *metrics = next(epochs)
        except StopIteration as end:
            return end.value
        if trial.report(value, step, *metrics):
            if hasattr(epochs, "close"):
                epochs.close()
            return None


class NeuralNetwork:
    """The built-in objective, with its datasets from this folder or from inside the package."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def __call__(self, trial: TrainingTrial) -> Iterator[tuple[int, float, dict[str, float]]]:
        configuration = configuration_of(trial)
        dataset = self.dataset(trial.objective or {})
        for epoch in train(configuration, seed=trial.seed, study_seed=trial.study_seed, dataset=dataset):
            yield epoch.step, epoch.value, epoch.metrics

    def dataset(self, objective: Json) -> Dataset:
        """The dataset that this objective names (it is never a searched parameter). Raise DatasetError."""
        return load(objective.get("dataset", neural_network.SETTINGS["dataset"].default), self.folder)


def configuration_of(trial: TrainingTrial) -> neural_network.NetworkConfiguration:
    return neural_network.configuration(trial.objective or {}, trial.params)


NETWORK_FILE = "network.npz"


def result_of_test(given: Json, job: HeldJob, study_seed: int, folder: Path | None, client: Client) -> Json:
    """Train the best configuration again, open the test set, return what to tell. Raise DatasetMissing, LostTrial."""

    def give_up_when_lost() -> None:
        if job.lost is not None:
            raise LostTrial(job.lost)

    try:
        configuration = neural_network.configuration(given["objective"], given["params"])
        dataset = load(configuration.dataset, folder)
        result = evaluate_on_test_set(
            configuration,
            seed=given["seed"],
            study_seed=study_seed,
            ensemble=given["ensemble"],
            dataset=dataset,
            between_epochs=give_up_when_lost,
        )
    except Diverged:
        return DIVERGED
    except (DatasetMissing, LostTrial):
        raise
    except Exception as error:
        log.exception("the sealed test failed", study=given["study"])
        return failed_by(error)
    _keep_network(client, given, configuration, result)
    return {
        "state": "COMPLETE",
        "test_accuracy": result.test_accuracy,
        "validation_accuracy": result.validation_accuracy,
        "members": result.members,
        "dataset_sha256": dataset.sha256,
    }


def _keep_network(
    client: Client, given: Json, configuration: neural_network.NetworkConfiguration, result: TestAccuracies
) -> None:
    """Upload the tested networks as an artifact; if that fails, log it: the result is told all the same."""
    arrays: dict[str, Any] = {"activation": np.array(configuration.activation)}
    for place, (W, b) in enumerate(result.layers):
        arrays |= {f"W{place}": W, f"b{place}": b}
    file = io.BytesIO()
    np.savez(file, **arrays)
    try:
        client.put_artifact(given["study"], None, given["attempt"], NETWORK_FILE, file.getvalue(), retries=NEVER)
    except HpoError as error:
        log.warning("the network was not kept", study=given["study"], reason=in_one_line(error))


def import_objective(place: str) -> Objective:
    """The function that `package.module:function` or `file.py:function` names, looked for in the current folder first.

    Whatever the import raises, raise Invalid with the reason in a sentence.
    """
    module, colon, name = place.rpartition(":")
    if not module or not colon or not name:
        raise Invalid([Fault("objective", f"{place!r} is not of the form package.module:function")])
    try:
        function = getattr(_import(module), name)
    except (Leaving, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise Invalid([Fault("objective", f"{place!r} cannot be imported: {_why_not(error)}")]) from error
    if not callable(function):
        raise Invalid([Fault("objective", f"{place!r} is no function, but {type(function).__name__}")])
    objective: Objective = function
    return objective


def _import(module: str) -> ModuleType:
    """Import the module with its folder on sys.path, as a program that was started without arguments."""
    folder, name = os.path.split(module)
    if name.endswith(".py"):
        if not os.path.isfile(module):
            raise FileNotFoundError(f"there is no file {module}")
        module = name.removesuffix(".py")
    if os.path.abspath(folder) not in sys.path:
        sys.path.insert(0, os.path.abspath(folder))
    # argparse at the top of a training script would read the worker's own arguments
    arguments, sys.argv = sys.argv, [f"{module}.py"]
    try:
        return importlib.import_module(module)
    finally:
        sys.argv = arguments


def _why_not(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"importing it ends the program (exit code {error.code}); keep what runs the program out of the import"
    return storable_text(in_one_line(error))
