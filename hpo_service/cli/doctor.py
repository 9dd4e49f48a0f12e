"""`hpo doctor`: checks what the service needs, and prints a line for each check. It changes nothing."""

from __future__ import annotations

import gzip
import hashlib
import os
import platform
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from hpo_service import extras
from hpo_service.cli import wording
from hpo_service.cli.exits import ERROR, USAGE
from hpo_service.cli.held_database import sqlite_path
from hpo_service.cli.options import DEFAULT_DATABASE, AsJson, Database, Server, connect, print_result, without_password
from hpo_service.cli.settings_in_force import settings_in_force
from hpo_service.domain.errors import HpoError
from hpo_service.environment import PREFIX, faults
from hpo_worker.cores import cores

OLDEST_PYTHON = (3, 11)
PACKAGES = ("httptools", "numpy", "pydantic", "urllib3")  # without which no command works
# By extra: what it is needed for, and the packages of it whose versions are shown.
EXTRAS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "server": (
        "hpo run, serve, db, token and import",
        ("alembic", "fastapi", "optuna", "scipy", "sqlalchemy", "uvicorn"),
    ),
    "postgres": ("a record on PostgreSQL", ("psycopg",)),
    "plot": ("pictures", ("matplotlib",)),
    "parquet": ("exports as parquet", ("pyarrow",)),
}
LEAST_FREE_BYTES = 512 * 2**20

# MD5 of the unpacked files as published by Y. LeCun and C. Cortes
MNIST: Mapping[str, str] = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}

OK, NOTE, BAD = "ok", "note", "bad"


@dataclass(frozen=True)
class Finding:
    """The outcome of a check. state: NOTE is worth knowing; BAD keeps the service from working."""

    what: str
    state: str
    detail: str


def doctor(
    context: typer.Context, database: Database = DEFAULT_DATABASE, server: Server = None, json: AsJson = False
) -> None:
    """Check Python, packages, threads, settings, database, disk, its log, server and data; exit 1 if something is bad.

    A variable HPO_… that is no setting, or has no value of its kind, ends it with 2, as it ends every command.
    """
    options = {"database": ("HPO_DATABASE_URL", database), "server": ("HPO_SERVER", server or "")}
    given = dict(setting for option, setting in options.items() if _is_given(context, option))
    findings = [
        *_python(),
        *_packages(),
        *_threads(),
        *_settings(given),
        *_database(database),
        *_disk(database),
        *_write_ahead_log(database),
        *_server(server),
        *_key(server),
        *_mnist(),
        *_data_folder(),
    ]
    lines = wording.columns((finding.state, finding.what, finding.detail) for finding in findings)
    print_result(json, {"items": [asdict(finding) for finding in findings]}, lines)
    bad = [finding for finding in findings if finding.state == BAD]
    if bad:
        sys.exit(
            USAGE if any(finding.what.startswith(PREFIX) or finding.what == "settings" for finding in bad) else ERROR
        )


def _is_given(context: typer.Context, option: str) -> bool:
    """Whether the option was given on the command line."""
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def _settings(given: Mapping[str, str]) -> Iterator[Finding]:
    """Each setting in force and where it comes from, and each HPO_ variable that is no setting."""
    for fault in faults(os.environ):
        yield Finding("settings", BAD, fault)
    for setting in settings_in_force(given):
        yield Finding(setting.name, OK if setting.fault is None else BAD, setting.fault or setting.value)


def _python() -> Iterator[Finding]:
    recent = sys.version_info[:2] >= OLDEST_PYTHON
    needs = "" if recent else "; 3.11 or newer is needed"
    yield Finding("python", OK if recent else BAD, f"{platform.python_version()} on {platform.platform()}{needs}")


def _packages() -> Iterator[Finding]:
    missing = [package for package in PACKAGES if _version(package) is None]
    for package in missing:
        yield Finding(package, BAD, "is not installed: pip install hpo-service")
    for extra, (needed_for, _) in EXTRAS.items():
        if not extras.is_installed(extra):
            yield Finding(extra, NOTE, f"is not installed; needed for {needed_for}: {extras.install(extra)}")
    packages = [*PACKAGES, *(package for _, of_extra in EXTRAS.values() for package in of_extra)]
    found = [f"{package} {number}" for package in packages if (number := _version(package)) is not None]
    yield Finding("packages", OK, ", ".join(found))


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def _threads() -> Iterator[Finding]:
    import numpy as np
    from threadpoolctl import threadpool_info

    np.ones((2, 2)) @ np.ones((2, 2))  # the first product loads the BLAS library
    blas = ", ".join(
        f"{pool['internal_api']} {pool['version']} with {wording.count(pool['num_threads'], 'thread')}"
        for pool in threadpool_info()
    )
    yield Finding("threads", OK, f"{wording.count(cores(), 'core')}; {blas or 'no BLAS library'}; a worker takes one")


