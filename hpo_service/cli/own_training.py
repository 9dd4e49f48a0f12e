"""What trains the trials of `hpo run`: the built-in network, a function of the user's, or a command of theirs."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from hpo_service.cli import wording
from hpo_service.cli.exits import CommandFailed, UsageError
from hpo_service.domain.errors import Invalid
from hpo_service.domain.json_types import Json

if TYPE_CHECKING:
    from hpo_service.domain.study import StudySpec


@dataclass(frozen=True)
class Training:
    """objective: package.module:function; command: with placeholders; neither: the built-in network.

    labels: what this machine has, for a study that requires it.
    """

    objective: str | None = None
    command: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_own(self) -> bool:
        return self.objective is not None or bool(self.command)

    @property
    def options(self) -> str:
        """The options to type again, quoted for the shell."""
        words = self._label_options
        if self.objective is not None:
            words += ["--objective", self.objective]
        elif self.command:
            words += ["--", *self.command]
        return "".join(f" {shlex.quote(word)}" for word in words)

    @property
    def _label_options(self) -> list[str]:
        return [word for name, text in self.labels.items() for word in ("--label", f"{name}={text}")]

    def check(self, file: Path, spec: StudySpec) -> None:
        """Raise UsageError or CommandFailed if this cannot train the study; called before anything is started."""
        from hpo_service.domain import labels
        from hpo_service.domain.objectives import OBJECTIVES

        if self.objective is not None and self.command:
            raise UsageError("give --objective or a command after --, not both")
        if not labels.fit(self.labels, spec.requires):
            raise UsageError(
                f"{file}: {spec.name} requires {labels.said(spec.requires)}; if this machine has it, say so:",
                f"{wording.hpo_run(file)}{replace(self, labels=spec.requires).options}",
            )
        if not self.is_own and spec.kind not in OBJECTIVES:
            what = "no objective" if spec.kind is None else f"an objective of the kind {spec.kind!r}"
            raise CommandFailed(f"{file}: {spec.name} has {what}; say what trains it:", *_ways_to_train(file, spec))
        if self.is_own and spec.kind in OBJECTIVES:
            raise UsageError(
                f"{file}: {spec.name} has the objective {spec.kind}, which hpo trains itself:",
                f"take [objective] out of the file to train your own, or leave{self.options} out to train the network",
            )
        if self.objective is not None:
            _check_objective(self.objective)
        if self.command:
            if spec.define_by_run:
                raise UsageError(f"{spec.name} is defined by run: a command needs a given search_space")
            check_command(self.command, spec.model_dump(mode="json")["search_space"])

    def worker(self, processes: int, study: str) -> list[str]:
        """The `hpo` arguments that train the study. --max-failures is off: the study's limits.failures applies."""
        if self.command:
            options = ["--workers", str(processes), "--max-failures", "0", *self._label_options]
            return ["agent", *options, study, "--", *self.command]
        options = [] if self.objective is None else ["--objective", self.objective]
        return [*self.any_worker(processes), "--study", study, "--until-done", *options]

    def any_worker(self, processes: int) -> list[str]:
        """The `hpo` arguments of a worker for all studies, which also evaluates sealed tests."""
        return ["worker", "--processes", str(processes), "--max-failures", "0", *self._label_options]


def check_command(command: Sequence[str], space: Json) -> None:
    """Raise UsageError for a placeholder that no trial of the study can fill, or a program that is not there."""
    from hpo_worker.placeholders import check_placeholders

    try:
        check_placeholders(command, space)
    except Invalid as error:
        raise UsageError(*(f"COMMAND: {fault.detail}" for fault in error.faults)) from error


def _check_objective(place: str) -> None:
    """Check what can be checked without importing it; the worker reports the rest."""
    module, _, function = place.rpartition(":")
    if not module or not function:
        raise UsageError(f"--objective: {place!r} is not of the form package.module:function, or file.py:function")
    if module.endswith(".py"):
        if not os.path.isfile(module):
            raise UsageError(f"--objective: there is no file {module}")
    elif PathFinder.find_spec(module.partition(".")[0], [os.getcwd(), *sys.path]) is None:
        raise UsageError(f"--objective: there is no module {module} in this folder, nor installed beside hpo")


def _ways_to_train(file: Path, spec: StudySpec) -> Iterator[str]:
    from hpo_service.domain.objectives import shown

    run = f"  {wording.hpo_run(file)}"
    yield f"{run} --objective package.module:function"
    if not spec.define_by_run:
        arguments = " ".join(f"--{name} {{{name}}}" for name in spec.search_space.root if name.isidentifier())
        yield f"{run} -- python train.py {arguments}".rstrip()
    yield f"or name the built-in one in the file: [objective] with kind = {shown()}".replace("'", '"')
