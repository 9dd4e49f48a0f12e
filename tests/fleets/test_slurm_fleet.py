"""A fleet on a real Slurm of three nodes: a node lost with its jobs, a job preempted, and exactly the trials wanted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleets.slurm_cluster import CPUS, SlurmCluster, slurm_cluster, until, why_not
from tests.fleets.slurm_drill import SlurmDrill

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
RANDOM = {"name": "random", "seed": 1}
TRIALS = 60


@pytest.fixture
def slurm(tmp_path_factory: Any) -> Iterator[SlurmCluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def test_a_node_is_lost_a_job_preempted_and_no_trial_is_too_many(
    slurm: SlurmCluster, client: Any, tmp_path: Path
) -> None:
    ran = SlurmDrill(slurm, client, tmp_path).run("on-slurm", TRIALS, 1.0, is_disturbed=True)
    assert ran.counts == {"WAITING": 0, "RUNNING": 0, "COMPLETE": TRIALS, "PRUNED": 0, "FAIL": 0}
    assert ran.ends["told"] == TRIALS
    assert ran.ends["expired"] >= 1  # what the node held
    assert ran.disturbed is not None
    assert ran.disturbed.lost == CPUS  # requeued, and sent home by `down` before Slurm would start them again


def test_down_has_every_task_hand_back_what_it_holds(slurm: SlurmCluster, fleet: Any, client: Any) -> None:
    client.create_study("sent-home", SPACE, sampler=RANDOM, limits={"trials": 20}, lease_seconds=600)
    slow = (sys.executable, "-c", "import time; time.sleep(600)")
    up = fleet("up", "--study", "sent-home", "--engine", "slurm", "-n", "4", "--", *slow, environment=slurm.environment)
    assert up.returncode == 0, up.stderr
    until(lambda: client.study("sent-home")["counts"]["RUNNING"] == 4)
    down = fleet("down", "--study", "sent-home", environment=slurm.environment)
    assert down.returncode == 0, down.stderr
    # Slurm may count a task as gone a moment before its worker has.
    until(lambda: client.study("sent-home")["counts"]["RUNNING"] == 0)
    # Released, not expired: their leases would have lasted ten minutes.
    assert [client.attempts("sent-home", n)[0]["end"] for n in range(4)] == ["released"] * 4


def test_without_slurm_the_refusal_says_so(fleet: Any, client: Any, tmp_path: Path) -> None:
    client.create_study("nowhere", SPACE, sampler=RANDOM)
    refused = fleet("up", "--study", "nowhere", "--engine", "slurm", "-n", "1", environment={"PATH": str(tmp_path)})
    assert refused.returncode == 1
    assert refused.stderr == "hpo: sbatch is not on the PATH\n"
