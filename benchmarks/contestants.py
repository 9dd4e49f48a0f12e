"""The places for studies that the service's benchmark compares: this service, Optuna's storages, OSS Vizier."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import optuna
import processes
from loads import SPACE, Load, past_trials
from optuna_history import fill, frozen, journal_with

from hpo_service.client import Client, log_uniform

IMPORTED_AT_ONCE = 1000
ANY = 10**9
IN_ONE_CALL = ", tell and ask in one call"
PEER_SERVERS = Path(__file__).with_name("peer_servers.py")


class Worker(Protocol):
    """Does one trial after the other, in a process of its own."""

    def ask(self) -> int:
        """Begin a trial, with its parameters; the number of its place among all."""

    @property
    def asks_apart(self) -> bool:
        """Whether asking is a call of its own; otherwise the tell before has brought the trial along."""

    def report(self, value: float, step: int) -> None:
        """Report, and learn whether to go on; a worker here does in any case, so that every trial costs the same."""

    def tell(self, value: float) -> None: ...


class Contestant(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def most_history(self) -> int:
        """Beyond so many trials it takes too long to wait for."""

    @property
    def server_pids(self) -> Sequence[int]: ...

    @property
    def in_one_process(self) -> bool:
        """Whether what it keeps is in its worker's memory: then it has one, and counts there."""

    def prepare(self, load: Load, history: int) -> str:
        """Make a study with so many finished trials, in a process of its own; its name, or several with spaces."""

    def open(self, study: str, load: Load, place: int) -> Worker:
        """A worker; place: 0, 1, … among the workers of the study."""

    def complete(self, study: str, *, by_row: bool) -> int:
        """How many trials are COMPLETE; by_row: not as a counter says, but as they are found."""


class ServiceWorker:
    """asks_apart: by two calls a trial, as any worker may; otherwise by one, as the client's own loop does."""

    def __init__(self, url: str, study: str, *, asks_apart: bool) -> None:
        self._client, self._study, self._name = Client(url), study, f"worker-{os.getpid()}"
        self.asks_apart = asks_apart
        self._next: list[dict[str, Any]] = []
        self._number = self._attempt = 0

    def ask(self) -> int:
        (trial,) = self._next or self._client.ask(self._name, self._study)["trials"]
        self._number, self._attempt = trial["number"], trial["attempt"]
        return self._number

    def report(self, value: float, step: int) -> None:
        self._client.report(self._study, self._number, self._attempt, [{"step": step, "value": value}])

    def tell(self, value: float) -> None:
        asks_too = None if self.asks_apart else self._name
        told = self._client.tell(
            self._study, self._number, self._attempt, "COMPLETE", values=[value], then_ask_for=asks_too
        )
        if asks_too:
            self._next = told["next"]["trials"]


class Service:
    """`hpo serve`, reached over HTTP by its own client."""

    in_one_process, most_history = False, ANY

    def __init__(self, name: str, url: str, pid: int, *, asks_apart: bool = True) -> None:
        self.name, self.url, self.server_pids, self._asks_apart = name, url, (pid,), asks_apart

    def in_one_call(self) -> Service:
        """The same server, when workers tell and ask in one call."""
        return Service(f"{self.name}{IN_ONE_CALL}", self.url, *self.server_pids, asks_apart=False)

    def prepare(self, load: Load, history: int) -> str:
        name = new_name()
        with Client(self.url, timeout=60.0) as client:
            client.create_study(
                name,
                {key: log_uniform(*ends) for key, ends in SPACE.items()},
                sampler={"name": load.sampler, "seed": 1},
                pruner={"name": "median" if load.reports else "none"},
            )
            some: list[dict[str, Any]] = []
            for trial in past_trials(load, history):
                some.append(trial)
                if len(some) == IMPORTED_AT_ONCE:
                    client.import_trials(name, some)
                    some = []
            if some:
                client.import_trials(name, some)
        return name

    def open(self, study: str, load: Load, place: int) -> Worker:
        return ServiceWorker(self.url, study, asks_apart=self._asks_apart)

    def complete(self, study: str, *, by_row: bool) -> int:
        with Client(self.url, timeout=60.0) as client:
            if not by_row:
                return int(client.study(study)["counts"]["COMPLETE"])
            rows = b"".join(client.export(study, "jsonl")).splitlines()
            return sum(json.loads(row)["state"] == "COMPLETE" for row in rows)


