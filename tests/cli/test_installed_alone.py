"""The wheel in an environment that has nothing else: SDK, worker and commands work, at both ends of what is allowed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from hpo_service import extras
from hpo_service.client import Client
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
MOST_BYTES = 60 * 10**6  # beside NumPy and the interpreter
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

BY_THE_SDK = """
import sys
from hpo_service.client import Client, log_uniform, uniform

with Client(sys.argv[1]) as hpo:
    study = hpo.create_study(sys.argv[2] + "-sdk", search_space={"x": uniform(0, 1)}, sampler={"name": "random"})
    study.optimize(lambda trial: trial.params["x"] ** 2, n_trials=3)
    network = {"kind": "neural_network", "samples": 100, "epochs": 2, "hidden_sizes": [20]}
    rates = {"learning_rate": log_uniform(1e-3, 1e-1)}
    hpo.create_study(sys.argv[2] + "-net", search_space=rates, objective=network, limits={"trials": 2})
    hpo.create_study(sys.argv[2] + "-own", search_space={"x": uniform(0, 1)}, limits={"trials": 2})
"""
OF_THE_USER = "def train(trial):\n    yield 0, trial.params['x']\n"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build leaves folders behind."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("hpo_service", "worker"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    _pip("wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(built), str(source))
    (found,) = built.glob("*.whl")
    return found


def _pip(*arguments: str, of: Path | None = None) -> str:
    """Ours, for another environment too: one that has a pip of its own takes ten times as long to make."""
    python = [] if of is None else ["--python", str(of / "python")]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *python, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def _needs_an_index() -> None:
    """Skip where packages cannot be had; there, nothing can be said about the wheel."""
    probe = [sys.executable, "-m", "pip", "install", "--no-deps", "--dry-run", "--ignore-installed", "threadpoolctl"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no package index can be reached")


def oldest() -> list[str]:
    """Every dependency at its lower bound."""
    if sys.version_info >= (3, 13):
        pytest.skip("NumPy 1.26 has no wheel for this Python")
    return [re.sub(">=(.*)", r"==\1.*", wanted) for wanted in PROJECT["dependencies"]]


def newest() -> list[str]:
    """What pip takes of itself, and NumPy too is the newest there is for this Python."""
    return ["--upgrade", "numpy"]


@pytest.fixture(params=[oldest, newest], ids=lambda versions: versions.__name__)
def alone(request: pytest.FixtureRequest, wheel: Path, tmp_path: Path) -> Iterator[Path]:
    """The scripts' folder of an environment with the wheel, and what it brings along."""
    _needs_an_index()
    versions = request.param()
    folder = tmp_path / "alone"
    venv.create(folder)
    # NumPy is left to compile what is imported of it: all of it takes longer than all else here.
    _pip("install", "-q", "--no-compile", str(wheel), *versions, of=folder / "bin")
    yield folder / "bin"
    shutil.rmtree(folder)


