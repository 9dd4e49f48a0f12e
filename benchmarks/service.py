"""Trials a second through this service and through Optuna's storages, in one run: processes that ask, report and tell.

    python benchmarks/service.py [--load random] [--history 0 1000] [--trials 400] [--rounds 3] [--postgres URL]

Loads: `random` is ask and tell with two log-uniform parameters; `tpe` adds ten reports, each with the decision of a
median pruner (which here never prunes, so that every trial costs the same). Every answer comes after its commit: SQLite
with synchronous=FULL, PostgreSQL as it is configured. The service is `hpo serve`, reached over HTTP by its own Python
client; Optuna's workers open their storage themselves. Rounds alternate between the contestants; medians are printed,
and ratios to the first one. --postgres: an empty database of a server of its own, such as
postgresql://postgres@127.0.0.1:5432/benchmark.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna

from hpo_service.client import Client, log_uniform

SPACE = {"learning_rate": (1e-6, 1e-2), "weight_decay": (1e-8, 1e-4)}
REPORTS = 10
IMPORTED_AT_ONCE = 1000


@dataclass(frozen=True)
class Load:
    name: str
    sampler: str
    reports: int


LOADS = {load.name: load for load in (Load("random", "random", 0), Load("tpe", "tpe", REPORTS))}


@dataclass(frozen=True)
class Figures:
    """Of one round. server_*: microseconds of CPU a trial, MiB of memory; nan where there is no server."""

    trials_per_second: float
    ask_p50: float  # milliseconds
    ask_p99: float
    server_cpu: float
    server_memory: float


class Contestant(Protocol):
    """A place for studies. `worker` runs in a process of its own and gives back how long each ask took, in seconds."""

    name: str
    server_pid: int | None

    def prepare(self, load: Load, history: int) -> str:
        """Make a study with so many finished trials, and return its name."""

    def worker(self, study: str, load: Load, trials: int) -> list[float]: ...


class Service:
    def __init__(self, name: str, url: str, pid: int) -> None:
        self.name, self.url, self.server_pid = name, url, pid

    def prepare(self, load: Load, history: int) -> str:
        name = f"s{uuid.uuid4().hex[:12]}"
        with Client(self.url) as client:
            client.create_study(
                name,
                {key: log_uniform(*ends) for key, ends in SPACE.items()},
                sampler={"name": load.sampler, "seed": 1},
                pruner={"name": "median" if load.reports else "none"},
            )
            for start in range(0, history, IMPORTED_AT_ONCE):
                some = [past_trial(i, load) for i in range(start, min(history, start + IMPORTED_AT_ONCE))]
                client.import_trials(name, some)
        return name

    def worker(self, study: str, load: Load, trials: int) -> list[float]:
        took = []
        me = f"worker-{os.getpid()}"
        with Client(self.url) as client:
            for _ in range(trials):
                began = time.perf_counter()
                (trial,) = client.ask(me, study)["trials"]
                took.append(time.perf_counter() - began)
                number, attempt = trial["number"], trial["attempt"]
                for step in range(load.reports):
                    client.report(study, number, attempt, [{"step": step, "value": rising(number, step)}])
                client.tell(study, number, attempt, "COMPLETE", values=[rising(number, load.reports)])
        return took


class OptunaStorage:
    server_pid = None

    def __init__(self, name: str, storage: Callable[[], Any]) -> None:
        self.name, self._storage = name, storage

    def prepare(self, load: Load, history: int) -> str:
        name = f"s{uuid.uuid4().hex[:12]}"
        study = optuna.create_study(storage=self._storage(), study_name=name, direction="maximize")
        distributions = {key: optuna.distributions.FloatDistribution(*ends, log=True) for key, ends in SPACE.items()}
        past = [past_trial(i, load) for i in range(history)]
        study.add_trials(
            optuna.create_trial(
                params=trial["params"],
                distributions=distributions,
                value=trial["values"][0],
                intermediate_values={report["step"]: report["value"] for report in trial["reports"]},
            )
            for trial in past
        )
        return name

    def worker(self, study: str, load: Load, trials: int) -> list[float]:
        samplers = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
        pruner = optuna.pruners.MedianPruner() if load.reports else optuna.pruners.NopPruner()
        opened = optuna.load_study(
            study_name=study, storage=self._storage(), sampler=samplers[load.sampler](seed=os.getpid()), pruner=pruner
        )
        took = []
        for _ in range(trials):
            began = time.perf_counter()
            trial = opened.ask()
            for key, ends in SPACE.items():
                trial.suggest_float(key, *ends, log=True)
            took.append(time.perf_counter() - began)
            for step in range(load.reports):
                trial.report(rising(trial.number, step), step)
                trial.should_prune()
            opened.tell(trial, rising(trial.number, load.reports))
        return took


def rising(number: int, step: int) -> float:
    """Every trial does better than those before, so that none is pruned."""
    return number + step / 100


def past_trial(number: int, load: Load) -> dict[str, Any]:
    spread = {
        key: low * (high / low) ** ((number * 0.618 + i * 0.37) % 1)
        for i, (key, (low, high)) in enumerate(SPACE.items())
    }
    reports = [{"step": step, "value": rising(number - 10**6, step)} for step in range(load.reports)]
    return {"params": spread, "state": "COMPLETE", "values": [rising(number - 10**6, load.reports)], "reports": reports}


@contextlib.contextmanager
def serving(database: str) -> Iterator[tuple[str, int]]:
    command = [
        sys.executable,
        "-m",
        "hpo_service",
        "serve",
        "--no-auth",
        "--port",
        "0",
        "--json",
        "--database",
        database,
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())["url"], server.pid
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


@contextlib.contextmanager
def contestants(folder: Path, postgres: str | None, only: list[str]) -> Iterator[list[Contestant]]:
    def wanted(name: str) -> bool:
        return not only or any(name.startswith(start) for start in only)

    with contextlib.ExitStack() as opened:
        found: list[Contestant] = []
        databases = {"sqlite": f"sqlite:///{folder}/service.db", **({"postgresql": postgres} if postgres else {})}
        for kind, url in databases.items():
            if wanted(f"service {kind}"):
                found.append(Service(f"service {kind}", *opened.enter_context(serving(url))))
        if wanted("optuna sqlite"):
            path = f"sqlite:///{folder}/optuna.db"
            found.append(OptunaStorage("optuna sqlite", lambda: optuna.storages.RDBStorage(path)))
        if postgres and wanted("optuna postgresql"):
            url = optuna_database(postgres)
            found.append(OptunaStorage("optuna postgresql", lambda: optuna.storages.RDBStorage(url)))
        if wanted("optuna journal"):
            journal = str(folder / "journal.log")
            found.append(
                OptunaStorage(
                    "optuna journal",
                    lambda: optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(journal)),
                )
            )
        yield found


def optuna_database(postgres: str) -> str:
    """A database beside the service's, since both have tables of their own."""
    import psycopg

    name = f"optuna_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgres.rsplit("/", 1)[0].replace("postgresql://", "postgresql+psycopg://") + f"/{name}"


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def measure(contestant: Contestant, load: Load, history: int, trials: int, workers: int) -> Figures:
    study = contestant.prepare(load, history)
    forked = multiprocessing.get_context("fork")
    ready, answers = forked.Barrier(workers + 1), forked.SimpleQueue()

    def work() -> None:
        contestant.worker(study, load, 2)  # connections and imports are not what is measured
        ready.wait()
        answers.put(contestant.worker(study, load, trials // workers))

    processes = [forked.Process(target=work) for _ in range(workers)]
    for process in processes:
        process.start()
    ready.wait()
    pid = contestant.server_pid
    began, cpu = time.perf_counter(), cpu_seconds(pid) if pid else float("nan")
    took = sorted(seconds for _ in processes for seconds in answers.get())
    elapsed = time.perf_counter() - began
    used = cpu_seconds(pid) - cpu if pid else float("nan")
    for process in processes:
        process.join()
    return Figures(
        trials_per_second=len(took) / elapsed,
        ask_p50=took[len(took) // 2] * 1e3,
        ask_p99=took[int(len(took) * 0.99)] * 1e3,
        server_cpu=used / len(took) * 1e6,
        server_memory=memory(pid) if pid else float("nan"),
    )


def show(name: str, load: Load, history: int, rounds: list[Figures], first: float | None) -> float:
    def median(field: str) -> float:
        return statistics.median(getattr(figures, field) for figures in rounds)

    speed = median("trials_per_second")
    ratio = "" if first is None else f"{first / speed:5.1f}"
    print(
        f"| {load.name} | {history:,} | {name} | {speed:.0f} | {ratio} | {median('ask_p50'):.2f} | "
        f"{median('ask_p99'):.1f} | {median('server_cpu'):.0f} | {median('server_memory'):.0f} |",
        flush=True,
    )
    return speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--history", nargs="+", type=int, default=[0, 1000])
    parser.add_argument("--trials", type=int, default=400, help="a contestant and round")
    parser.add_argument("--slow-trials", type=int, default=80, help="the same for Optuna's storages")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--postgres")
    parser.add_argument("--only", nargs="*", default=[], help="contestants whose names begin so")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(
        "| load | trials before | | trials/s | first ÷ this | ask p50 ms | p99 ms | server CPU µs/trial | server MiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with (
        tempfile.TemporaryDirectory() as folder,
        contestants(Path(folder), options.postgres, options.only) as all_of_them,
    ):
        for name in options.load:
            for history in options.history:
                compare(all_of_them, LOADS[name], history, options)


def compare(all_of_them: list[Contestant], load: Load, history: int, options: argparse.Namespace) -> None:
    rounds: dict[str, list[Figures]] = {contestant.name: [] for contestant in all_of_them}
    for _ in range(options.rounds):
        for contestant in all_of_them:
            trials = options.trials if isinstance(contestant, Service) else options.slow_trials
            rounds[contestant.name].append(measure(contestant, load, history, trials, options.workers))
    first: float | None = None
    for name, figures in rounds.items():
        speed = show(name, load, history, figures, first)
        first = first or speed


if __name__ == "__main__":
    main()
