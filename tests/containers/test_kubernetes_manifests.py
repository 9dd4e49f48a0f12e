"""deploy/kubernetes: valid word by word, hardened, and true of the commands, the server and the image."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer.main
import yaml
from fastapi.testclient import TestClient

from hpo_service.api.app import create_app
from hpo_service.cli import command_line, serve
from hpo_service.environment import PREFIX, faults
from hpo_service.settings import Settings
from hpo_worker.start import worker

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
COMPONENTS = sorted(path.name for path in (FOLDER / "components").iterdir())
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml")
OLDEST, NEWEST = "1.25.0", "1.37.0"
OF_OPERATORS = {"Cluster", "ScaledObject", "ServiceMonitor"}  # whose schemas come with the operators
COMPONENT = "app.kubernetes.io/component"
KUBECTL = shutil.which("kubectl")
needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="no kubectl here: .ci/run says where it is had from")


def name(path: Path) -> str:
    return str(path.relative_to(FOLDER))


def documents(*files: Path) -> list[dict[str, Any]]:
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def of_kind(kind: str, *files: Path) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in documents(*(files or FILES)) if each["kind"] == kind}


DEPLOYMENTS = of_kind("Deployment")


def pod(deployment: str) -> dict[str, Any]:
    found: dict[str, Any] = DEPLOYMENTS[deployment]["spec"]["template"]["spec"]
    return found


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for deployment in DEPLOYMENTS:
        for container in (*pod(deployment).get("initContainers", ()), *pod(deployment)["containers"]):
            yield deployment, container


CONTAINERS = [pytest.param(*each, id=f"{each[0]}-{each[1]['name']}") for each in containers()]


def check(document: dict[str, Any], version: str) -> None:
    # Imported here: each process of the tests imports every module of theirs, and this takes as long as the server.
    from kubernetes_validate import validate

    if document["kind"] not in OF_OPERATORS:
        validate(document, version, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("file", FILES, ids=name)
def test_every_manifest_is_valid_and_has_no_unknown_field(file: Path, version: str) -> None:
    for document in documents(file):
        check(document, version)


@pytest.mark.slow
def test_a_field_that_there_is_not_would_be_found() -> None:
    from kubernetes_validate import ValidationError

    wrong = of_kind("Deployment", FOLDER / "base" / "server.yaml")["hpo-server"]
    wrong["spec"]["template"]["spec"]["terminationGraceSeconds"] = 30
    with pytest.raises(ValidationError):
        check(wrong, NEWEST)


def rendered(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run([str(KUBECTL), "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = list(yaml.safe_load_all(done.stdout))
    for document in found:
        check(document, NEWEST)
        assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "hpo"
    return found


@pytest.fixture
def with_component(tmp_path: Path, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The base with one component, as an overlay of somebody's own has it."""
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    own = tmp_path / "kubernetes" / "own"
    own.mkdir()
    body = {"resources": ["../base"], "components": [f"../components/{request.param}"]}
    (own / "kustomization.yaml").write_text(yaml.safe_dump(body))
    return rendered(own)


@pytest.mark.slow
@needs_kubectl
@pytest.mark.parametrize("with_component", COMPONENTS, indirect=True)
def test_the_base_renders_with_each_component(with_component: list[dict[str, Any]]) -> None:
    assert len(with_component) > len(documents(*(FOLDER / "base").glob("[!k]*.yaml")))


@needs_kubectl
def test_the_example_renders_with_the_image_and_the_workers_it_names() -> None:
    found = {each["metadata"]["name"]: each for each in rendered(FOLDER / "example") if each["kind"] == "Deployment"}
    images = {each["image"] for each in found["hpo-server"]["spec"]["template"]["spec"]["containers"]}
    images |= {each["image"] for each in found["hpo-server"]["spec"]["template"]["spec"]["initContainers"]}
    assert images == {"registry.example.org/hpo-service:0.1.0"}
    assert found["hpo-worker"]["spec"]["replicas"] == 8


@needs_kubectl
@pytest.mark.parametrize("with_component", ["keda", "hpa"], indirect=True)
def test_who_scales_the_workers_is_told_no_other_number(with_component: list[dict[str, Any]]) -> None:
    (workers,) = [
        each for each in with_component if each["metadata"]["name"] == "hpo-worker" and each["kind"] == "Deployment"
    ]
    assert "replicas" not in workers["spec"]