def _run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("HPO_", "PYTHON"))}
    return subprocess.run(command, cwd=cwd, env=surroundings, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sdk_worker_and_commands_work_where_nothing_but_the_wheel_is_installed(
    alone: Path, server: str, client: Client, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name = "alone-" + request.node.callspec.id
    done = _run(alone / "python", "-c", BY_THE_SDK, server, name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    (tmp_path / "worker.py").write_text(OF_THE_USER)
    end = ("--server", server, "--processes", "1", "--until-done", "--json")
    for study, more in ((f"{name}-net", ()), (f"{name}-own", ("--objective", "worker:train"))):
        done = _run(alone / "hpo", "worker", "--study", study, *more, *end, cwd=tmp_path)
        assert (done.returncode, done.stdout and json.loads(done.stdout)) == (0, {"trials": {"COMPLETE": 2}}), done

    assert [trial["state"] for trial in client.trials(f"{name}-sdk")] == ["COMPLETE"] * 3
    assert all(len(trial["reports"]) == 2 for trial in client.trials(f"{name}-net"))

    packages = json.loads(_pip("list", "--format=json", of=alone))
    print(*(f"{each['name']} {each['version']}" for each in packages), sep=", ")
    site = next((alone.parent / "lib").glob("python*")) / "site-packages"
    left_out = ("numpy",)  # what the goal leaves out
    assert _run(alone / "python", "-m", "compileall", "-q", "-x", "/numpy/", str(site), cwd=tmp_path).returncode == 0
    size = sum(
        file.stat().st_size
        for file in site.rglob("*")
        if file.is_file() and not file.relative_to(site).parts[0].startswith(left_out)
    )
    assert size < MOST_BYTES
    for says in _missing_parts(alone, server, tmp_path):
        assert says.returncode == 2, says
        assert len(says.stderr.splitlines()) == 1
        assert "pip install 'hpo-service[" in says.stderr


def _missing_parts(alone: Path, server: str, folder: Path) -> Iterator[subprocess.CompletedProcess[str]]:
    for command in (["serve", "--port", "0"], ["db", "upgrade"], ["token", "list"], ["import", "sqlite:///x.db"]):
        yield _run(alone / "hpo", *command, cwd=folder)
    yield _run(alone / "hpo", "plot", "x", "-o", "x.png", "--server", server, cwd=folder)


def test_the_table_of_extras_names_what_they_install() -> None:
    """And no module of the table comes with the plain install."""
    stand_ins = {"postgres": {"psycopg"}, "otel": {"opentelemetry"}}
    for extra, modules in extras.MODULES.items():
        wanted = {re.split(r"[\[<>=]", each)[0].replace("-", "_") for each in PROJECT["optional-dependencies"][extra]}
        plain = {re.split(r"[\[<>=]", each)[0].replace("-", "_") for each in PROJECT["dependencies"]}
        installed = stand_ins.get(extra, wanted - plain)
        assert installed <= set(modules), extra
        assert not set(modules) & plain, extra
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert set(re.findall(r"\w+", everything.partition("[")[2])) == set(extras.MODULES) - {"ray"}


def without(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`hpo` in a process in which that module is not installed."""
    program = f"""
import sys, importlib.abc
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == {module!r} else found(name, package)
sys.meta_path.insert(0, Missing())
from hpo_service.cli import main
main({list(arguments)!r})
"""
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("uvicorn", ["serve", "--port", "0"], "server"),
        ("sqlalchemy", ["db", "upgrade"], "server"),
        ("sqlalchemy", ["token", "list"], "server"),
        ("optuna", ["import", "sqlite:///x.db"], "server"),
        ("fastapi", ["run", str(ROOT / "studies/mnist.toml")], "server"),
        ("matplotlib", ["plot", "x", "-o", "x.png"], "plot"),
        ("psycopg", ["db", "upgrade", "--database", "postgresql://u@127.0.0.1:1/x"], "postgres"),
        ("psycopg", ["serve", "--database", "postgresql://u@127.0.0.1:1/x", "--port", "0"], "postgres"),
    ],
)
def test_a_command_whose_part_is_not_installed_says_which_to_install(
    module: str, arguments: list[str], extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = without(module, *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert extras.install(extra) in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_doctor_says_that_the_server_is_not_installed_and_looks_at_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = without("sqlalchemy", "doctor", "--json")
    found = [(each["what"], each["state"], each["detail"]) for each in json.loads(ended.stdout)["items"]]
    assert ("server", "note") in [(what, state) for what, state, detail in found if extras.install("server") in detail]
    assert "disk" in [what for what, _, _ in found]
    assert "database" not in [what for what, _, _ in found]


def test_a_fault_of_another_kind_is_not_taken_for_a_missing_part(monkeypatch: pytest.MonkeyPatch) -> None:
    assert extras.extra_of("sqlalchemy.exc") == "server"
    assert extras.extra_of("json.nothing") is extras.extra_of("my_own_module") is extras.extra_of(None) is None


@pytest.mark.slow
def test_the_sdk_imports_little() -> None:
    """Modules are counted, not seconds: a machine may be slow."""
    program = "import sys; before = set(sys.modules); import hpo_service.client; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = done.stdout.split()
    tops = {name.partition(".")[0] for name in imported}
    heavy = {"numpy", "urllib3", "rich", "typer", "structlog", "asyncio", "multiprocessing", "hpo_worker"}
    assert tops & (heavy | {module for modules in extras.MODULES.values() for module in modules}) == set()
    assert len(imported) < 220
