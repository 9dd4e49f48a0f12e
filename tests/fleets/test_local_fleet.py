"""hpo fleet on this machine: N workers from up to down, one that is killed replaced, and every trial handed back."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from hpo_service.cli.fleet.slurm_engine import SCRIPT
from tests.fleets.conftest import items
from tests.fleets.slurm_cluster import until

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
RANDOM = {"name": "random", "seed": 1}
SLOW = (sys.executable, "-c", "import time; time.sleep(600)")


@pytest.mark.slow
def test_workers_are_kept_alive_and_hand_back_what_they_hold(fleet: Any, client: Any) -> None:
    client.create_study("slow", SPACE, sampler=RANDOM, limits={"trials": 10, "attempts": 10}, lease_seconds=2)
    up = items(
        fleet("up", "--study", "slow", "--engine", "local", "-n", "3", "--label", "gpu=none", "--json", "--", *SLOW)
    )
    assert [item["state"] for item in up] == ["RUNNING"] * 3
    assert fleet("up", "--study", "slow", "--engine", "local", "-n", "1").returncode == 1  # there is one
    until(lambda: client.study("slow")["counts"]["RUNNING"] == 3)
    killed = int(up[0]["id"])
    os.kill(killed, signal.SIGKILL)
    until(lambda: killed not in (now := ids(fleet)) and len(now) == 3)
    until(lambda: client.study("slow")["counts"]["RUNNING"] == 3)
    assert {"gpu": "none"} in [worker["labels"] for worker in client.workers()]

    pids = ids(fleet)
    down = fleet("down", "--study", "slow")
    assert down.returncode == 0, down.stderr
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert client.study("slow")["counts"]["RUNNING"] == 0
    ends = [end["end"] for trial in client.trials("slow") for end in client.attempts("slow", trial["number"])]
    assert ends.count("released") == 3
    assert ids(fleet) == []
    assert fleet("down", "--study", "slow").returncode == 3


def ids(fleet: Any) -> list[int]:
    return [int(item["id"]) for item in items(fleet("status", "--json"))]


@pytest.mark.slow
def test_workers_that_are_done_are_not_replaced_and_down_finds_those_of_a_killed_keeper(
    fleet: Any, client: Any, tmp_path: Path
) -> None:
    client.create_study("quick", SPACE, sampler=RANDOM, limits={"trials": 5})
    done = fleet(
        "up", "--study", "quick", "--engine", "local", "-n", "2", "--", "sh", "-c", 'echo "{\\"value\\": {x}}"'
    )
    assert done.returncode == 0, done.stderr
    until(lambda: client.study("quick")["state"] == "COMPLETED")
    until(lambda: ids(fleet) == [])
    client.create_study("left", SPACE, sampler=RANDOM, limits={"trials": 5})
    assert fleet("up", "--study", "left", "--engine", "local", "-n", "2", "--", *SLOW).returncode == 0
    (record,) = tmp_path.glob("state/hpo/fleets/left@*/fleet.json")
    os.kill(int(json.loads(record.read_text())["ids"][0].split()[0]), signal.SIGKILL)
    until(lambda: client.study("left")["counts"]["RUNNING"] == 2)
    assert fleet("down", "--study", "left").returncode == 0
    assert client.study("left")["counts"]["RUNNING"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("up", "--study", "s", "--engine", "abacus", "-n", "1"), 2),
        (("up", "--study", "s", "--engine", "local", "-n", "0"), 2),
        (("up", "--study", "none", "--engine", "local", "-n", "1"), 3),
        (("status", "--study", "none"), 3),
        (("down", "--study", "none"), 3),
    ],
)
def test_what_cannot_be_is_said_by_the_exit_code(fleet: Any, arguments: tuple[str, ...], code: int) -> None:
    assert fleet(*arguments).returncode == code


def test_the_script_to_copy_is_the_one_that_the_command_runs() -> None:
    script = Path(__file__).parents[2] / "deploy" / "slurm" / "workers.sbatch"
    assert script.read_text().endswith(SCRIPT)
