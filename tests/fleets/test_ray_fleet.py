"""A fleet on a real Ray of two nodes, one of them lost; in a network of its own, since Ray listens wherever it can."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from hpo_service.cli.exits import UsageError
from hpo_service.cli.fleet.fleet_record import HPO, Fleet
from hpo_service.cli.fleet.ray_engine import RayEngine
from tests.patience import PATIENCE_SECONDS

TRIALS = 200  # enough that some are left when the lost workers are back, half a minute later
ROOT = Path(__file__).parents[2]


def why_not() -> str | None:
    if find_spec("ray") is None:
        return "no Ray here: pip install 'hpo-service[ray]'"
    return None if os.geteuid() == 0 and shutil.which("unshare") else "a network of its own is made by root here"


@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
def test_a_node_is_lost_no_trial_is_too_many_and_down_sends_home(tmp_path: Path) -> None:
    # Ray keeps the address of the last cluster in /tmp/ray, for all.
    ours = "ip link set lo up && mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray"
    drill = f"{ours} && exec {sys.executable} -m tests.fleets.ray_drill {tmp_path} {TRIALS}"
    alone = ["unshare", "-n", "-m", "-p", "-f", "--kill-child", "--mount-proc", "sh", "-c", drill]
    done = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True, check=False, timeout=4 * PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["up"] == 4
    assert said["counts"] == {"WAITING": 0, "RUNNING": 0, "COMPLETE": TRIALS, "PRUNED": 0, "FAIL": 0}
    assert said["ends"]["told"] == TRIALS
    # Released, not expired: their leases would have lasted ten minutes.
    assert (said["sent home"], said["held then"]) == ({"released": 3}, 0)
    assert said["too much"] == ["PENDING"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is here")
def test_without_ray_the_refusal_says_what_to_type(fleet: Any, client: Any) -> None:
    client.create_study("nowhere", {"x": {"type": "float", "low": 0.0, "high": 1.0}})
    refused = fleet("up", "--study", "nowhere", "--engine", "ray", "-n", "1")
    assert refused.returncode == 2
    assert "pip install 'hpo-service[ray]'" in refused.stderr


@pytest.mark.parametrize("option", ["colour=red", "address", "cpus=", "cpus=half", "cpus=nan", "cpus=0", "cpus=-1"])
def test_an_option_that_cannot_be_is_refused_before_anything_is_started(option: str) -> None:
    with pytest.raises(UsageError, match="--option"):
        RayEngine().up(Fleet("mine", "http://127.0.0.1:8000", "ray", 1, HPO, options=(option,)))
