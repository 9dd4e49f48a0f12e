"""A fleet on a real Slurm of three nodes: a node lost with its jobs, a job preempted, and exactly the trials wanted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleets.conftest import items
from tests.fleets.slurm_cluster import SlurmCluster, slurm_cluster, until, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
RANDOM = {"name": "random", "seed": 1}
COMMAND = (sys.executable, "-c", "import time; time.sleep(0.3); print('{\"value\": 1}')")
TRIALS, WORKERS = 60, 9


@pytest.fixture
def slurm(tmp_path_factory: Any) -> Iterator[SlurmCluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def test_a_node_is_lost_a_job_preempted_and_no_trial_is_too_many(slurm: SlurmCluster, fleet: Any, client: Any) -> None:
    client.create_study("on-slurm", SPACE, sampler=RANDOM, limits={"trials": TRIALS, "attempts": 10}, lease_seconds=3)
    up = ("up", "--study", "on-slurm", "--engine", "slurm", "-n", str(WORKERS), "--json", "--", *COMMAND)
    assert len(items(fleet(*up, environment=slurm.environment))) == WORKERS
    until(lambda: client.study("on-slurm")["counts"]["COMPLETE"] >= 5)

    running = slurm.run("squeue", "-h", "-r", "-t", "R", "-o", "%i %N").split("\n")
    on_first = next(row.split()[0] for row in running if row.endswith("n1"))
    slurm.run("scontrol", "requeue", on_first)
    slurm.kill_node(0)

    until(lambda: client.study("on-slurm")["state"] == "COMPLETED")
    study = client.study("on-slurm")
    assert study["counts"] == {"WAITING": 0, "RUNNING": 0, "COMPLETE": TRIALS, "PRUNED": 0, "FAIL": 0}
    ends = [end["end"] for number in range(TRIALS) for end in client.attempts("on-slurm", number)]
    assert ends.count("told") == TRIALS
    assert "expired" in ends or "released" in ends  # what the node held, or the preempted job
    # Slurm holds those of the lost node back for two minutes, and would start them then.
    assert fleet("down", "--study", "on-slurm", environment=slurm.environment).returncode == 0


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
    assert refused.stderr == "hpo: there is no Slurm here: sbatch is not on the PATH\n"
