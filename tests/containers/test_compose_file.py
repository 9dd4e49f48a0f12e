"""What docker-compose.yml gives to whom: each service only what it needs, and all of it bounded."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
ONE_SHOT = {name for name, service in SERVICES.items() if service["restart"] == "no"}

# who may mount which volume, and how; whoever is not named here mounts none
MOUNTS = {
    "owner-secret": {"secrets": "rw", "db": "ro", "migrate": "ro", "server": "ro", "restore": "ro"},
    "reader-secret": {"secrets": "rw", "db": "ro", "backup": "ro", "dashboard": "ro"},
    "secrets": {"secrets": "ro"},
    "admin-key": {"migrate": "rw", "admin-key": "ro"},
    "worker-key": {"migrate": "rw", "worker": "ro"},
    "data": {"db": "rw"},
    "socket": {"db": "rw"},
    "datasets": {"worker": "ro"},
    "backups": {"secrets": "rw", "backup": "rw", "restore": "ro"},
    "certificates": {"proxy": "rw"},
}


def mounts() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source, _, mode = (*volume.split(":"), "rw")[:3]
            if source.startswith("./"):
                assert mode == "ro", f"{name} may write into {source}"
            else:
                found.setdefault(source, {})[name] = mode
    return found


def test_each_volume_is_mounted_by_those_who_need_it_and_nobody_else() -> None:
    assert mounts() == MOUNTS
    assert set(COMPOSE["volumes"]) == set(MOUNTS)


def test_the_dashboard_is_another_user_and_reads_by_a_role_that_only_reads() -> None:
    dashboard = SERVICES["dashboard"]
    others = {service["user"] for name, service in SERVICES.items() if name != "dashboard"}
    assert dashboard["user"] not in others
    assert "owner" not in str(dashboard)
    assert "hpo_reader@db" in str(dashboard["command"])
    assert "NOSUPERUSER" in (ROOT / "deploy/reader.sh").read_text()
    assert "owner" not in str(SERVICES["backup"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_bounded(name: str) -> None:
    service = SERVICES[name]
    assert service["mem_limit"]
    assert service["pids_limit"] <= 256
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    assert all("size=" in place for place in service["tmpfs"])
    assert any(place.startswith("/tmp:") for place in service["tmpfs"])
    assert service["read_only"] is True


def test_every_service_that_stays_says_whether_it_is_well_and_has_time_to_end() -> None:
    for name in SERVICES.keys() - ONE_SHOT:
        assert SERVICES[name]["healthcheck"]["test"], name
        assert SERVICES[name]["stop_grace_period"], name
        assert SERVICES[name]["restart"] == "unless-stopped", name
    assert {"secrets", "migrate", "admin-key", "restore"} == ONE_SHOT


def test_nothing_but_the_proxy_with_tls_is_published_beyond_this_machine() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:") or name == "proxy", name
    assert SERVICES["proxy"]["profiles"] == ["tls"]


def test_the_database_checks_its_pages() -> None:
    assert "--data-checksums" in SERVICES["db"]["environment"]["POSTGRES_INITDB_ARGS"]


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["", "dashboard", "tls", "tools"])
def test_the_file_is_valid_with_each_profile(profile: str) -> None:
    compose = Path(sys.prefix) / "bin/docker-compose"
    done = subprocess.run(
        [compose, "-f", ROOT / "docker-compose.yml", *(("--profile", profile) if profile else ()), "config", "-q"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def draw(folder: Path) -> None:
    for name in ("owner", "reader", "before"):
        (folder / name).mkdir(exist_ok=True)
    subprocess.run([sys.executable, ROOT / "deploy/passwords.py", folder], check=True)


def _mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_passwords_are_drawn_once_each_in_a_folder_of_its_own(tmp_path: Path) -> None:
    draw(tmp_path)
    owner, reader = ((tmp_path / name / f"{name}.password").read_text() for name in ("owner", "reader"))
    assert owner != reader
    assert min(len(owner), len(reader)) >= 32
    assert {file.name for file in (tmp_path / "reader").iterdir()} == {"reader.password"}
    assert _mode(tmp_path / "owner/owner.pgpass") == 0o600, "libpq takes no other"
    assert _mode(tmp_path / "owner/owner.password") == 0o444
    assert (tmp_path / "owner/owner.pgpass").read_text() == f"db:5432:hpo:hpo:{owner}\n"
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    draw(tmp_path)
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_an_installation_from_before_keeps_its_passwords(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    (tmp_path / "before/owner.password").write_text("of-the-owner")
    (tmp_path / "before/reader.password").write_text("of-the-reader")
    draw(tmp_path)
    assert (tmp_path / "owner/owner.password").read_text() == "of-the-owner"
    assert (tmp_path / "reader/reader.password").read_text() == "of-the-reader"


@pytest.mark.skipif(os.name != "posix", reason="a shell")
@pytest.mark.parametrize("script", sorted((ROOT / "deploy").glob("*.sh")), ids=lambda script: script.name)
def test_the_scripts_are_read_by_a_plain_shell(script: Path) -> None:
    subprocess.run(["sh", "-n", script], check=True)
