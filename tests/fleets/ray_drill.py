"""`python -m tests.fleets.ray_drill FOLDER TRIALS`: a fleet on two nodes of Ray, of which one is lost.

Prints what came of it. In a network of its own only (tests/fleets/test_ray_fleet.py): Ray listens wherever it can.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hpo_service.client import Client
from tests.fleets.slurm_cluster import until
from tests.patience import PATIENCE_SECONDS

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
RANDOM = {"name": "random", "seed": 1}
TRAINING = (sys.executable, "-c", "import time; time.sleep(0.5); print('{\"value\": 1}')")
SLOW = (sys.executable, "-c", "import time; time.sleep(600)")


def main(folder: Path, trials: int) -> None:
    os.environ["RAY_raylet_start_wait_time_s"] = f"{PATIENCE_SECONDS:.0f}"  # noqa: SIM112 - read at the import
    import ray.cluster_utils

    cluster = ray.cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    cluster.wait_for_nodes()
    serve = [sys.executable, "-m", "hpo_service", "serve", "--no-auth", "--port", "0", "--json"]
    with (folder / "serve.log").open("w") as log:
        server = subprocess.Popen(
            [*serve, "--database", f"sqlite:///{folder}/hpo.db"], stdout=subprocess.PIPE, stderr=log
        )
    assert server.stdout is not None
    url = json.loads(server.stdout.readline())["url"]
    environment = {**os.environ, "HPO_SERVER": url, "XDG_STATE_HOME": str(folder), "RAY_ADDRESS": cluster.address}

    def fleet(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "hpo_service", "fleet", *arguments], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def items(verb: str, *arguments: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(fleet(verb, "--json", *arguments))["items"]
        return found

    said: dict[str, Any] = {}
    with Client(url) as client:

        def counts(study: str) -> Any:
            return client.study(study)["counts"]

        def ends(study: str) -> Counter[str]:
            numbers = [trial["number"] for trial in client.trials(study)]
            return Counter(end["end"] for number in numbers for end in client.attempts(study, number))

        client.create_study("on-ray", SPACE, sampler=RANDOM, limits={"trials": trials, "attempts": 10}, lease_seconds=3)
        began = time.monotonic()
        up = ("--study", "on-ray", "--engine", "ray", "-n", "4", "--option", "cpus=0.5")
        said["up"] = len(items("up", *up, "--", *TRAINING))
        until(lambda: counts("on-ray")["COMPLETE"] >= trials // 5)
        cluster.remove_node(nodes[0], allow_graceful=False)
        lost = time.monotonic()
        until(lambda: [each["state"] for each in items("status", "--study", "on-ray")] == ["RUNNING"] * 4)
        said["running again after"] = round(time.monotonic() - lost, 1)
        until(lambda: client.study("on-ray")["state"] == "COMPLETED")
        said["seconds"] = round(time.monotonic() - began, 1)
        said["counts"], said["ends"] = counts("on-ray"), ends("on-ray")
        until(lambda: items("status", "--study", "on-ray") == [])
        fleet("down", "--study", "on-ray")

        client.create_study("sent-home", SPACE, sampler=RANDOM, limits={"trials": 20}, lease_seconds=600)
        home = ("--study", "sent-home", "--engine", "ray", "-n", "3", "--option", "cpus=0.5")
        fleet("up", *home, "--", *SLOW)
        until(lambda: counts("sent-home")["RUNNING"] == 3)
        fleet("down", "--study", "sent-home")
        said["sent home"], said["held then"] = ends("sent-home"), counts("sent-home")["RUNNING"]

        client.create_study("too-much", SPACE, sampler=RANDOM, limits={"trials": 20})
        fleet("up", "--study", "too-much", "--engine", "ray", "-n", "1", "--cpus", "64", "--", *SLOW)
        said["too much"] = [each["state"] for each in items("status", "--study", "too-much")]
        fleet("down", "--study", "too-much")
    server.terminate()
    server.wait()
    cluster.shutdown()
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
