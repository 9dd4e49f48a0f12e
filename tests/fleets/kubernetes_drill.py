"""`python -m tests.fleets.kubernetes_drill TRIALS NEXT.yaml`: an installation on Kubernetes under fire.

It prints what came of it. kubectl's context is its cluster, HPO_SERVER and HPO_TOKEN_FILE lead to its server. Workers
are scaled 1 → 8 → 1 → 8, one of them and a server are killed, and NEXT.yaml, the manifests of another version as
kubectl kustomize renders them, is applied while trials run. docs/fleets.md has the figures of such a run.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from typing import Any

from hpo_service.client import Client
from tests.fleets.slurm_cluster import until

SPACE = {"learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}}
NETWORK = {"kind": "neural_network", "dataset": "mnist", "samples": 1000, "epochs": 60}
WORKERS = 8
BEGAN = time.monotonic()


def say(*words: Any) -> None:
    print(f"{time.monotonic() - BEGAN:6.1f} s ", *words, flush=True)


def kubectl(*arguments: str) -> str:
    done = subprocess.run(["kubectl", "-n", "hpo", *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def pods(component: str) -> dict[str, str]:
    """Whether each is ready, by name."""
    rows = kubectl("get", "pods", "-l", f"app.kubernetes.io/component={component}", "--no-headers").splitlines()
    return {row.split()[0]: row.split()[1] for row in rows}


def kill(component: str) -> None:
    name = next(iter(pods(component)))
    kubectl("delete", "pod", name, "--grace-period=0", "--force")
    say(component, name, "is killed")


def scale(workers: int) -> None:
    kubectl("scale", "deployment/hpo-worker", f"--replicas={workers}")
    until(lambda: list(pods("worker").values()) == ["1/1"] * workers)
    say("workers:", workers)


class Caller:
    """Calls the server five times a second, each time by a new connection, and counts the answers."""

    def __init__(self, server: str) -> None:
        self.answers: Counter[str] = Counter()
        self._url = f"{server}/healthz"
        threading.Thread(target=self._call, daemon=True).start()

    def _call(self) -> None:
        while True:
            try:
                with urllib.request.urlopen(self._url, timeout=5) as answer:
                    self.answers[str(answer.status)] += 1
            except OSError as error:
                self.answers[str(getattr(error, "reason", error))] += 1
            time.sleep(0.2)


def main(trials: int, next_version: str) -> None:
    study = f"drill-{time.time():.0f}"
    limits = {"trials": trials, "attempts": 10}
    with Client() as client:
        caller = Caller(client.server)

        def told(share: float) -> None:
            until(lambda: client.study(study)["counts"]["COMPLETE"] >= share * trials)
            say("told:", client.study(study)["counts"]["COMPLETE"])

        scale(1)
        sampler = {"name": "random", "seed": 1}
        client.create_study(study, SPACE, sampler=sampler, objective=NETWORK, limits=limits, lease_seconds=30)
        told(0.01)
        scale(WORKERS)
        told(0.15)
        kill("worker")
        told(0.3)
        kill("server")
        until(lambda: list(pods("server").values()) == ["1/1"] * 2)
        say("servers: 2; answers until now:", dict(caller.answers))
        told(0.4)
        kubectl("apply", "-f", next_version)
        for deployment in ("hpo-server", "hpo-worker"):
            kubectl("rollout", "status", f"deployment/{deployment}", "--timeout=300s")
        say("upgraded; answers until now:", dict(caller.answers), "told:", client.study(study)["counts"]["COMPLETE"])
        scale(1)
        scale(WORKERS)
        until(lambda: client.study(study)["state"] == "COMPLETED")
        ends = Counter(end["end"] for trial in client.trials(study) for end in client.attempts(study, trial["number"]))
        say("completed:", client.study(study)["counts"], "attempts:", dict(ends), "answers:", dict(caller.answers))
        assert ends["told"] == client.study(study)["counts"]["COMPLETE"] == trials


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