class SeveralServers:
    """Servers on one database, the workers split between them; own_studies: each worker has a study to itself."""

    in_one_process, most_history = False, ANY

    def __init__(self, name: str, servers: Sequence[Service], workers: int, *, own_studies: bool) -> None:
        self.name, self._servers = name, servers
        self.server_pids = [pid for server in servers for pid in server.server_pids]
        self._studies = workers if own_studies else 1

    def prepare(self, load: Load, history: int) -> str:
        return " ".join(self._servers[0].prepare(load, history) for _ in range(self._studies))

    def open(self, study: str, load: Load, place: int) -> Worker:
        own = study.split()[place % self._studies]
        return self._servers[place % len(self._servers)].open(own, load, place)

    def complete(self, study: str, *, by_row: bool) -> int:
        return sum(self._servers[-1].complete(one, by_row=by_row) for one in study.split())


class OptunaWorker:
    asks_apart = True

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._trial: Any = None

    def ask(self) -> int:
        self._trial = self._study.ask()
        for key, ends in SPACE.items():
            self._trial.suggest_float(key, *ends, log=True)
        return int(self._trial.number)

    def report(self, value: float, step: int) -> None:
        self._trial.report(value, step)
        self._trial.should_prune()

    def tell(self, value: float) -> None:
        self._study.tell(self._trial, value)


def opened(study: str, load: Load, storage: optuna.storages.BaseStorage) -> OptunaWorker:
    samplers = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
    pruner = optuna.pruners.MedianPruner() if load.reports else optuna.pruners.NopPruner()
    sampler = samplers[load.sampler](seed=os.getpid())
    return OptunaWorker(optuna.load_study(study_name=study, storage=storage, sampler=sampler, pruner=pruner))


def count(study: str, storage: optuna.storages.BaseStorage) -> int:
    return storage.get_n_trials(storage.get_study_id_from_name(study), optuna.trial.TrialState.COMPLETE)


class OptunaTables:
    """Optuna's RDBStorage, opened by each worker itself, or its gRPC proxy on it."""

    in_one_process, most_history = False, 10_000

    def __init__(
        self, name: str, database: str, proxy: Callable[[], Any] | None = None, server_pids: Sequence[int] = ()
    ) -> None:
        self.name, self._database, self._proxy, self.server_pids = name, database, proxy, server_pids

    def _tables(self) -> optuna.storages.RDBStorage:
        return optuna.storages.RDBStorage(self._database)

    def prepare(self, load: Load, history: int) -> str:
        name, storage = new_name(), self._tables()
        optuna.create_study(storage=storage, study_name=name, direction="maximize")
        fill(storage, name, past_trials(load, history))
        return name

    def open(self, study: str, load: Load, place: int) -> Worker:
        return opened(study, load, self._proxy() if self._proxy else self._tables())

    def complete(self, study: str, *, by_row: bool) -> int:
        return count(study, self._tables())


class OptunaJournal:
    """Optuna's journal file, one a study, so that no worker reads the history of another study."""

    name, server_pids, in_one_process, most_history = "optuna journal", (), False, 10_000

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _storage(self, study: str) -> optuna.storages.JournalStorage:
        return optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(self._folder / f"{study}.log"))
        )

    def prepare(self, load: Load, history: int) -> str:
        name = new_name()
        journal_with(name, past_trials(load, history), self._folder / f"{name}.log")
        return name

    def open(self, study: str, load: Load, place: int) -> Worker:
        return opened(study, load, self._storage(study))

    def complete(self, study: str, *, by_row: bool) -> int:
        return count(study, self._storage(study))


