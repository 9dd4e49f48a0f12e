"""A server in a process of its own, workers started against it, and what tests ask of both."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable

from hpo_service.client import uniform
from tests.patience import PATIENCE_SECONDS

OBJECTIVES = """
    import os, time
    from pathlib import Path

    def slow_until_released(trial):
        for step in range(1_000_000):
            yield step, trial.params["x"]
            if Path(os.environ["GO_ON"]).exists():
                return
            time.sleep(0.01)

    def forty_epochs(trial):
        for step in range(40):
            yield step, trial.params["x"] + step
            time.sleep(0.02)

    def suggests_otherwise(trial):
        return trial.suggest_float("x", 0, 7)

    def one_spike(trial):
        for step in range(200):
            if trial.report(11 if step == 20 else 1, step):
                return
            time.sleep(0.01)
"""


class RealServer:
    """`hpo serve` on one port and one database, to be killed and started again."""

    def __init__(self, fork, folder):
        self.fork = fork
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        database = f"sqlite:///{self.folder}/hpo.db"
        self.process = self.fork("serve", "--no-auth", "--port", str(self.port), "--database", database)
        assert self.process.stdout.readline(), "the server did not start"

    def kill(self):
        self.process.kill()
        self.process.communicate()


def start_worker(start, study: str, objective: str, *options: str):
    module = f"objectives_for_real:{objective}"
    return start("hpo_worker", "--study", study, "--objective", module, "--processes", "1", *options)


def wait_for(happened: Callable[[], object], seconds: float = PATIENCE_SECONDS):
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.03)


def children(process):
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        return [int(pid) for pid in file.read().split()]


def create(hpo, name, trials=4, **fields):
    return hpo.create_study(
        name,
        search_space={"x": uniform(0, 1)},
        sampler={"name": "random", "seed": 1, "params": {}},
        limits={"trials": trials},
        **fields,
    )


def ends(hpo, study, number):
    return [(attempt["attempt"], attempt["end"]) for attempt in hpo.attempts(study, number)]


def kill_with_children(process):
    pids = children(process)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # else they could still hand their trials back, once alone
    process.kill()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
