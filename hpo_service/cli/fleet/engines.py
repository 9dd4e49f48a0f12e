"""The engines. A new one has its file in this folder, and a line in EngineName and in ENGINES."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol

from hpo_service.cli.fleet.fleet_record import Fleet, FleetWorker
from hpo_service.cli.fleet.kubernetes_engine import KubernetesEngine
from hpo_service.cli.fleet.local_engine import LocalEngine
from hpo_service.cli.fleet.ray_engine import RayEngine
from hpo_service.cli.fleet.slurm_engine import SlurmEngine


class Engine(Protocol):
    """Starts, lists and stops the workers of a fleet. Each method may raise CommandFailed."""

    def up(self, fleet: Fleet) -> tuple[str, ...]:
        """Start the workers, keep as many alive from then on, and return the engine's ids of the fleet."""

    def workers(self, fleet: Fleet) -> list[FleetWorker]:
        """The workers that have not ended."""

    def logs(self, fleet: Fleet) -> str:
        """Where the logs of the workers are: a folder, or a command that shows them."""

    def down(self, fleet: Fleet) -> None:
        """Have each worker release its trials, and return when all have ended."""


class EngineName(StrEnum):
    local = "local"
    slurm = "slurm"
    kubernetes = "kubernetes"
    ray = "ray"


ENGINES: Mapping[EngineName, Engine] = {
    EngineName.local: LocalEngine(),
    EngineName.slurm: SlurmEngine(),
    EngineName.kubernetes: KubernetesEngine(),
    EngineName.ray: RayEngine(),
}
