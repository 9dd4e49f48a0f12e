"""Reads the lock files, and compares what is installed with them.

python tests/supply_chain/lock_files.py: what `make audit` runs. It fails when something is installed that is not
locked, when a known weakness is found, and when there is nobody to ask about weaknesses.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNTIME, ALL = ROOT / "requirements.lock", ROOT / "requirements-dev.lock"

# Ourselves, and what a new virtual environment brings along.
NOT_LOCKED = frozenset({"hpo-service", "pip", "setuptools", "wheel"})

_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(?P<version>[^\s;]+)")
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}(?=\s|$)")
_ADDRESS = re.compile(r"://|^\s*--(?!hash=)|^\s*-[a-z]\b| @ |file:", re.MULTILINE)


# By name, then by version, the number of hashes. There are several versions where newer ones need a newer Python.
Locked = dict[str, dict[str, int]]


def addresses(text: str) -> list[str]:
    """Lines of a lock file that say where to get a package, rather than which."""
    return [line for line in text.splitlines() if _ADDRESS.search(line) and not line.lstrip().startswith("#")]


def read(text: str) -> Locked:
    """The packages of a lock file; a line that names none is no lock file's. Raise ValueError for it."""
    packages: Locked = {}
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _REQUIREMENT.match(line)
        if found is None:
            raise ValueError(f"not pinned: {line}")
        packages.setdefault(normal(found["name"]), {})[found["version"]] = len(_HASH.findall(line))
    return packages


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    return {normal(found.name): found.version for found in distributions()}


def strangers(installed: Mapping[str, str], locked: Locked) -> list[str]:
    """What is installed and not locked, or in another version, or was locked without a hash."""
    faults = []
    for name, version in sorted(installed.items()):
        if name in NOT_LOCKED:
            continue
        if name not in locked:
            faults.append(f"{name} {version} is not in the lock file")
        elif version not in locked[name]:
            faults.append(f"{name} {version} is installed, {' or '.join(locked[name])} locked")
        elif not locked[name][version]:
            faults.append(f"{name} is locked without a hash")
    return faults


def weaknesses(report: Mapping[str, Iterable[Mapping[str, object]]]) -> list[str]:
    """What pip-audit found; a package that it could not ask about counts as found."""
    faults = []
    for package in report["dependencies"]:
        if "skip_reason" in package:
            faults.append(f"{package['name']}: nobody could be asked ({package['skip_reason']})")
        known = package.get("vulns") or []
        assert isinstance(known, list)
        faults += [f"{package['name']} {package['version']}: {each['id']}" for each in known]
    return faults


def ask_about_weaknesses() -> list[str]:
    """Ask the advisory service about every locked package."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--requirement", str(ALL)]
    done = subprocess.run(
        [*command, "--format", "json", "--progress-spinner", "off"], capture_output=True, text=True, check=False
    )
    try:
        return weaknesses(json.loads(done.stdout))
    except ValueError:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        return [f"pip-audit could not ask the advisory service: {said[-1][:300]}"]


def main() -> int:
    unlocked = strangers(installed(), read(ALL.read_text()))
    print(
        f"{len(installed())} packages are installed; {len(unlocked)} differ from the lock file", *unlocked, sep="\n  "
    )
    weak = ask_about_weaknesses()
    print(f"{len(weak)} known weaknesses, or packages that nobody could be asked about", *weak, sep="\n  ")
    return 1 if unlocked or weak else 0


if __name__ == "__main__":
    sys.exit(main())
