"""What a change costs: two checkouts of this service by turns, in one run.

    python benchmarks/by_turns.py --before FOLDER [--postgres URL]

FOLDER is another checkout, such as one that `git worktree add FOLDER COMMIT` makes; both run in this environment. Each
has a server and a study of its own; rounds alternate, and in each the same workers ask and tell over plain HTTP. One
start of a server differs from the next by more than its rounds do, so both are started several times. Shown are the
medians of trials a second, of the server's processor time a trial and of an ask's p99, and the ratio now to before of
each pair of starts: its median, and its smallest and largest, which is the noise.

The workers share the machine's cores with the server, so they read an answer by its length and parse no header: where
they did so by http.client, headers that callers need would be counted against the server.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

HERE = Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
SPACE = {
    "learning_rate": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
    "weight_decay": {"type": "float", "low": 1e-8, "high": 1e-4, "log": True},
}


class Round(NamedTuple):
    trials_per_second: float
    cpu_us_per_trial: float
    ask_p99_ms: float


class Server:
    """`hpo serve` from one checkout, and a study on it."""

    def __init__(self, folder: Path, database: str, sampler: str, under: Sequence[str] = ()) -> None:
        """under: a command that runs it."""
        command = [*under, sys.executable, "-m", "hpo_service", "serve", "--no-auth", "--port", "0", "--json"]
        paths = os.pathsep.join([str(folder), str(folder / "worker")])
        self.process = subprocess.Popen(
            [*command, "--database", database],
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths},
        )
        assert self.process.stdout is not None
        self.port = int(json.loads(self.process.stdout.readline())["url"].rsplit(":", 1)[1])
        study = {"name": "s", "search_space": SPACE, "sampler": {"name": sampler, "seed": 1}}
        Connection(self.port).post("/v1/studies", study)

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)


class Connection:
    """Costs little: one write a call, and of the answer's head its status and its length alone."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        sent = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(sent)}"
        )
        self._socket.sendall(head.encode() + b"\r\n\r\n" + sent)
        received = self._receive()
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self._receive()
        length = int(received[received.lower().index(b"content-length:") + 15 : end].split(b"\r\n", 1)[0])
        while len(received) < end + 4 + length:
            received += self._receive()
        status, content = received[9:12], received[end + 4 :]
        if status >= b"300":
            raise RuntimeError(f"{path}: {status.decode()} {content[:300]!r}")
        return json.loads(content)

    def _receive(self) -> bytes:
        received = self._socket.recv(65536)
        if not received:
            raise ConnectionError("the server has closed the connection")
        return received


def work(port: int, name: str, round_: int, until: float, results: Any) -> None:
    """One worker: ask and tell until that time. Puts how many trials it told, and how long each ask took.

    name: the same in each round: that a server hears of a new worker is rare, and takes a transaction of its own.
    """
    connection = Connection(port)
    trials, asks = 0, []
    while time.monotonic() < until:
        began = time.perf_counter()
        given = connection.post(
            "/v1/studies/s/trials:ask", {"worker_id": name, "request_id": f"{name}-{round_}-{trials}"}
        )
        asks.append(time.perf_counter() - began)
        trial = given["trials"][0]
        told = {"attempt": trial["attempt"], "state": "COMPLETE", "values": [trial["params"]["learning_rate"]]}
        connection.post(f"/v1/studies/s/trials/{trial['number']}:tell", told)
        trials += 1
    results.put((trials, asks))


def one_round(server: Server, number: int, workers: int, seconds: float) -> Round:
    results: Any = multiprocessing.Queue()
    cpu, began = server.cpu_seconds(), time.monotonic()
    crew = [
        multiprocessing.Process(target=work, args=(server.port, f"w{each}", number, began + seconds, results))
        for each in range(workers)
    ]
    for process in crew:
        process.start()
    done = [results.get(timeout=seconds + 60) for _ in crew]
    took = time.monotonic() - began
    for process in crew:
        process.join()
    trials = sum(count for count, _ in done)
    asks = sorted(each for _, some in done for each in some)
    return Round(
        trials / took,
        (server.cpu_seconds() - cpu) / trials * 1e6,
        asks[min(len(asks) - 1, len(asks) * 99 // 100)] * 1e3,
    )


@contextmanager
def databases(postgres: str | None) -> Iterator[list[str]]:
    """One for each of the two."""
    with tempfile.TemporaryDirectory(prefix="hpo-by-turns-") as folder:
        if postgres is None:
            yield [f"sqlite:///{folder}/{which}.db" for which in ("before", "now")]
            return
        url = sa.make_url(postgres).set(drivername="postgresql+psycopg")
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        names = [f"by_turns_{which}_{os.getpid()}" for which in ("before", "now")]
        with engine.connect() as connection:
            for name in names:
                connection.execute(sa.text(f"CREATE DATABASE {name}"))
            try:
                yield [
                    url.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
                    for name in names
                ]
            finally:
                for name in names:
                    connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))


def one_start(
    before: Path, postgres: str | None, sampler: str, workers: int, rounds: int, seconds: float
) -> list[Round]:
    """Start both, and return the medians of their rounds."""
    with ExitStack() as open_:
        urls = open_.enter_context(databases(postgres))
        servers = []
        for folder, url in zip((before, HERE), urls, strict=True):
            servers.append(Server(folder, url, sampler))
            open_.callback(servers[-1].end)
        measured: list[list[Round]] = [[], []]
        for number in range(rounds + 1):
            order: Sequence[int] = (0, 1) if number % 2 else (1, 0)
            for which in order:
                found = one_round(servers[which], number, workers, seconds)
                if number:  # the first warms up
                    measured[which].append(found)
    return [Round(*map(statistics.median, zip(*found, strict=True))) for found in measured]


def compare(
    before: Path, postgres: str | None, sampler: str, workers: int, starts: int, rounds: int, seconds: float
) -> None:
    measured = [one_start(before, postgres, sampler, workers, rounds, seconds) for _ in range(starts)]
    where = "SQLite" if postgres is None else "PostgreSQL"
    print(
        f"{where}, {sampler}, {workers} workers, {starts} starts of {rounds} rounds of {seconds:g} s by turns",
        flush=True,
    )
    for place, name in enumerate(Round._fields):
        was, now = ([found[which][place] for found in measured] for which in (0, 1))
        ratios = sorted(b / a for a, b in zip(was, now, strict=True))
        print(
            f"  {name:20} before {statistics.median(was):9.2f}  now {statistics.median(now):9.2f}  "
            f"now/before {statistics.median(ratios):.3f} [{ratios[0]:.3f}, {ratios[-1]:.3f}]",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--postgres", metavar="URL")
    parser.add_argument("--load", nargs="+", choices=("random", "tpe"), default=["random", "tpe"])
    parser.add_argument("--workers", nargs="+", type=int, default=[4])
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4, help="of each start")
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    for postgres in (None, options.postgres) if options.postgres else (None,):
        for sampler in options.load:
            for workers in options.workers:
                compare(
                    options.before.resolve(),
                    postgres,
                    sampler,
                    workers,
                    options.starts,
                    options.rounds,
                    options.seconds,
                )


if __name__ == "__main__":
    main()
