"""Measures the network: a training step, the article's whole search, and the article's figures.

    python benchmarks/network.py              the step and the search, as ratios measured in one run
    python benchmarks/network.py --step       the step alone, for four shapes
    python benchmarks/network.py --search     100 trials of 50 epochs on two processes
    python benchmarks/network.py --figures    the article's figures: reference, book's style and ours, over 20 seeds

Seconds depend on the machine, ratios hardly. Every contestant runs on one BLAS thread.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import article_figures
import book_style
import numpy as np

from hpo_service.domain.neural_network import configuration
from hpo_worker.datasets import load
from hpo_worker.nn.network import Architecture, Network
from hpo_worker.nn.optimizers import Sgd
from hpo_worker.side_by_side import extra_trials
from hpo_worker.trainer import MAX_GROUP_SIZE, Member, TrialGroup

try:
    import torch
except ImportError:
    torch = None

BATCH = 100
SHAPES = {
    "784-100x6-10": (784, 100, 100, 100, 100, 100, 100, 10),
    "784-100x5-10": (784, 100, 100, 100, 100, 100, 10),
    "784-50-10": (784, 50, 10),
    "784-256x2-10": (784, 256, 256, 10),
}
SEARCH = {"samples": 500, "epochs": 50, "batch_size": 100}


# --- the book's style (book_style.py): the loss is computed by the gradient, and once more to be recorded -----------


def book_step(network, x, t, learning_rate):
    mask = np.random.choice(len(x), BATCH)
    grads = network.gradient(x[mask], t[mask])
    for key in network.params:
        network.params[key] -= learning_rate * grads[key]
    return network.loss(x[mask], t[mask])


def book_search(trials: int) -> list[float]:
    """The article's search as its script does it; return each trial's last validation accuracy."""
    dataset = load("mnist")
    np.random.seed(0)
    order = np.random.permutation(500)
    x, t = dataset.x_train[:500][order], dataset.t_train[:500][order]
    x_val, t_val, x, t = x[:100], t[:100], x[100:], t[100:]
    found = []
    for _ in range(trials):
        network = book_style.Network(SHAPES["784-100x6-10"], weight_decay=10 ** np.random.uniform(-8, -4))
        learning_rate = 10 ** np.random.uniform(-6, -2)
        for _ in range(SEARCH["epochs"]):
            for _ in range(len(x) // BATCH):
                book_step(network, x, t, learning_rate)
            network.accuracy(x, t)
            last = network.accuracy(x_val, t_val)
        found.append(last)
    return found


# --- the step ------------------------------------------------------------------------------------------------------


def our_step(sizes: Sequence[int], x, t, gram=None, networks=1) -> Callable[[], object]:
    """A step of so many networks side by side."""
    rng = np.random.default_rng(0)
    architectures = [Architecture(sizes[1:-1], sizes[-1], weight_decay=1e-6)] * networks
    network = Network(architectures, x, BATCH, [rng] * networks, gram=gram)
    optimizer = Sgd(np.full((networks, 1), 0.01, np.float32))

    def step() -> None:
        rows = rng.integers(400, size=BATCH)
        network.step(optimizer, rows, t[rows], [rng] * networks)

    return step


def products_alone(sizes: Sequence[int]) -> Callable[[], object]:
    """Only the matrix products of a step, float32, into arrays that are there already."""
    rng = np.random.default_rng(0)
    pairs = list(itertools.pairwise(sizes))
    x = [rng.random((BATCH, size), dtype=np.float32) for size in sizes]
    W = [rng.random(pair, dtype=np.float32) for pair in pairs]
    y, dx, dW = [a.copy() for a in x], [a.copy() for a in x], [a.copy() for a in W]

    def step() -> None:
        for i in range(len(W)):
            np.matmul(x[i], W[i], out=y[i + 1])
        for i in reversed(range(len(W))):
            np.matmul(x[i].T, x[i + 1], out=dW[i])
            if i > 0:
                np.matmul(x[i + 1], W[i].T, out=dx[i])

    return step


def torch_step(sizes: Sequence[int], x, t) -> Callable[[], object]:
    torch.set_num_threads(1)
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, fused=True)
    images, labels = torch.tensor(x), torch.tensor(t)

    def step() -> None:
        rows = torch.randint(400, (BATCH,))
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()

    return step


def fastest(contestants: dict[str, Callable[[], object]], rounds: int = 60, steps: int = 15) -> dict[str, float]:
    """Return each one's seconds for a step, the least of several rounds in turn: others share this machine."""
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(rounds):
        for name, step in contestants.items():
            started = time.perf_counter()
            for _ in range(steps):
                step()
            best[name] = min(best[name], (time.perf_counter() - started) / steps)
    return best


SIDE_BY_SIDE = f"{MAX_GROUP_SIZE} together"
OURS = ("pixels", "function space", SIDE_BY_SIDE)


