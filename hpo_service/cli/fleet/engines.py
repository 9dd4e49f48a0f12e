"""The engines there are. One more is its file here, and a line in the table."""

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
    """Starts copies of an argv, says what has become of them, and stops them. Each raises CommandFailed."""

    def up(self, fleet: Fleet) -> tuple[str, ...]:
        """Start them, keep as many alive from then on, and return the engine's ids."""

    def workers(self, fleet: Fleet) -> list[FleetWorker]:
        """Those that there are; none once all have ended."""

    def logs(self, fleet: Fleet) -> str:
        """Where those of the workers are: a folder, or a command that shows them."""

    def down(self, fleet: Fleet) -> None:
        """Have each hand back what it holds, and return when all have ended."""


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