def _database(url: str) -> Iterator[Finding]:
    if not extras.is_installed("server"):  # no database library is installed
        return
    from hpo_service.store.engine import database_errors_translated, database_url, reading_engine, sqlite_file
    from hpo_service.store.postgres_server import faults
    from hpo_service.store.schema import current_revision

    shown = without_password(url)
    try:
        parsed = database_url(url)
        file = sqlite_file(parsed)
        if file is not None and not file.exists():
            yield _folder_of_new_file(shown, file)
            return
        if file is not None and not os.access(file, os.W_OK):
            yield Finding("database", BAD, f"{shown}: {file} may not be written by this user")
            return
        engine = reading_engine(parsed)
        try:
            with database_errors_translated(), engine.connect() as connection:
                found = list(faults(connection))
                revision = current_revision(connection)
        finally:
            engine.dispose()
    except ValueError as error:
        yield Finding("database", BAD, str(error))
    except HpoError as error:
        yield Finding("database", BAD, f"{shown}: {error.detail}")
    else:
        for fault in found:
            yield Finding("database", BAD, f"{shown}: {fault}")
        if found:
            return
        schema = "no schema yet; the server makes it" if revision is None else f"schema {revision}"
        yield Finding("database", OK, f"{shown}: {schema}")


def _folder_of_new_file(shown: str, file: Path) -> Finding:
    folder = _nearest_folder(file)
    if os.access(folder, os.W_OK):
        return Finding("database", OK, f"{shown}: not there yet; the server makes it")
    return Finding("database", BAD, f"{shown}: this user may not write into {folder}")


def _nearest_folder(file: Path) -> Path:
    """The nearest folder above the file that exists."""
    return next(folder for folder in Path(os.path.realpath(file)).parents if folder.exists())


def _disk(url: str) -> Iterator[Finding]:
    file = sqlite_path(url)
    folder = Path.cwd() if file is None else _nearest_folder(file)
    free = shutil.disk_usage(folder).free
    yield Finding("disk", OK if free >= LEAST_FREE_BYTES else BAD, f"{free / 2**30:.1f} GiB free at {folder}")


def _write_ahead_log(url: str) -> Iterator[Finding]:
    """The size of SQLite's log; if it is large, which processes keep it from being truncated, and what to do."""
    if not url.startswith("sqlite:///") or not extras.is_installed("server"):
        return
    from hpo_service.store import write_ahead_log
    from hpo_service.store.engine import database_url, sqlite_file

    try:
        file = sqlite_file(database_url(url))
    except ValueError:  # `_database` reports it
        return
    if file is None:
        return
    log = write_ahead_log.log_of(file)
    size = write_ahead_log.size(log)
    shown = f"{log} has {size / 2**20:.0f} MiB"
    if size < write_ahead_log.LARGE:
        yield Finding("log", OK, shown)
        return
    readers = ", ".join(f"process {pid} ({_command_of(pid)})" for pid in write_ahead_log.readers(file))
    if not readers:
        yield Finding("log", NOTE, f"{shown}; nobody reads now, so that a server that runs makes it small again")
        return
    state = BAD if write_ahead_log.is_too_large(file) else NOTE
    yield Finding(
        "log",
        state,
        f"{shown}, and cannot be made small while somebody reads an older state of the database: {readers}. "
        "End that reading (an export, a dashboard, a backup, a shell with a transaction open); the server makes it "
        "small within seconds",
    )


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:80]
    except OSError:
        return "of another user, or gone"


def _server(server: str | None) -> Iterator[Finding]:
    try:
        with connect(server) as client:
            answer = client.version()
            yield Finding("server", OK, f"{client.server}: version {answer['version']}, api {answer['api']}")
    except HpoError as error:
        if error.code == "unauthenticated":  # a malformed key, refused before any request: `_key` reports it
            return
        yield Finding("server", NOTE, f"{without_password(error.detail)}; `hpo serve` starts one, `hpo run` needs none")


def _key(server: str | None) -> Iterator[Finding]:
    """Whether the server accepts the key in the environment; no finding if the server does not answer."""
    given = bool(os.environ.get("HPO_TOKEN") or os.environ.get("HPO_TOKEN_FILE"))
    try:
        with connect(server) as client:
            next(client.studies(page_size=1), None)
    except HpoError as error:
        if error.code == "unauthenticated" and given:
            yield Finding("key", BAD, error.detail)
        elif error.code == "unauthenticated":
            yield Finding("key", NOTE, "none in HPO_TOKEN or HPO_TOKEN_FILE; hpo token create makes one")
    else:
        yield Finding("key", OK, "the server takes it" if given else "the server asks for none")


def _mnist() -> Iterator[Finding]:
    from hpo_worker.datasets import INSIDE

    wrong = []
    for name, expected in MNIST.items():
        try:
            content = gzip.decompress((INSIDE["mnist"] / f"{name}.gz").read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            wrong.append(f"{name}: {error}")
            continue
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != expected:
            wrong.append(f"{name}: not the file as published; install the package again")
    yield Finding("mnist", BAD if wrong else OK, "; ".join(wrong) or "the four files as published")


def _data_folder() -> Iterator[Finding]:
    """The names of the datasets in HPO_DATA. Their content is checked only when it is loaded."""
    from hpo_service.domain.neural_network import DATASET_NAME

    given = os.environ.get("HPO_DATA")
    if not given:
        yield Finding("data", OK, "no data folder, and so mnist alone; name one with HPO_DATA, or --data")
        return
    folder = Path(given)
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.is_dir() or entry.suffix == ".npz")
    except OSError as error:
        yield Finding("data", BAD, f"{folder}, in HPO_DATA, cannot be read: {error.strerror}")
        return
    names = [entry.name for entry in entries if DATASET_NAME.fullmatch(entry.name.removesuffix(".npz"))]
    yield Finding("data", OK if names else NOTE, f"{folder}: {', '.join(names) or _DATASETS_ARE}")


_DATASETS_ARE = "no dataset in it; one is a folder NAME/ with the four IDX files, or a file NAME.npz"