def measure_step() -> None:
    dataset = load("mnist")
    x, t = dataset.x_train[:500].copy(), dataset.t_train[:500]
    gram = x[:400] @ x.T
    print(f"one step of SGD, batch {BATCH}, 400 training images and 100 for validation; µs a network, and our gain")
    names = ["products", *OURS, "book's style", *(["PyTorch"] if torch else [])]
    print(f"{'':14}" + "".join(f"{name:>16}" for name in names))
    for shape, sizes in SHAPES.items():
        book = book_style.Network(sizes, weight_decay=1e-6)
        contestants = {
            "products": products_alone(sizes),
            "pixels": our_step(sizes, x, t),
            "function space": our_step(sizes, x, t, gram),
            SIDE_BY_SIDE: our_step(sizes, x, t, gram, MAX_GROUP_SIZE),
            "book's style": lambda book=book: book_step(book, x, t, 0.01),
        }
        if torch:
            contestants["PyTorch"] = torch_step(sizes, x, t)
        seconds = fastest(contestants)
        seconds[SIDE_BY_SIDE] /= MAX_GROUP_SIZE
        print(f"{shape:14}" + "".join(f"{seconds[name] * 1e6:16.0f}" for name in names))
        for ours in OURS:
            print(
                f"    {ours}: {seconds[ours] / seconds['products']:.2f} x the products alone, "
                + ", ".join(
                    f"{seconds[name] / seconds[ours]:.2f} x faster than {name}"
                    for name in names
                    if name in ("book's style", "PyTorch")
                )
            )
    if not torch:
        print("PyTorch is not installed here and was not measured")


# --- the search ----------------------------------------------------------------------------------------------------


def train_some(study_seed: int, first_seed: int, params: Sequence[dict[str, float]]) -> tuple[list[float], float]:
    """Train them side by side; return their last validation accuracies and the seconds of processor time."""
    started = time.process_time()
    members = [Member(configuration(SEARCH, each), first_seed + number) for number, each in enumerate(params)]
    group = TrialGroup(members, study_seed=study_seed, dataset=load("mnist"))
    for _ in range(SEARCH["epochs"]):
        reports = group.train_epoch()
    return [report.value for report in reports], time.process_time() - started


def drawn(box: dict[str, tuple[float, float]], trials: int, rng: np.random.Generator) -> list[dict[str, float]]:
    """Return params uniform in the logarithm."""
    return [
        {name: float(np.exp(rng.uniform(np.log(low), np.log(high)))) for name, (low, high) in box.items()}
        for _ in range(trials)
    ]


ARTICLE_BOX = {"learning_rate": (1e-6, 1e-2), "weight_decay": (1e-8, 1e-4)}


def run_search(pool, params: Sequence[dict[str, float]], first_seed: int) -> tuple[list[float], float]:
    """Return each trial's validation accuracy, and the processor time of all. Shared out as workers would ask."""
    running, given = [], 0
    while given < len(params):
        left = len(params) - given - 1
        size = 1 + extra_trials(left, running=1 + MAX_GROUP_SIZE)
        running.append(pool.submit(train_some, 0, first_seed + given, params[given : given + size]))
        given += size
    found = [group.result() for group in running]
    return [value for values, _ in found for value in values], sum(seconds for _, seconds in found)


def two_processes():
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=load, initargs=("mnist",))


def timed(work: Callable[[], list[float]]) -> tuple[list[float], float, float]:
    """Return what the work found, its seconds by the clock and those of this process's processor."""
    started, processor = time.perf_counter(), time.process_time()
    return work(), time.perf_counter() - started, time.process_time() - processor


def measure_search(trials: int, book_trials: int) -> None:
    """Ours between two halves of the book's: what else the machine does meets both."""
    halves = [book_trials // 2, book_trials - book_trials // 2]
    book, theirs, their_processor = timed(lambda: book_search(halves[0]))
    with two_processes() as pool:
        run_search(pool, drawn(ARTICLE_BOX, 8, np.random.default_rng(9)), 900)
        started = time.perf_counter()
        found, our_processor = run_search(pool, drawn(ARTICLE_BOX, trials, np.random.default_rng(0)), 0)
        ours = time.perf_counter() - started
    more, clock, processor = timed(lambda: book_search(halves[1]))
    book += more
    theirs = (theirs + clock) * trials / book_trials
    their_processor = (their_processor + processor) * trials / book_trials
    measured = "" if book_trials == trials else f", from {book_trials} trials"
    print(f"the article's search, {trials} trials of 50 epochs; seconds by the clock and of processor time:")
    for name, clock, processor, values in [
        ("ours, two processes", ours, our_processor, found),
        (f"the book's style{measured}", theirs, their_processor, book),
    ]:
        print(f"  {name:34} {clock:7.1f} {processor:7.1f}   best {max(values):.2f}, median {np.median(values):.2f}")
    print(
        f"  {theirs / ours:.1f} x faster by the clock; {their_processor / our_processor:.1f} x less processor time, "
        f"which is {2 * their_processor / our_processor:.1f} x on two cores that nobody else uses"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--step", action="store_true")
    options.add_argument("--search", action="store_true")
    options.add_argument("--figures", action="store_true")
    options.add_argument("--quick", action="store_true", help="the figures of hardly trained networks: does it run?")
    options.add_argument("--trials", type=int, default=100, help="trials of the search")
    options.add_argument("--book-trials", type=int, help="trials of the book's style, when fewer shall do")
    chosen = options.parse_args()
    everything = not (chosen.step or chosen.search or chosen.figures)
    if chosen.step or everything:
        measure_step()
    if chosen.search or everything:
        measure_search(chosen.trials, chosen.book_trials or chosen.trials)
    if chosen.figures:
        article_figures.measure_figures(article_figures.QUICK if chosen.quick else article_figures.Effort())


if __name__ == "__main__":
    main()
