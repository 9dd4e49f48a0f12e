"""Trials a second through this service and through its peers, in one run: processes that ask, report and tell.

    python benchmarks/service.py --postgres URL                side by side (some 8 minutes on two slow cores)
    python benchmarks/service.py --postgres URL --flat         the service alone, at 100 to 100,000 trials; its memory
                                                               and its restart (takes longer: it imports them)
    python benchmarks/service.py --postgres URL --many 64      with 64 workers
    python benchmarks/service.py --postgres URL --reads-beside 8 workers, and what reading the study costs them
    python benchmarks/service.py --postgres URL --two-servers  two servers on one PostgreSQL beside one; with
                                                               --share 0.2 each held to that much of a core
    python benchmarks/service.py --show --json FILE --picture FILE

Loads: `random` is ask and tell with two log-uniform parameters; `tpe` adds ten reports, each with the decision of a
median pruner (which workers here do not obey, so that every trial costs the same). Every answer comes after its commit:
SQLite with synchronous=FULL, PostgreSQL as it is configured. The service is `hpo serve`, reached over HTTP by its own
client, once by an ask and a tell for each trial, once by one call that tells and asks for the next. Optuna's workers
open their storage themselves or call its gRPC proxy; in memory it is a loop in one process, without HTTP and without a
disk. OSS Vizier has no TPE: its server does random search in both loads.

A round ends after so many trials or seconds. Rounds alternate between the contestants, and their medians are printed;
ratios are within one run. A study serves several rounds while they have added less than a tenth to it. After each the
contestant's COMPLETE trials are counted, and after the last one by row: the run fails unless all are there.

--postgres: any database of a server, such as postgresql://postgres@127.0.0.1:5432/postgres; databases of the run's own
are made beside it, and dropped. Peers that are not installed are left out:

    pip install --target FOLDER grpcio protobuf                        the gRPC proxy
    pip install --target FOLDER 'google-vizier[jax]' 'jax<0.6'         OSS Vizier 0.1

and then --packages FOLDER, which is looked into last, so that everything else stays as it was locked.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import growing_study
import optuna
import reads_beside
import servers_together
import service_report
import side_by_side
from contestants import ANY, Databases, contestants, databases, services
from core_share import CannotBeHeld
from loads import LOADS
from measured_rounds import Pace, Row
from processes import end_on_sigterm

READERS_WORKERS = 8
SECONDS = 3.0
READING_SECONDS = 8.0  # beside readings: an export should fit
CALLS_IN_A_CROWD = 80  # of each worker


def side(run: str, made: Databases, options: argparse.Namespace) -> Iterator[list[Row]]:
    pace = Pace(options.workers, options.trials, options.seconds or SECONDS)
    loads = [LOADS[name] for name in options.load]
    with (
        tempfile.TemporaryDirectory() as folder,
        contestants(made, Path(folder), options.only, options.packages) as all_of_them,
    ):
        yield from side_by_side.compared(
            run, side_by_side.PART, all_of_them, loads, options.history, pace, options.rounds
        )


def flat(run: str, made: Databases, options: argparse.Namespace) -> Iterator[list[Row]]:
    pace, sizes = Pace(options.workers, options.trials, options.seconds or SECONDS), sorted(options.sizes)
    with services(made, options.only) as ours:
        yield from growing_study.at_each_size(run, ours, sizes, pace, options.rounds)
    kinds = [one.name.removeprefix("service ") for one in ours]
    yield from growing_study.restarted(run, made, kinds, sizes[-1], options.rounds)


def many(run: str, made: Databases, options: argparse.Namespace) -> Iterator[list[Row]]:
    with services(made, options.only) as ours:
        for load in (LOADS[name] for name in options.load):
            trials = options.many * CALLS_IN_A_CROWD // (load.reports + 2)
            pace = Pace(options.many, trials, options.seconds or SECONDS * 4)
            yield from side_by_side.compared(
                run, side_by_side.CROWD, ours, [load], options.history[:1], pace, options.rounds
            )


def reads(run: str, made: Databases, options: argparse.Namespace) -> Iterator[list[Row]]:
    pace = Pace(READERS_WORKERS, ANY, options.seconds or READING_SECONDS)
    with services(made, options.only) as ours:
        yield from reads_beside.beside(
            run, ours, max(options.sizes), pace, options.rounds, options.pause, made.postmaster()
        )


def two(run: str, made: Databases, options: argparse.Namespace) -> Iterator[list[Row]]:
    if made.postgres is None:
        sys.exit("--two-servers needs --postgres: servers that share a database share a PostgreSQL")
    pace = Pace(options.workers, ANY, options.seconds or SECONDS)
    for name in options.load:
        try:
            yield from servers_together.two_beside_one(
                run, made, LOADS[name], pace, options.rounds, made.postmaster(), options.share
            )
        except CannotBeHeld as error:
            print(f"--share is left out: {error}", file=sys.stderr)
            return


PARTS = {
    side_by_side.PART: side,
    growing_study.PART: flat,
    side_by_side.CROWD: many,
    reads_beside.PART: reads,
    servers_together.PART: two,
}


def share_of_a_core(text: str) -> float:
    share = float(text)
    if not 0.1 <= share <= 1.0:  # the kernel gives out no less than a millisecond at a time
        raise argparse.ArgumentTypeError(f"{text} is no share of a core; give one between 0.1 and 1, such as 0.2")
    return share


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flat", action="store_true")
    parser.add_argument("--many", type=int, metavar="WORKERS")
    parser.add_argument("--reads-beside", action="store_true")
    parser.add_argument("--two-servers", action="store_true")
    parser.add_argument("--share", type=share_of_a_core, help="of a core for each of --two-servers, such as 0.2")
    parser.add_argument("--show", action="store_true", help="measure nothing, show what is in --json")
    parser.add_argument("--load", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--history", nargs="+", type=int, default=[0, 1000, 10_000], help="trials before")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        default=[100, 1000, 10_000, 100_000],
        help="the same for --flat; --reads-beside and the restart take the largest",
    )
    parser.add_argument("--trials", type=int, default=400, help="of a round, side by side and --flat")
    parser.add_argument("--seconds", type=float, help="of a round, at most (3; beside readings 8; in a crowd 12)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two readings (none)")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--postgres", metavar="URL")
    parser.add_argument("--only", nargs="*", default=[], help="contestants whose names begin so")
    parser.add_argument("--packages", metavar="FOLDER", default="", help="where peers are that are not installed here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures of every round, beside those in it")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw what is side by side, in --json too")
    return parser.parse_args()


def asked_for(options: argparse.Namespace) -> list[str]:
    parts = {
        growing_study.PART: options.flat,
        side_by_side.CROWD: options.many,
        reads_beside.PART: options.reads_beside,
        servers_together.PART: options.two_servers,
    }
    return [] if options.show else [part for part, asked in parts.items() if asked] or [side_by_side.PART]


def measured(options: argparse.Namespace) -> Iterator[Row]:
    run = time.strftime("%Y-%m-%dT%H:%M:%S")
    with tempfile.TemporaryDirectory() as folder, databases(Path(folder), options.postgres) as made:
        for part in asked_for(options):
            heads: set[str] = set()
            for rows in PARTS[part](run, made, options):
                for of in dict.fromkeys(row.part for row in rows):
                    lines = service_report.TABLES[of].lines([row for row in rows if row.part == of])
                    print("\n".join(lines if of not in heads else lines[2:]), flush=True)
                    heads.add(of)
                yield from rows
            print()


def main() -> None:
    options = parsed()
    end_on_sigterm()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of its proxy
    if options.packages:
        sys.path.append(options.packages)
    rows = service_report.kept(options.json) if options.json else []
    for row in measured(options):
        rows = service_report.merged(rows, [row])
        if options.json:
            service_report.keep(rows, options.json)
    if options.show:
        print(service_report.all_tables(rows))
    if options.picture:
        service_report.draw(rows, options.picture)


if __name__ == "__main__":
    main()