class OptunaMemory:
    """Optuna without any storage: a plain loop in one process. What is told is lost with it."""

    name, server_pids, in_one_process, most_history = "optuna memory", (), True, 10_000

    def __init__(self) -> None:
        self._histories: dict[str, int] = {}
        self._kept: optuna.storages.BaseStorage | None = None

    def prepare(self, load: Load, history: int) -> str:
        return f"{history}-{new_name()}"

    def open(self, study: str, load: Load, place: int) -> Worker:
        kept = self._kept = optuna.storages.InMemoryStorage()
        made = optuna.create_study(storage=kept, study_name=study, direction="maximize")
        made.add_trials(map(frozen, past_trials(load, int(study.split("-")[0]))))
        return opened(study, load, kept)

    def complete(self, study: str, *, by_row: bool) -> int:
        assert self._kept is not None
        return count(study, self._kept)


class VizierWorker:
    asks_apart = True

    def __init__(self, study: Any) -> None:
        from vizier.service import pyvizier

        self._study, self._name, self._pyvizier = study, f"worker-{os.getpid()}", pyvizier
        self._trial: Any = None

    def ask(self) -> int:
        (self._trial,) = self._study.suggest(count=1, client_id=self._name)
        assert set(self._trial.parameters) == set(SPACE)
        return int(self._trial.id)

    def report(self, value: float, step: int) -> None:
        self._trial.add_measurement(self._pyvizier.Measurement({"value": value}, steps=step + 1))
        self._trial.check_early_stopping()

    def tell(self, value: float) -> None:
        self._trial.complete(self._pyvizier.Measurement({"value": value}))


class Vizier:
    """OSS Vizier's server on SQLite, with its random search for every load: it has no TPE."""

    name, in_one_process, most_history = "vizier (random search)", False, 1000

    def __init__(self, port: int, pid: int) -> None:
        self._endpoint, self.server_pids = f"127.0.0.1:{port}", (pid,)

    def _clients(self) -> Any:
        from vizier.service import clients

        clients.environment_variables.server_endpoint = self._endpoint
        return clients

    def prepare(self, load: Load, history: int) -> str:
        clients, name = self._clients(), new_name()
        from vizier.service import pyvizier as vz

        config = vz.StudyConfig(algorithm="RANDOM_SEARCH")
        for key, (low, high) in SPACE.items():
            config.search_space.root.add_float_param(key, low, high, scale_type=vz.ScaleType.LOG)
        config.metric_information.append(vz.MetricInformation(name="value", goal=vz.ObjectiveMetricGoal.MAXIMIZE))
        config.automated_stopping_config = vz.AutomatedStoppingConfig.default_stopping_spec()
        study = clients.Study.from_study_config(config, owner="benchmark", study_id=name)
        for trial in past_trials(load, history):
            study.add_trial(
                vz.Trial(
                    parameters=trial["params"],
                    measurements=[vz.Measurement({"value": r["value"]}, steps=r["step"] + 1) for r in trial["reports"]],
                    final_measurement=vz.Measurement({"value": trial["values"][0]}),
                )
            )
        return name

    def _study(self, study: str) -> Any:
        return self._clients().Study.from_resource_name(f"owners/benchmark/studies/{study}")

    def open(self, study: str, load: Load, place: int) -> Worker:
        return VizierWorker(self._study(study))

    def complete(self, study: str, *, by_row: bool) -> int:
        from vizier.service import pyvizier as vz

        completed = vz.TrialFilter(status=[vz.TrialStatus.COMPLETED])
        return sum(1 for _ in self._study(study).trials(completed).get())


def new_name() -> str:
    return f"s{uuid.uuid4().hex[:12]}"


