"""The server as its container runs it: no root, no capability, nothing to write to but its data and /tmp; and it works.

No image can be built in every place, so the same walls are put up by hand: a root file system of read-only bind mounts
in a mount namespace of its own, then another user without capabilities. The compose file is read, to see that it asks
for these walls.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parents[2]
USER = 10001
# As the image sets them (Dockerfile).
ENVIRONMENT = {
    "HOME": "/tmp",
    "MPLCONFIGDIR": "/tmp/matplotlib",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
}
# $1: where the new root is put together; $2: the data folder; then a line "--", what is read, "--", the command.
WALLS = """
set -e
new=$1 data=$2; shift 2
mount -t tmpfs -o mode=755 root "$new"
mkdir "$new/tmp"
mount -t tmpfs -o mode=1777,nosuid,nodev tmp "$new/tmp"  # first: what is read may lie in /tmp
while [ "$1" != -- ]; do
    if [ -L "$1" ]; then cp -P "$1" "$new$1"
    else mkdir -p "$new$1"; mount --rbind "$1" "$new$1"; mount -o remount,bind,ro "$new$1"
    fi
    shift
done
shift
mkdir -p "$new/dev" "$new/proc" "$new/data"
mount --rbind /dev "$new/dev"
mount --rbind /proc "$new/proc"
mount --bind "$data" "$new/data"
mount -o remount,ro "$new"
exec chroot "$new" "$@"
"""


def _command(folder: Path, *program: str) -> list[str]:
    readable = [path for path in ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc") if Path(path).exists()]
    # The longest first is wrong where one lies in the other: /usr would hide /usr/local again.
    for prefix in sorted({sys.base_prefix, sys.prefix, str(ROOT)}):
        if not any(Path(prefix).is_relative_to(known) for known in readable):
            readable.append(prefix)
    (folder / "root").mkdir(exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    shutil.chown(folder / "data", USER, USER)
    drop = [
        *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"),
        *("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"),
    ]
    variables = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
    walls = ["sh", "-c", WALLS, "walls", str(folder / "root"), str(folder / "data"), *readable, "--"]
    return ["unshare", "--mount", "--propagation", "private", *walls, *drop, "env", "-i", *variables, *program]


def _why_not_here() -> str | None:
    if os.geteuid() != 0:
        return "putting up the walls takes root"
    for program in ("unshare", "setpriv", "chroot"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    tried = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "x", "/tmp"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no mount namespaces here: {tried.stderr.strip()}" if tried.returncode else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (reason := _why_not_here()) is not None:
        pytest.skip(reason)
    return tmp_path_factory.mktemp("walls")


class Contained:
    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        program = (sys.executable, "-m", "hpo_service", "serve", "--port", "0", "--json")
        self.process = subprocess.Popen(
            _command(folder, *program, "--database", "sqlite:////data/hpo.db"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        said = self.process.stdout.readline()
        if not said:
            raise RuntimeError(self.process.stderr.read()[-3000:])
        told = json.loads(said)
        self.url = told["url"]
        self.token = (self.data / Path(told["key_file"]).name).read_text().strip()

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            return answer.status, answer.read()

    def status(self) -> dict[str, str]:
        """/proc says who it is and what it may do; the shells before it have become it."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Contained]:
    started = Contained(folder)
    yield started
    started.process.terminate()
    assert started.process.wait(timeout=PATIENCE_SECONDS) == 0, "it ends by itself when it is asked to"


@pytest.mark.slow
def test_it_is_nobody_and_may_do_nothing(server: Contained) -> None:
    status = server.status()
    assert status["Uid"].split() == [str(USER)] * 4
    assert status["Gid"].split() == [str(USER)] * 4
    assert status["Groups"] == ""
    assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"


@pytest.mark.slow
def test_its_file_system_can_be_written_in_its_data_and_tmp_only(folder: Path, server: Contained) -> None:
    places = ["/x", "/etc/x", "/usr/x", f"{sys.prefix}/x", f"{ROOT}/x", f"{ROOT}/hpo_service/x", "/data/x", "/tmp/x"]
    probe = f"""
import errno, json
def written(place):
    try:
        open(place, "w").close()
        return "written"
    except OSError as error:
        return errno.errorcode[error.errno]
print(json.dumps([written(place) for place in {places!r}]))
"""
    done = subprocess.run(
        _command(folder, sys.executable, "-c", probe), capture_output=True, text=True, check=True, cwd="/"
    )
    assert json.loads(done.stdout) == ["EROFS"] * 6 + ["written"] * 2
    (folder / "data" / "x").unlink()


@pytest.mark.slow
def test_a_study_runs_in_it_and_its_pages_are_there(server: Contained) -> None:
    space = {"x": {"type": "float", "low": 0, "high": 1}}
    assert server.call("POST", "/v1/studies", {"name": "walls", "search_space": space})[0] == 201
    for number in range(12):
        ask = {"worker_id": "w", "request_id": f"r{number}"}
        (trial,) = json.loads(server.call("POST", "/v1/studies/walls/trials:ask", ask)[1])["trials"]
        tell = {"attempt": trial["attempt"], "state": "COMPLETE", "values": [trial["params"]["x"]]}
        assert server.call("POST", f"/v1/studies/walls/trials/{trial['number']}:tell", tell)[0] == 200
    assert json.loads(server.call("GET", "/v1/studies/walls")[1])["counts"]["COMPLETE"] == 12
    for page, holds in (
        ("/dashboard", b"<html"),
        ("/docs", b"swagger-ui"),
        ("/readyz", b"true"),
        ("/metrics", b"hpo_"),
    ):
        status, found = server.call("GET", page)
        assert status == 200, page
        assert holds in found.lower(), page
    assert any(study["study_name"] == "walls" for study in _dashboard_studies(server))
    assert (server.data / "hpo.db").stat().st_uid == USER
    assert {path.name.partition(".")[0] for path in server.data.iterdir()} == {"hpo"}


def _dashboard_studies(server: Contained) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = json.loads(server.call("GET", "/api/studies")[1])["study_summaries"]
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


@pytest.mark.slow
def test_every_container_asks_for_these_walls() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert {"server", "worker", "db"} <= set(services)
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("cap_add", []) == [], name
        assert service["user"] not in ("0", "root", 0), name
        assert "privileged" not in service, name
        assert not any("docker.sock" in str(volume) for volume in service.get("volumes", [])), name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:") or service["profiles"] == ["tls"], name
    assert f"USER {USER}:{USER}" in (ROOT / "Dockerfile").read_text()