@pytest.mark.slow
@needs_kubectl
@pytest.mark.parametrize("with_component", ["cloudnative-pg"], indirect=True)
def test_with_the_operators_database_its_secret_is_used_everywhere(with_component: list[dict[str, Any]]) -> None:
    text = yaml.safe_dump_all(with_component)
    assert text.count("name: hpo-db-app") == 2
    assert "hpo-database" not in text


@pytest.mark.parametrize(("deployment", "container"), CONTAINERS)
def test_nobody_is_root_or_may_become_it_and_all_is_bounded(deployment: str, container: dict[str, Any]) -> None:
    spec, own = pod(deployment), container["securityContext"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["shareProcessNamespace"] is True  # it is not process 1
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
    assert container["resources"]["limits"]["memory"]
    assert all(volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"] if "emptyDir" in volume)


def test_the_image_and_its_user_are_those_that_are_built() -> None:
    user = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[-1]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    for deployment in ("hpo-server", "hpo-worker"):
        context = pod(deployment)["securityContext"]
        assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user
    images = {each["image"] for deployment, each in containers() if deployment != "hpo-worker-gpu"}
    assert images == {compose["services"]["server"]["image"]}
    assert 'ENTRYPOINT ["hpo"]' in (ROOT / "Dockerfile").read_text()


def parsed(words: list[str]) -> dict[str, Any]:
    """What the real commands make of these arguments; they raise for what they do not know."""
    workers = typer.Typer()
    workers.command("worker")(worker)
    workers.command("none")(lambda: None)
    root: Any = typer.main.get_command(workers if words[0] == "worker" else command_line())
    while hasattr(root, "commands"):
        root, words = root.commands[words[0]], words[1:]
    found: dict[str, Any] = root.make_context("hpo", list(words)).params
    return found


@pytest.mark.parametrize(("deployment", "container"), CONTAINERS)
def test_the_commands_are_there_with_their_options(deployment: str, container: dict[str, Any]) -> None:
    assert container.get("command") in (None, ["hpo"])
    parsed(container["args"])


@pytest.mark.parametrize(("deployment", "container"), CONTAINERS)
def test_every_variable_is_a_setting(deployment: str, container: dict[str, Any]) -> None:
    assert faults({each["name"]: each.get("value", "set") for each in container["env"]}) == []
    # Kubernetes would add the address of hpo-server by names such as this one.
    assert pod(deployment)["enableServiceLinks"] is False
    assert faults({f"{PREFIX}SERVER_PORT": "tcp://10.0.0.1:8000"}) != []


@pytest.mark.slow
def test_ports_and_probes_are_those_of_the_server(tmp_path: Path) -> None:
    (server,) = pod("hpo-server")["containers"]
    (port,) = server["ports"]
    (of_service,) = of_kind("Service")["hpo-server"]["spec"]["ports"]
    assert parsed(server["args"])["port"] == port["containerPort"] == of_service["port"]
    assert of_service["targetPort"] == port["name"]
    for _, container in containers():
        for each in container["env"]:
            if each["name"] == "HPO_SERVER":
                address = urlsplit(each["value"])
                assert (address.hostname, address.port) == ("hpo-server", of_service["port"])
    probes = [server[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert {probe["port"] for probe in probes} == {port["name"]}
    with TestClient(create_app(Settings(database_url=f"sqlite:///{tmp_path}/hpo.db"))) as client:
        assert [client.get(probe["path"]).status_code for probe in probes] == [200, 200, 200]
        (endpoint,) = of_kind("ServiceMonitor")["hpo"]["spec"]["endpoints"]
        assert endpoint["port"] == port["name"]
        assert client.get(endpoint["path"]).status_code == 401  # there, and behind a key


def test_the_server_is_given_the_time_that_it_takes_to_end() -> None:
    (server,) = pod("hpo-server")["containers"]
    _, before = server["lifecycle"]["preStop"]["exec"]["command"]
    assert pod("hpo-server")["terminationGracePeriodSeconds"] >= int(before) + 2 * serve.PATIENCE_SECONDS + 5


def test_one_server_stays_whatever_is_moved_or_upgraded() -> None:
    server = DEPLOYMENTS["hpo-server"]["spec"]
    assert server["replicas"] == 2
    assert server["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    budget = of_kind("PodDisruptionBudget")["hpo-server"]["spec"]
    assert budget["minAvailable"] == 1
    assert budget["selector"] == server["selector"]


def test_no_deployment_takes_another_ones_pods_for_its_own() -> None:
    for deployment in DEPLOYMENTS.values():
        wanted = deployment["spec"]["selector"]["matchLabels"].items()
        fits = [
            each
            for each, other in DEPLOYMENTS.items()
            if wanted <= other["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert fits == [deployment["metadata"]["name"]]


def test_workers_reach_the_server_and_names_and_nobody_reaches_them() -> None:
    policies = of_kind("NetworkPolicy")
    of_workers, of_servers = policies["hpo-worker"]["spec"], policies["hpo-server"]["spec"]
    for policy, component in ((of_workers, "worker"), (of_servers, "server")):
        assert policy["podSelector"]["matchLabels"][COMPONENT] == component
        assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert of_workers["ingress"] == []
    to_server, to_names = of_workers["egress"]
    assert to_server["to"] == [{"podSelector": {"matchLabels": of_servers["podSelector"]["matchLabels"]}}]
    assert {each["port"] for each in to_names["ports"]} == {53}
    assert [{each["port"] for each in rule["ports"]} for rule in of_servers["egress"]] == [{5432}, {53}]
    for deployment in DEPLOYMENTS.values():
        labels = deployment["spec"]["template"]["metadata"]["labels"].items()
        assert any(policy["spec"]["podSelector"]["matchLabels"].items() <= labels for policy in policies.values())


def test_every_secret_that_is_read_is_in_the_example_under_its_name_and_key() -> None:
    secrets = {name: set(secret["stringData"]) for name, secret in of_kind("Secret").items()}
    for deployment, container in containers():
        for each in container["env"]:
            if "valueFrom" in each:
                wanted = each["valueFrom"]["secretKeyRef"]
                assert wanted["key"] in secrets[wanted["name"]]
            if each["name"] == "HPO_TOKEN_FILE":
                mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
                file = Path(each["value"])
                (volume,) = [one for one in pod(deployment)["volumes"] if one["name"] == mounts[str(file.parent)]]
                assert file.name in secrets[volume["secret"]["secretName"]]
                assert volume["secret"]["defaultMode"] == 0o440


def test_what_scales_the_workers_is_a_metric_of_the_servers() -> None:
    (trigger,) = of_kind("ScaledObject")["hpo-worker"]["spec"]["triggers"]
    (external,) = of_kind("HorizontalPodAutoscaler")["hpo-worker"]["spec"]["metrics"]
    named = {external["external"]["metric"]["name"], *re.findall(r"hpo_\w+", trigger["metadata"]["query"])}
    told = re.findall(r"^\| `(hpo_\w+)` \| gauge \|", (ROOT / "docs" / "operating.md").read_text(), re.MULTILINE)
    assert named <= set(told)
    for kind in ("ScaledObject", "HorizontalPodAutoscaler"):
        assert of_kind(kind)["hpo-worker"]["spec"]["scaleTargetRef"]["name"] in DEPLOYMENTS


def test_what_the_page_types_is_there() -> None:
    page = (ROOT / "docs" / "fleets.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("$ kubectl ")]
    assert len(lines) > 5
    secrets = of_kind("Secret")
    for line in lines:
        words = shlex.split(line.removeprefix("$ ").partition("  #")[0].replace("$(", '"$(').replace(")", ')"'))
        if "-k" in words:
            assert (ROOT / words[words.index("-k") + 1] / "kustomization.yaml").exists()
        for inner in re.findall(r"-- (hpo [^)]*)", line):
            parsed(shlex.split(inner.partition("  #")[0])[1:])
        for target in re.findall(r"deploy(?:ment)?/([a-z-]+)", line):
            assert target in DEPLOYMENTS or target == "kubernetes"
        for secret, key in re.findall(r"secret generic (\S+) --from-literal=([^=]+)=", line):
            assert secret == "hpo-read-key" or key in secrets[secret]["stringData"]
