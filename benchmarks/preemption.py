"""What it costs that machines are taken away: epochs trained in all, with checkpoints, without, and undisturbed.

`python benchmarks/preemption.py`: `hpo agent`s train trials of some epochs; a fifth of the trials lose their agent to
`kill -9` at a random epoch, once each, and another agent takes its place.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from processes import serving

from hpo_service.client import Client

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
TRAIN = """
import json, os, sys, time
log, epochs, seconds, keeps = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "checkpoints"
checkpoint = os.path.join(os.environ["HPO_CHECKPOINTS"], "epoch")
first = int(open(checkpoint).read()) + 1 if keeps and os.path.exists(checkpoint) else 0
for epoch in range(first, epochs):
    time.sleep(seconds)
    with open(log, "a") as file:
        file.write(os.environ["HPO_TRIAL"] + "\\n")
    if keeps:
        with open(checkpoint + ".tmp", "w") as file:
            file.write(str(epoch))
        os.replace(checkpoint + ".tmp", checkpoint)
    print(json.dumps({"step": epoch, "value": 1.0}), flush=True)
"""


class Fleet:
    def __init__(self, url: str, study: str, command: list[str], workers: int) -> None:
        self._argv = [sys.executable, "-m", "hpo_service", "agent", study, "--server", url, "--", *command]
        self.agents = [self._start() for _ in range(workers)]

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self, pid: int) -> None:
        place = next(place for place, agent in enumerate(self.agents) if agent.pid == pid)
        self.agents[place].kill()
        self.agents[place].wait()
        self.agents[place] = self._start()

    def wait(self) -> None:
        for agent in self.agents:
            agent.wait()


def run(given: argparse.Namespace, url: str, folder: Path, how: str, *, disturbed: bool) -> int:
    """Epochs trained in all."""
    study, log, script = f"{how}-{disturbed}".lower(), folder / f"{how}-{disturbed}", folder / "train.py"
    script.write_text(TRAIN)
    log.touch()
    rng = random.Random(1)
    share = int(given.share * given.trials) if disturbed else 0
    victims = {number: rng.randrange(1, given.epochs) for number in rng.sample(range(given.trials), share)}
    with Client(url) as client:
        limits = {"trials": given.trials, "attempts": 5}
        client.create_study(study, SPACE, sampler={"name": "random"}, limits=limits, lease_seconds=2)
        command = [sys.executable, str(script), str(log), str(given.epochs), str(given.epoch_seconds), how]
        fleet = Fleet(url, study, command, given.workers)
        while client.study(study)["state"] != "COMPLETED":
            trained = log.read_text().split()
            for number in [n for n, epoch in victims.items() if trained.count(str(n)) >= epoch]:
                del victims[number]
                trial = client.trial(study, number)
                if trial["state"] == "RUNNING":
                    fleet.kill(int(trial["worker_id"].split("-")[-2]))
            time.sleep(0.05)
        fleet.wait()
        assert client.study(study)["counts"]["COMPLETE"] == given.trials
    return len(log.read_text().split())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--trials", type=int, default=30)
    options.add_argument("--epochs", type=int, default=30)
    options.add_argument("--epoch-seconds", type=float, default=0.15)
    options.add_argument("--workers", type=int, default=4)
    options.add_argument("--share", type=float, default=0.2, help="of the trials that lose their machine once")
    given = options.parse_args()
    wanted = given.trials * given.epochs
    with tempfile.TemporaryDirectory() as folder, serving(f"sqlite:///{folder}/hpo.db") as (url, _):
        for how, disturbed in (("nothing", False), ("nothing", True), ("checkpoints", True)):
            epochs = run(given, url, Path(folder), how, disturbed=disturbed)
            what = f"kept {how}, {'disturbed' if disturbed else 'undisturbed'}"
            print(f"{what:<30} {epochs} epochs for {wanted}: {100 * (epochs / wanted - 1):+.1f} %", flush=True)


if __name__ == "__main__":
    main()
