"""Where one server saturates: more and more callers on one server, and what each kind of call costs it.

    python benchmarks/saturation.py [--postgres URL] [--callers 1 2 4 8 16 64 256] [--seconds 4]

Each caller asks and tells over plain HTTP as fast as it is answered, in one of at most eight processes. Shown for each
number of callers: trials a second, the server's processor time a trial, how much of one core the server took, how much
of the machine all took, and how long an ask took. Then the processor time of a heartbeat and of a report, by 16 callers
that send nothing else.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from by_turns import HERE, Connection, Server, databases

STUDY = "/v1/studies/s/trials"
MOST_PROCESSES = 8
OTHERS = 16  # callers of what is no trial


def trials(connection: Connection, name: str, until: float) -> list[float]:
    """Ask and tell until that time; return how long each ask took, in seconds."""
    asks = []
    while (began := time.monotonic()) < until:
        given = connection.post(f"{STUDY}:ask", {"worker_id": name, "request_id": f"{name}-{len(asks)}"})
        asks.append(time.monotonic() - began)
        trial = given["trials"][0]
        told = {"attempt": trial["attempt"], "state": "COMPLETE", "values": [trial["params"]["learning_rate"]]}
        connection.post(f"{STUDY}/{trial['number']}:tell", told)
    return asks


def heartbeats(connection: Connection, name: str, until: float) -> list[float]:
    trial = connection.post(f"{STUDY}:ask", {"worker_id": name, "request_id": name})["trials"][0]
    took = []
    while (began := time.monotonic()) < until:
        connection.post(f"{STUDY}/{trial['number']}:heartbeat", {"attempt": trial["attempt"]})
        took.append(time.monotonic() - began)
    return took


def reports(connection: Connection, name: str, until: float) -> list[float]:
    trial = connection.post(f"{STUDY}:ask", {"worker_id": name, "request_id": name})["trials"][0]
    took: list[float] = []
    while (began := time.monotonic()) < until:
        each = {"step": len(took), "value": 0.5}
        connection.post(f"{STUDY}/{trial['number']}:report", {"attempt": trial["attempt"], "reports": [each]})
        took.append(time.monotonic() - began)
    return took


Does = Callable[[Connection, str, float], list[float]]


def one_process(does: Does, port: int, names: list[str], until: float, results: Any) -> None:
    found: list[float] = []
    threads = [
        threading.Thread(target=lambda name=name: found.extend(does(Connection(port), name, until))) for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(found)


def run(does: Does, port: int, callers: int, seconds: float) -> list[float]:
    results: Any = multiprocessing.Queue()
    names = [f"{does.__name__}-{callers}-{number}" for number in range(callers)]
    until = time.monotonic() + seconds
    crew = [
        multiprocessing.Process(target=one_process, args=(does, port, names[place::MOST_PROCESSES], until, results))
        for place in range(min(callers, MOST_PROCESSES))
    ]
    for process in crew:
        process.start()
    found = [each for _ in crew for each in results.get(timeout=seconds + 120)]
    for process in crew:
        process.join()
    return sorted(found)


def machine_seconds() -> float:
    """Of the processors, spent by anybody, since the machine was started."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _, _, *rest = (int(field) for field in file.readline().split()[1:])
    return (user + nice + system + sum(rest[:3])) / os.sysconf("SC_CLK_TCK")


def measured(
    server: Server, does: Does, callers: int, seconds: float
) -> tuple[float, float, float, float, list[float]]:
    """Calls (or trials) a second, the server's µs each, its cores, the machine's cores, and how long each took."""
    cpu, machine, began = server.cpu_seconds(), machine_seconds(), time.monotonic()
    took = run(does, server.port, callers, seconds)
    passed = time.monotonic() - began
    cpu, machine = server.cpu_seconds() - cpu, machine_seconds() - machine
    return len(took) / passed, cpu / len(took) * 1e6, cpu / passed, machine / passed, took


def saturate(postgres: str | None, callers: list[int], seconds: float) -> None:
    where = "SQLite" if postgres is None else "PostgreSQL"
    with ExitStack() as opened:
        _, url = opened.enter_context(databases(postgres))
        server = Server(HERE, url, "random")
        opened.callback(server.end)
        run(trials, server.port, 4, 1.0)  # which warms up
        print(f"{where}, random, of {os.cpu_count()} cores", flush=True)
        print("callers  trials/s  µs a trial  cores: server  all  ask p50, ms  p99", flush=True)
        for number in callers:
            rate, each, cores, of_all, took = measured(server, trials, number, seconds)
            p50, p99 = statistics.median(took) * 1e3, took[len(took) * 99 // 100] * 1e3
            print(f"{number:7} {rate:9.0f} {each:11.0f} {cores:14.2f} {of_all:4.2f} {p50:12.1f} {p99:5.0f}", flush=True)
        for does in (heartbeats, reports):
            rate, each, cores, _, _ = measured(server, does, OTHERS, seconds)
            print(f"{does.__name__}: {rate:.0f} a second, {each:.0f} µs each, {cores:.2f} cores", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgres", metavar="URL")
    parser.add_argument("--callers", nargs="+", type=int, default=[1, 2, 4, 8, 16, 64, 256])
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    for postgres in (None, options.postgres) if options.postgres else (None,):
        saturate(postgres, options.callers, options.seconds)


if __name__ == "__main__":
    main()
