"""Times hpo db backup and hpo db copy on a study of many trials, and compares what arrives trial by trial.

`python benchmarks/moving_house.py --postgres postgresql://postgres@127.0.0.1:5432/empty --trials 100000`: fills a
SQLite file by imports, backs it up, copies it to the (empty) PostgreSQL, and back into another file.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fastapi.testclient import TestClient

from hpo_service import store
from hpo_service.api.app import create_app
from hpo_service.settings import Settings

AT_ONCE = 1000
REPORTS = 5
SPACE = {
    "lr": {"type": "float", "low": 1e-6, "high": 1.0, "log": True},
    "units": {"type": "int", "low": 1, "high": 512},
}

T = TypeVar("T")


def _imported(number: int) -> dict[str, Any]:
    value = (number * 7919 % 100_003) / 100_003
    reports = [{"step": step, "value": value * step / REPORTS} for step in range(REPORTS)]
    params = {"lr": 10 ** (-6 * value), "units": 1 + number % 512}
    return {"params": params, "state": "COMPLETE", "values": [value], "reports": reports}


def fill(url: str, trials: int) -> None:
    with TestClient(create_app(Settings(database_url=url), with_keys=False)) as client:
        spec = {"name": "large", "search_space": SPACE, "sampler": {"name": "random", "seed": 1}}
        client.post("/v1/studies", json=spec).raise_for_status()
        for start in range(0, trials, AT_ONCE):
            some = [_imported(number) for number in range(start, min(start + AT_ONCE, trials))]
            client.post("/v1/studies/large/trials:import", json={"trials": some}).raise_for_status()


def digests(url: str) -> list[bytes]:
    """Of each trial as it reads, reports and all."""
    found = []
    with TestClient(create_app(Settings(database_url=url), with_keys=False)) as client:
        token = ""
        while True:
            page = client.get(f"/v1/studies/large/trials?page_size=1000{token}").json()
            found += [hashlib.sha256(repr(trial).encode()).digest() for trial in page["items"]]
            if page["next_page_token"] is None:
                return found
            token = f"&page_token={page['next_page_token']}"


def timed(what: str, work: Callable[[], T]) -> T:
    began = time.perf_counter()
    result = work()
    print(f"{what:<28} {time.perf_counter() - began:7.1f} s", flush=True)
    return result


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--postgres", help="an empty database; without it SQLite is copied to SQLite")
    options.add_argument("--trials", type=int, default=100_000)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first, kept, back = (f"sqlite:///{folder}/{name}.db" for name in ("first", "kept", "back"))
        there = given.postgres or f"sqlite:///{folder}/there.db"
        timed(f"fill ({given.trials} trials)", lambda: fill(first, given.trials))
        timed("hpo db backup", lambda: store.back_up(first, Path(folder) / "kept.db"))
        timed("hpo db copy, there", lambda: store.copy(first, there))
        timed("hpo db copy, back", lambda: store.copy(there, back))
        expected = digests(first)
        for name, url in (("the backup", kept), ("there", there), ("back", back)):
            same = sum(a == b for a, b in zip(expected, digests(url), strict=True))
            print(f"{name:<28} {same} of {len(expected)} trials equal")
            assert same == given.trials


if __name__ == "__main__":
    main()