class Databases:
    """Databases made for one run, and dropped after it."""

    def __init__(self, folder: Path, postgres: str | None) -> None:
        """postgres: any database of a server."""
        self._folder, self.postgres = folder, postgres
        self._made: list[str] = []

    def new(self, kind: str) -> str:
        """The URL of an empty database."""
        name = f"benchmark_{uuid.uuid4().hex[:8]}"
        if kind == "sqlite":
            return f"sqlite:///{self._folder}/{name}.db"
        self._execute(f"CREATE DATABASE {name}")
        self._made.append(name)
        assert self.postgres is not None
        return f"{self.postgres.rsplit('/', 1)[0]}/{name}"

    @property
    def kinds(self) -> list[str]:
        return ["sqlite", *(["postgresql"] if self.postgres else [])]

    def postmaster(self) -> int | None:
        """The process of the PostgreSQL server, when it runs on this machine."""
        if self.postgres is None:
            return None
        import psycopg

        with psycopg.connect(self.postgres) as connection:
            backend = connection.info.backend_pid
            try:
                if Path(f"/proc/{backend}/comm").read_text().startswith("postgres"):
                    return processes.parent(backend)
            except (FileNotFoundError, ProcessLookupError):
                pass
        return None

    def drop(self) -> None:
        while self._made:
            self._execute(f"DROP DATABASE IF EXISTS {self._made.pop()} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        import psycopg

        assert self.postgres is not None
        with psycopg.connect(self.postgres, autocommit=True) as connection:
            connection.execute(statement.encode())


@contextlib.contextmanager
def databases(folder: Path, postgres: str | None) -> Iterator[Databases]:
    made = Databases(folder, postgres)
    try:
        yield made
    finally:
        made.drop()


@contextlib.contextmanager
def services(made: Databases, only: Sequence[str] = ()) -> Iterator[list[Service]]:
    """This service, once on each kind of database."""
    with contextlib.ExitStack() as running:
        yield [
            Service(name, *running.enter_context(processes.serving(made.new(kind))))
            for kind in made.kinds
            if is_wanted(name := f"service {kind}", only)
        ]


@contextlib.contextmanager
def contestants(made: Databases, folder: Path, only: Sequence[str], packages: str) -> Iterator[list[Contestant]]:
    """All that are wanted and installed; packages: a folder that grpcio, protobuf or google-vizier are in."""
    with contextlib.ExitStack() as running:
        ours = running.enter_context(services(made, only))
        found: list[Contestant] = [each for one in ours for each in (one, one.in_one_call())]
        found += [
            OptunaTables(name, optuna_url(made.new(kind)))
            for kind in made.kinds
            if is_wanted(name := f"optuna {kind}", only)
        ]
        if made.postgres and is_wanted("optuna grpc", only) and is_there("grpc", "google.protobuf"):
            database, port = optuna_url(made.new("postgresql")), free_port()
            pid = running.enter_context(peer("grpc", database, port, packages))
            found.append(OptunaTables("optuna grpc", database, partial(proxy, port), (pid,)))
        if is_wanted("optuna journal", only):
            found.append(OptunaJournal(folder))
        if is_wanted("optuna memory", only):
            found.append(OptunaMemory())
        if is_wanted("vizier", only) and is_there("vizier", "grpc", "jax"):
            port = free_port()
            pid = running.enter_context(peer("vizier", made.new("sqlite"), port, packages))
            found.append(Vizier(port, pid))
        yield found


def is_wanted(name: str, only: Sequence[str]) -> bool:
    return not only or any(name.startswith(start) for start in only)


def is_there(*packages: str) -> bool:
    """Whether all of them are installed, without importing them: gRPC does not survive a fork."""
    for package in packages:
        try:
            found = importlib.util.find_spec(package) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            print(f"left out: {packages[0]} ({package} is not installed)", file=sys.stderr)
            return False
    return True


def optuna_url(database: str) -> str:
    return database.replace("postgresql://", "postgresql+psycopg://")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def peer(kind: str, database: str, port: int, packages: str) -> Iterator[int]:
    command = [sys.executable, str(PEER_SERVERS), kind, database, str(port), packages]
    with processes.announced(command) as (_, pid):
        yield pid


def proxy(port: int) -> Any:
    storage = optuna.storages.GrpcStorageProxy(host="127.0.0.1", port=port)
    storage.wait_server_ready(timeout=30)
    return storage
