"""What a study drawn by a Gaussian process costs the workers of another: asks of a random study, alone and beside it.

    python benchmarks/asks_beside_auto.py --rounds 12 --seconds 4

Two processes train trials of no length of the random study; beside them two train trials of 50 ms of a study with 200
trials, whose sampler is auto. Rounds alone and rounds beside take turns; the ratio is of one pair's figures.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from processes import ended, received, serving, tried

from hpo_service.client import Client

SPACE: dict[str, Any] = {
    name: {"type": "float", "low": 1e-6, "high": 1e-2, "log": True} for name in ("learning_rate", "weight_decay")
}
HISTORY = 200


def train(url: str, study: str, seconds: float, length: float, pipe: Connection) -> None:
    """Ask and tell for so long; send how long each ask took."""

    def work() -> list[float]:
        took: list[float] = []
        with Client(url) as client:
            name, until = client.open_study(study), time.monotonic() + seconds
            while time.monotonic() < until:
                began = time.perf_counter()
                (trial,) = name.ask(count=1)
                took.append(time.perf_counter() - began)
                time.sleep(length)
                trial.tell(random.random())
        return took

    pipe.send(tried(work))


def one_round(url: str, seconds: float, beside: bool) -> dict[str, float]:
    with ExitStack() as running:
        askers = [("random", 0.0), ("random", 0.0), *([("auto", 0.05)] * 2 if beside else [])]
        pipes = [running.enter_context(ended(partial(train, url, study, seconds, length))) for study, length in askers]
        took = [received(pipe, seconds + 30, study) for pipe, (study, _) in zip(pipes, askers, strict=True)]
    asks = sorted(took[0] + took[1])
    return {
        "p50": asks[len(asks) // 2],
        "p99": asks[int(0.99 * len(asks))],
        "random a second": len(asks) / seconds,
        "auto a second": sum(map(len, took[2:])) / seconds,
    }


def fill(url: str) -> None:
    with Client(url) as client:
        for name in ("random", "auto"):
            client.create_study(name, search_space=SPACE, sampler={"name": name, "seed": 1})
        numbers = random.Random(1)
        past = [
            {
                "params": {name: 10 ** numbers.uniform(-6, -2) for name in SPACE},
                "state": "COMPLETE",
                "values": [numbers.random()],
            }
            for _ in range(HISTORY)
        ]
        client.import_trials("auto", past)


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=4.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(f"sqlite:///{Path(folder) / 'hpo.db'}") as (url, _):
        fill(url)
        one_round(url, 1.0, beside=True)  # the drawing process starts
        pairs = [tuple(one_round(url, asked.seconds, beside) for beside in (False, True)) for _ in range(asked.rounds)]
    for figure in ("p50", "p99"):
        alone = 1e3 * statistics.median(pair[0][figure] for pair in pairs)
        print(f"ask {figure}: alone {alone:.2f} ms, beside ÷ alone {spread([b[figure] / a[figure] for a, b in pairs])}")
    print(f"trials of random a second, alone {spread([a['random a second'] for a, _ in pairs])}")
    print(f"  beside {spread([b['random a second'] for _, b in pairs])}")
    print(f"trials of auto a second {spread([b['auto a second'] for _, b in pairs])}")


if __name__ == "__main__":
    main()
