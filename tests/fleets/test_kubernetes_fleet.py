"""A fleet as a Kubernetes job: valid, hardened, with arguments that the commands take; on a cluster: docs/fleets.md."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from hpo_service.cli.exits import UsageError
from hpo_service.cli.fleet.fleet_commands import _argv
from hpo_service.cli.fleet.fleet_record import Fleet
from hpo_service.cli.fleet.kubernetes_engine import job
from tests.containers.test_kubernetes_manifests import FOLDER, check, of_kind, parsed

SERVER = "http://127.0.0.1:8000"


def of(*options: str, command: tuple[str, ...] = (), gpus: int = 0) -> Fleet:
    argv = _argv("mine", SERVER, list(command), None, ["gpu=a100"])
    return Fleet("mine", SERVER, "kubernetes", 5, argv, cpus=2, gpus=gpus, options=options)


def container(job: dict[str, Any]) -> dict[str, Any]:
    (found,) = job["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("version", ["1.25.0", "1.37.0"])
@pytest.mark.parametrize("options", [(), ("node=zone=b", "cpu=500m", "namespace=hpo")])
def test_the_job_is_valid_and_has_no_unknown_field(options: tuple[str, ...], version: str) -> None:
    check(job(of(*options, gpus=1)), version)


def test_so_many_pods_are_kept_alive_until_each_has_ended_well() -> None:
    spec = job(of())["spec"]
    assert (spec["parallelism"], spec["completions"]) == (5, 5)
    assert spec["template"]["spec"]["restartPolicy"] == "OnFailure"


def test_its_pods_may_do_what_those_of_the_manifests_may_and_no_policy_leaves_them_out() -> None:
    ours = job(of())["spec"]["template"]
    theirs = of_kind("Deployment", FOLDER / "base" / "worker.yaml")["hpo-worker"]["spec"]["template"]
    for field in ("securityContext", "enableServiceLinks", "shareProcessNamespace", "automountServiceAccountToken"):
        assert ours["spec"][field] == theirs["spec"][field]
    (worker,) = theirs["spec"]["containers"]
    for field in ("securityContext", "volumeMounts"):
        assert container(job(of()))[field] == worker[field]
    policy = of_kind("NetworkPolicy")["hpo-worker"]["spec"]["podSelector"]["matchLabels"].items()
    assert policy <= ours["metadata"]["labels"].items()
    assert ours["metadata"]["labels"] != theirs["metadata"]["labels"], "the deployment would take them for its own"


def test_the_command_is_the_images_own_and_names_the_server_as_pods_reach_it() -> None:
    worker = container(job(of("server=http://hpo-server:8000", "image=training:1")))
    assert (worker["image"], worker["command"]) == ("training:1", ["hpo"])
    params = parsed(worker["args"])
    assert (params["server"], params["study"], params["until_done"]) == ("http://hpo-server:8000", ["mine"], True)
    agent = container(job(of(command=("python", "train.py"))))["args"]
    assert agent[:3] == ["agent", "--server", SERVER]
    assert agent[-3:] == ["--", "python", "train.py"]


def test_each_is_given_the_gpus_and_cores_that_were_asked_for() -> None:
    assert container(job(of(gpus=2)))["resources"] == {"requests": {"cpu": "2"}, "limits": {"nvidia.com/gpu": 2}}
    assert container(job(of("cpu=500m")))["resources"] == {"requests": {"cpu": "500m"}, "limits": {}}
    assert job(of("node=zone=b"))["spec"]["template"]["spec"]["nodeSelector"] == {"zone": "b"}


@pytest.mark.parametrize("option", ["--partition=gpu", "image", "image=", "colour=red"])
def test_an_option_that_there_is_not_is_refused_with_those_that_there_are(option: str) -> None:
    with pytest.raises(UsageError, match="image, server, namespace"):
        job(of(option))


def test_the_key_is_read_where_the_manifests_keep_it() -> None:
    (_, key) = job(of())["spec"]["template"]["spec"]["volumes"]
    secrets = {
        each["metadata"]["name"]: each for each in yaml.safe_load_all((FOLDER / "example/secrets.yaml").read_text())
    }
    assert secrets[key["secret"]["secretName"]]["stringData"].keys() == {"worker.key"}


@pytest.mark.slow
def test_without_kubectl_the_refusal_says_so(fleet: Any, client: Any, tmp_path: Any) -> None:
    space = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
    client.create_study("nowhere", space, sampler={"name": "random", "seed": 1})
    up = ("up", "--study", "nowhere", "--engine", "kubernetes", "-n", "1")
    refused = fleet(*up, environment={"PATH": str(tmp_path)})
    assert (refused.returncode, refused.stderr) == (1, "hpo: kubectl is not on the PATH\n")
    assert fleet(*up, "--option", "colour=red").returncode == 2
