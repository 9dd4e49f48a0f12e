"""Workers as pods of a Kubernetes job: replaced when their node is lost, started again when they are killed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hpo_service import __version__
from hpo_service.cli.fleet.fleet_record import HPO, Fleet, FleetWorker, options_of, output_of, wait_until_ended

GRACE_SECONDS = 30  # from SIGTERM to SIGKILL
# The names that --option NAME=TEXT takes, and their defaults. server: its URL for the pods; "": as for this command.
# namespace: "": that of kubectl's context; secret: holds worker.key; node: a label that nodes must have, KEY=TEXT;
# cpu: requested for each pod, such as 500m; "": as many as --cpus says.
OPTIONS = {
    "image": f"hpo-service:{__version__}",
    "server": "",
    "namespace": "",
    "secret": "hpo-worker-key",
    "node": "",
    "cpu": "",
}


class KubernetesEngine:
    def up(self, fleet: Fleet) -> tuple[str, ...]:
        options = options_of(fleet, OPTIONS)
        created = json.loads(_kubectl(options, "create", "-f", "-", "-o", "json", given=json.dumps(job(fleet))))
        return (created["metadata"]["name"],)

    def workers(self, fleet: Fleet) -> list[FleetWorker]:
        if not fleet.ids:
            return []
        found = json.loads(
            _kubectl(options_of(fleet, OPTIONS), "get", "pods", "-l", f"job-name={fleet.ids[0]}", "-o", "json")
        )
        pods = [(pod["metadata"]["name"], pod["status"].get("phase", "Pending"), pod["spec"]) for pod in found["items"]]
        return [
            FleetWorker(name, phase.upper(), spec.get("nodeName"))
            for name, phase, spec in pods
            if phase not in ("Succeeded", "Failed")
        ]

    def logs(self, fleet: Fleet) -> str:
        namespace = options_of(fleet, OPTIONS)["namespace"]
        return f"kubectl {f'-n {namespace} ' if namespace else ''}logs -l job-name={fleet.ids[0]}"

    def down(self, fleet: Fleet) -> None:
        """Kubernetes sends SIGTERM, and SIGKILL after GRACE_SECONDS."""
        _kubectl(options_of(fleet, OPTIONS), "delete", "job", *fleet.ids, "--ignore-not-found", "--wait=false")
        wait_until_ended("pod", lambda: self.workers(fleet))


def job(fleet: Fleet) -> dict[str, Any]:
    """The Job. A pod that succeeds is not replaced. The labels make the network policies of deploy/kubernetes apply."""
    options = options_of(fleet, OPTIONS)
    labels = {
        "app.kubernetes.io/name": "hpo",
        "app.kubernetes.io/component": "worker",
        "app.kubernetes.io/instance": "hpo-fleet",
    }
    gpus = {"nvidia.com/gpu": fleet.gpus} if fleet.gpus else {}
    key, _, text = options["node"].partition("=")
    container = {
        "name": "worker",
        "image": options["image"],
        "command": ["hpo"],
        "args": _arguments(fleet, options["server"]),
        "env": [
            {"name": "HPO_TOKEN_FILE", "value": "/keys/worker.key"},
            {"name": "OMP_NUM_THREADS", "value": str(fleet.cpus)},
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": {"requests": {"cpu": options["cpu"] or str(fleet.cpus)}, "limits": gpus},
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the container's own
            {"name": "key", "mountPath": "/keys", "readOnly": True},
        ],
    }
    pod = {
        "restartPolicy": "OnFailure",
        "enableServiceLinks": False,  # the variables of a service hpo would begin with HPO_
        "shareProcessNamespace": True,  # as process 1 it would miss a SIGTERM before it has a handler
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"nodeSelector": {key: text}} if key else {}),
        "containers": [container],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "key", "secret": {"secretName": options["secret"], "defaultMode": 0o440}},
        ],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"generateName": "hpo-fleet-", "labels": labels, "annotations": {"hpo-study": fleet.study}},
        "spec": {
            "parallelism": fleet.count,
            "completions": fleet.count,
            "backoffLimit": 10 * fleet.count,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _arguments(fleet: Fleet, server: str) -> list[str]:
    arguments = list(fleet.argv[len(HPO) :])
    if server:
        arguments[arguments.index("--server") + 1] = server
    return arguments


def _kubectl(options: Mapping[str, str], *arguments: str, given: str | None = None) -> str:
    where = ("--namespace", options["namespace"]) if options["namespace"] else ()
    return output_of("kubectl", *where, *arguments, given=given)
