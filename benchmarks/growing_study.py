"""Whether the service's calls cost at 100,000 trials what they do at 100; what a trial takes of memory; a restart."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import urllib3
from contestants import Databases, Service
from loads import MEDIAN, RANDOM, TPE, TPE_ALONE, Load
from measured_rounds import MIB, PREPARING_SECONDS, Pace, Row, in_turns, stand
from processes import STARTING_SECONDS, TookTooLong, calm, in_child, resident_bytes, serving
from side_by_side import row

PART, RESTART = "flat", "restart"
LOADS = (RANDOM, TPE_ALONE, MEDIAN)
RESTARTED = (RANDOM, TPE)  # without and with ten reports a trial
POLL_SECONDS = 0.005
ASKS = 20  # until a server's tuner and its code are warm


def at_each_size(
    run: str, contestants: Sequence[Service], sizes: Sequence[int], pace: Pace, rounds: int
) -> Iterator[list[Row]]:
    """The rows of one contestant and load after the other; the sizes take turns."""
    for contestant in contestants:
        for load in LOADS:
            with contextlib.ExitStack() as running:
                stands = [running.enter_context(stand(contestant, load, size, pace)) for size in sizes]
                in_turns(stands, rounds)
                yield [row(run, PART, one) for one in stands]


@dataclass(frozen=True)
class Started:
    """Seconds from the start of the process until /readyz said 200, and until the first ask was answered."""

    ready: float
    first_ask: float


def restarted(run: str, made: Databases, kinds: Sequence[str], size: int, rounds: int) -> Iterator[list[Row]]:
    """A server that has taken so many trials, one that finds them, and one with an empty study."""
    for kind in kinds:
        for load in RESTARTED:
            yield [_memory_and_restart(run, made, kind, load, size, rounds)]


def _memory_and_restart(run: str, made: Databases, kind: str, load: Load, size: int, rounds: int) -> Row:
    empty = _resident_when_warm(made.new(kind), load, 0)[1]
    database = made.new(kind)
    study, after_import = _resident_when_warm(database, load, size)
    figures = []
    for _ in range(rounds):
        started, resident = _restart(database, study, load)
        figures.append(
            {
                "empty_mib": empty / MIB,
                "mib": after_import / MIB,
                "restarted_mib": resident / MIB,
                "bytes_a_trial": (after_import - empty) / size,
                "restarted_bytes_a_trial": (resident - empty) / size,
                "ready": started.ready,
                "first_ask": started.first_ask,
            }
        )
    return Row(run, RESTART, f"service {kind}", load.name, size, "", tuple(figures))


def _resident_when_warm(database: str, load: Load, size: int) -> tuple[str, float]:
    """The study, and the memory of the server that took its trials, after some asks."""
    with serving(database) as (url, pid):
        service = Service("", url, pid)
        study = in_child(lambda: service.prepare(load, size), PREPARING_SECONDS)
        in_child(lambda: _ask(service, study, load, ASKS), STARTING_SECONDS)
        calm(pid)
        return study, resident_bytes(pid)


def _restart(database: str, study: str, load: Load) -> tuple[Started, float]:
    began = time.perf_counter()
    with serving(database) as (url, pid):
        _until_ready(url, began)
        ready = time.perf_counter() - began
        service = Service("", url, pid)
        in_child(lambda: _ask(service, study, load, 1), STARTING_SECONDS)
        first = time.perf_counter() - began
        in_child(lambda: _ask(service, study, load, ASKS), STARTING_SECONDS)
        calm(pid)
        return Started(ready, first), resident_bytes(pid)


def _until_ready(url: str, began: float) -> None:
    with urllib3.PoolManager(retries=False) as http:
        while time.perf_counter() - began < STARTING_SECONDS:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if http.request("GET", f"{url}/readyz", timeout=5.0).status == 200:
                    return
            time.sleep(POLL_SECONDS)
    raise TookTooLong(f"{url}/readyz was not 200 within {STARTING_SECONDS:.0f} s")


def _ask(service: Service, study: str, load: Load, asks: int) -> None:
    """Ask so often, and tell what was asked for."""
    worker = service.open(study, load, 0)
    for _ in range(asks):
        worker.tell(float(worker.ask()))
