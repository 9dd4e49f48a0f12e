"""What a change costs in instructions of the server a trial, which other work on the machine does not change.

    python benchmarks/instructions.py --before FOLDER [--postgres URL]

As benchmarks/by_turns.py, whose servers it starts, each under valgrind's callgrind (which has to be installed; a server
is some fifty times as slow under it). What a server does at rest is counted first, and taken off for the time that the
trials take, so that a busy machine adds noise after all. Shown are thousands of instructions a trial, and the ratio now
to before of each pair of rounds: its median, its smallest and its largest. The rest of the noise is in how many calls
come together in one commit.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from by_turns import HERE, Connection, Server, databases

TRIALS = 200
WARM_UP = 60
REST_SECONDS = 5.0


def work(port: int, name: str, trials: int) -> None:
    connection = Connection(port)
    for number in range(trials):
        given = connection.post("/v1/studies/s/trials:ask", {"worker_id": name, "request_id": f"{name}-{number}"})
        trial = given["trials"][0]
        told = {"attempt": trial["attempt"], "state": "COMPLETE", "values": [trial["params"]["learning_rate"]]}
        connection.post(f"/v1/studies/s/trials/{trial['number']}:tell", told)


class Counted:
    """A server under callgrind, which counts when it is told to."""

    def __init__(self, checkout: Path, database: str, sampler: str, folder: Path) -> None:
        self._output = folder / "callgrind"
        options = ["--instr-atstart=no", f"--callgrind-out-file={self._output}", "--quiet"]
        self._server = Server(checkout, database, sampler, under=["valgrind", "--tool=callgrind", *options])
        self._dumps = 0

    def instructions_a_trial(self, workers: int) -> float:
        work(self._server.port, "first", WARM_UP)
        self._control("--instr=on")
        time.sleep(REST_SECONDS)
        at_rest = self._counted() / REST_SECONDS
        began = time.monotonic()
        crew = [
            threading.Thread(target=work, args=(self._server.port, f"w{each}", TRIALS // workers))
            for each in range(workers)
        ]
        for worker in crew:
            worker.start()
        for worker in crew:
            worker.join()
        took = time.monotonic() - began
        return (self._counted() - at_rest * took) / (TRIALS // workers * workers)

    def _counted(self) -> int:
        """Since the last time."""
        self._control("--dump")
        self._dumps += 1
        dump = self._output.with_name(f"{self._output.name}.{self._dumps}")
        return next(int(line.split()[1]) for line in dump.read_text().splitlines() if line.startswith("totals:"))

    def _control(self, option: str) -> None:
        command = ["callgrind_control", option, str(self._server.process.pid)]
        subprocess.run(command, check=True, capture_output=True)

    def end(self) -> None:
        self._server.end()


def one_round(checkout: Path, database: str, sampler: str, workers: int) -> float:
    with tempfile.TemporaryDirectory(prefix="hpo-callgrind-") as folder:
        server = Counted(checkout, database, sampler, Path(folder))
        try:
            return server.instructions_a_trial(workers)
        finally:
            server.end()


def compare(before: Path, postgres: str | None, sampler: str, workers: int, rounds: int) -> None:
    measured: list[tuple[float, float]] = []
    for number in range(rounds):
        with databases(postgres) as urls:
            found = [0.0, 0.0]
            for which in (0, 1) if number % 2 else (1, 0):
                found[which] = one_round((before, HERE)[which], urls[which], sampler, workers)
        measured.append((found[0], found[1]))
    was, now = (statistics.median(each[which] for each in measured) / 1e3 for which in (0, 1))
    ratios = sorted(b / a for a, b in measured)
    where = "SQLite" if postgres is None else "PostgreSQL"
    print(
        f"{where}, {sampler}, {workers} callers, {rounds} rounds of {TRIALS} trials: thousands a trial "
        f"before {was:.0f}, now {now:.0f}; "
        f"now/before {statistics.median(ratios):.3f} [{ratios[0]:.3f}, {ratios[-1]:.3f}]",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--postgres", metavar="URL")
    parser.add_argument("--load", nargs="+", choices=("random", "tpe"), default=["random", "tpe"])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        parser.error("valgrind is not installed; on Debian: apt-get install valgrind")
    for sampler in options.load:
        for workers in options.workers:
            compare(options.before.resolve(), options.postgres, sampler, workers, options.rounds)


if __name__ == "__main__":
    main()
