"""What is installed is what was locked, by version and hash, from no address that the project chose."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from lock_files import ALL, ROOT, RUNTIME, addresses, installed, normal, read, strangers, weaknesses

HASH = "--hash=sha256:" + "a" * 64


@pytest.mark.parametrize("lock", [RUNTIME, ALL], ids=lambda lock: str(lock.name))
def test_a_lock_file_holds_packages_and_hashes_and_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert addresses(text) == []
    assert [name for name, versions in read(text).items() if not all(versions.values())] == []


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://packages.example/simple",
        "--extra-index-url=https://packages.example/simple",
        "-i https://packages.example/simple",
        "--find-links ./wheels",
        f"numpy @ https://packages.example/numpy.whl {HASH}",
        "numpy @ file:///wheels/numpy.whl",
        "--trusted-host packages.example",
    ],
)
def test_an_address_in_a_lock_file_is_found(line: str) -> None:
    assert addresses(f"numpy==2.4.0 \\\n    {HASH}\n{line}\n") == [line]


def test_a_package_without_a_version_or_a_hash_is_found() -> None:
    with pytest.raises(ValueError, match="not pinned: numpy>=2"):
        read(f"numpy>=2 {HASH}\n")
    assert read("numpy==2.4.0\n") == {"numpy": {"2.4.0": 0}}


def test_every_dependency_is_locked_and_tests_run_on_the_versions_that_are_shipped() -> None:
    shipped, tested = read(RUNTIME.read_text()), read(ALL.read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {normal(wanted.split(">")[0].split("[")[0]) for wanted in project["dependencies"]}
    assert names <= set(shipped)
    assert {name: tested[name] for name in shipped} == shipped


def test_nothing_is_installed_that_is_not_locked() -> None:
    assert strangers(installed(), read(ALL.read_text())) == []


def test_a_stranger_is_found() -> None:
    locked = {"numpy": {"2.4.0": 3, "2.3.0": 3}, "bare": {"1": 0}}
    found = strangers({"numpy": "2.4.1", "bare": "1", "left-pad": "1", "pip": "26"}, locked)
    assert found == [
        "bare is locked without a hash",
        "left-pad 1 is not in the lock file",
        "numpy 2.4.1 is installed, 2.4.0 or 2.3.0 locked",
    ]


def test_an_audit_that_could_ask_nobody_has_not_passed() -> None:
    unasked = {"name": "numpy", "skip_reason": "Dependency not found"}
    weak = {"name": "old", "version": "1", "vulns": [{"id": "PYSEC-1"}]}
    fine = {"name": "good", "version": "1", "vulns": []}
    assert weaknesses({"dependencies": [fine]}) == []
    assert weaknesses({"dependencies": [unasked, weak, fine]}) == [
        "numpy: nobody could be asked (Dependency not found)",
        "old 1: PYSEC-1",
    ]


@pytest.mark.slow
def test_the_bill_of_materials_lists_every_shipped_package_with_its_hashes(tmp_path: Path) -> None:
    bill = tmp_path / "sbom.json"
    command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements", str(RUNTIME), "-o", str(bill)]
    subprocess.run([*command, "--pyproject", str(ROOT / "pyproject.toml")], check=True, capture_output=True)
    listed: dict[str, dict[str, int]] = {}
    for part in json.loads(bill.read_text())["components"]:
        hashes = sum(len(reference["hashes"]) for reference in part["externalReferences"])
        listed.setdefault(normal(part["name"]), {})[part["version"]] = hashes
    assert listed == read(RUNTIME.read_text())
