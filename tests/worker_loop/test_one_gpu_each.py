"""--gpus: each process, and each command, has one of them, and two have the same only where there are too few."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from typing import Any

import pytest
import typer

from hpo_worker.gpus import gpus_of
from tests.patience import PATIENCE_SECONDS
from tests.worker_loop.real_server import children, create, wait_for


@pytest.mark.parametrize(
    ("given", "gpus"), [("0-3", "0 1 2 3"), ("0,2, 5-6", "0 2 5 6"), ("7", "7"), ("GPU-8f6,MIG-1/2", "GPU-8f6 MIG-1/2")]
)
def test_gpus_are_named_by_ranges_and_lists(given: str, gpus: str) -> None:
    assert " ".join(gpus_of(given)) == gpus


@pytest.mark.parametrize("given", ["", "x", "3-1", "0,,1", "0-9999", "-1"])
def test_what_names_no_gpus_is_a_usage_error(given: str) -> None:
    with pytest.raises(typer.BadParameter):
        gpus_of(given)


@pytest.mark.slow
def test_commands_at_the_same_time_have_a_gpu_each(hpo: Any, start: Any, tmp_path: Any) -> None:
    create(hpo, "on-gpus", trials=3)
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys, time\n"
        f"open({str(tmp_path)!r} + '/gpu-' + os.environ['CUDA_VISIBLE_DEVICES'], 'w')\n"
        f"while len([n for n in os.listdir({str(tmp_path)!r}) if n.startswith('gpu-')]) < 3: time.sleep(0.05)\n"
        "print('{\"value\": 1}')\n"
    )
    agent = start("hpo_service", "agent", "on-gpus", "--gpus", "0,2,5", "--", sys.executable, str(script))
    _, errors = agent.communicate(timeout=PATIENCE_SECONDS)  # each waits until three have begun, a GPU each
    assert agent.returncode == 0, errors


@pytest.mark.slow
def test_processes_have_a_gpu_each_and_one_that_is_replaced_has_the_same(start: Any) -> None:
    worker = start("hpo_worker", "--gpus", "0-1", "--processes", "3")
    wait_for(lambda: len(children(worker)) == 3)
    wait_for(lambda: all(map(gpu_of, children(worker))))
    first = children(worker)
    assert sorted(Counter(map(gpu_of, first)).values()) == [1, 2]
    gone = first[0]
    wanted = Counter(map(gpu_of, first))
    os.kill(gone, signal.SIGKILL)
    wait_for(lambda: len(now := children(worker)) == 3 and gone not in now and all(map(gpu_of, now)))
    assert Counter(map(gpu_of, children(worker))) == wanted
    worker.terminate()
    worker.communicate(timeout=PATIENCE_SECONDS)


def gpu_of(pid: int) -> str:
    """Nothing while the process is not what it will be."""
    with open(f"/proc/{pid}/environ", "rb") as file:
        variables = dict(each.split(b"=", 1) for each in file.read().split(b"\0") if b"=" in each)
    return variables.get(b"CUDA_VISIBLE_DEVICES", b"").decode()
