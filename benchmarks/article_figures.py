"""The article's figures, three times: the reference, the book's style trained anew, and ours, with what parts the two.

`python benchmarks/network.py --figures` runs it. The reference is what the book's own code gave over five seeds. Every
figure is trained again by benchmarks/book_style.py and by the worker's own network, over the same number of seeds and
on the same images, so that distributions are compared and not single numbers. The test images are used to reproduce
test accuracies; nothing is chosen by them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

import book_style
import numpy as np
from scipy import stats

from hpo_service.domain.neural_network import configuration
from hpo_worker.datasets import Dataset, load
from hpo_worker.trainer import Diverged, evaluate_on_test_set, train

SIX_LAYERS, FIVE_LAYERS = (100,) * 6, (100,) * 5
ENSEMBLE = 5
CHANCE = 0.1  # what a network has that diverged
SURE = 0.01  # below this p, ours and the book's style are said to differ: there are about twenty comparisons
ARTICLE_BOX = {"learning_rate": (1e-6, 1e-2), "weight_decay": (1e-8, 1e-4)}

Measured = Mapping[str, float]


@dataclass(frozen=True)
class Setting:
    """A setting of the figures on 300 images, and what the book's own code measured: mean, or mean and range."""

    name: str
    objective: Mapping[str, object]
    reference: Mapping[str, Sequence[float]] = field(default_factory=dict)


SETTINGS = (
    Setting("overfitting", {"epochs": 201}, {"train": [1.0], "test": [0.756, 0.723, 0.784]}),
    Setting(
        "weight decay 0.1",
        {"epochs": 201, "weight_decay": 0.1},
        {"train": [0.897, 0.877, 0.920], "test": [0.717, 0.700, 0.733], "gap": [0.18]},
    ),
    Setting("301 epochs, no dropout", {"epochs": 301}, {"gap": [0.236]}),
    Setting("dropout 0.15", {"epochs": 301, "dropout": 0.15}, {"train": [0.888], "test": [0.690], "gap": [0.198]}),
    Setting("dropout 0.2", {"epochs": 301, "dropout": 0.2}, {"train": [0.635], "test": [0.521], "gap": [0.115]}),
)


@dataclass(frozen=True)
class Effort:
    """How many settings, networks of each, searches, trials of each; how long each trains: a share of its epochs."""

    settings: int = len(SETTINGS)
    seeds: int = 20
    searches: int = 10
    trials: int = 100
    share: float = 1.0
    scales: int = 16

    def epochs(self, epochs: int) -> int:
        return max(1, round(self.share * epochs))


QUICK = Effort(
    settings=1, seeds=2, searches=2, trials=3, share=0.01, scales=2
)  # shows that everything runs, and nothing else


# --- one network, by either ------------------------------------------------------------------------------------------


def by_the_book(objective: Mapping[str, object], seed: int) -> Measured:
    """The first 300 images, as they stand in the training set."""
    dataset = load("mnist")
    trained = _book_net(dataset, 300, seed, SIX_LAYERS, **objective)
    return _measured(trained.training_accuracy, float(trained.network.accuracy(dataset.x_test, dataset.t_test)))


def _book_net(dataset: Dataset, images: int, seed: int, hidden: Sequence[int], **how) -> book_style.Trained:
    x = dataset.x_train[:images].astype(np.float64)
    return book_style.train(x, dataset.t_train[:images], seed=seed, hidden=hidden, **how)


def by_ours(objective: Mapping[str, object], seed: int) -> Measured:
    """The same 300 images; each seed is a study of its own, with its own mini-batches."""
    dataset = load("mnist")
    on_300 = configuration({"samples": 300, "validation_samples": 1, **objective}, {})
    *_, last = train(on_300, seed=seed, study_seed=seed, dataset=dataset)
    tested = evaluate_on_test_set(_sealed(objective), seed=seed, study_seed=seed, ensemble=1, dataset=dataset)
    return _measured(last.metrics["train_accuracy"], tested.test_accuracy)


def _sealed(objective: Mapping[str, object]):
    """The sealed test trains on training and validation images together: 299 of the first 300, and one other."""
    return configuration({"samples": 299, "validation_samples": 1, **objective}, {})


def _measured(training: float, test: float) -> Measured:
    return {"train": training, "test": test, "gap": training - test}


def ensemble_by_the_book(epochs: int, seed: int) -> Measured:
    dataset = load("mnist")
    x_test = dataset.x_test.astype(np.float64)
    seeds = range(ENSEMBLE * seed, ENSEMBLE * (seed + 1))
    nets = [_book_net(dataset, 300, each, SIX_LAYERS, epochs=epochs).network for each in seeds]
    probabilities = [book_style.softmax(net.predict(x_test)) for net in nets]
    accuracies = [float(np.mean(each.argmax(axis=1) == dataset.t_test)) for each in probabilities]
    together = float(np.mean(np.mean(probabilities, axis=0).argmax(axis=1) == dataset.t_test))
    return {"alone": float(np.mean(accuracies)), "together": together}


def ensemble_by_ours(epochs: int, seed: int) -> Measured:
    found = evaluate_on_test_set(
        _sealed({"epochs": epochs}), seed=seed, study_seed=seed, ensemble=ENSEMBLE, dataset=load("mnist")
    )
    alone = [member["test_accuracy"] for member in found.members]
    return {"alone": float(np.mean(alone)), "together": found.test_accuracy}


def batch_normalization_by_the_book(epochs: int, scales: int, seed: int) -> Measured:
    dataset = load("mnist")

    def accuracy(scale: float, batch_norm: bool) -> float:
        how = {"epochs": epochs, "weight_std": scale, "batch_norm": batch_norm}
        return _book_net(dataset, 1000, seed, FIVE_LAYERS, **how).training_accuracy

    return _learned(accuracy, scales)


def batch_normalization_by_ours(epochs: int, scales: int, seed: int) -> Measured:
    def accuracy(scale: float, batch_norm: bool) -> float:
        objective = {"samples": 1000, "validation_samples": 1, "hidden_layers": 5, "epochs": epochs}
        settings = configuration({**objective, "weight_init": scale, "batch_norm": batch_norm}, {})
        try:
            *_, last = train(settings, seed=seed, study_seed=seed, dataset=load("mnist"))
        except Diverged:
            return CHANCE
        return last.metrics["train_accuracy"]

    return _learned(accuracy, scales)


def _learned(accuracy: Callable[[float, bool], float], scales: int) -> Measured:
    """Count over weights from a standard deviation of 1 down to 1e-4."""
    stds = [float(scale) for scale in np.logspace(0, -4, scales)]
    without = np.array([accuracy(std, False) for std in stds])
    with_it = np.array([accuracy(std, True) for std in stds])
    return {
        "without: nets below 0.2": float((without < 0.2).sum()),
        "with: nets below 0.2": float((with_it < 0.2).sum()),
        "with: nets beyond 0.65": float((with_it > 0.65).sum()),
    }


# --- the search ------------------------------------------------------------------------------------------------------


def drawn(box: Mapping[str, tuple[float, float]], trials: int, rng: np.random.Generator) -> list[dict[str, float]]:
    """Return params uniform in the logarithm."""
    return [
        {name: float(np.exp(rng.uniform(np.log(low), np.log(high)))) for name, (low, high) in box.items()}
        for _ in range(trials)
    ]


def trial_by_the_book(params: Mapping[str, float], epochs: int, seed: int) -> float:
    """The validation accuracy of a trial of the search: 500 images, shuffled, 100 of them for validation."""
    dataset = load("mnist")
    order = np.random.default_rng(seed).permutation(500)
    x, t = dataset.x_train[order].astype(np.float64), dataset.t_train[order]
    trained = book_style.train(x[100:], t[100:], seed=seed, epochs=epochs, hidden=SIX_LAYERS, **params)
    return float(trained.network.accuracy(x[:100], t[:100]))


def trial_by_ours(params: Mapping[str, float], epochs: int, seed: int, study_seed: int) -> float:
    settings = configuration({"samples": 500, "epochs": epochs}, params)
    try:
        *_, last = train(settings, seed=seed, study_seed=study_seed, dataset=load("mnist"))
    except Diverged:
        return CHANCE
    return last.value


def winner(params: Mapping[str, float], epochs: int, seed: int, study_seed: int) -> float:
    settings = configuration({"samples": 500, "epochs": epochs}, params)
    return evaluate_on_test_set(
        settings, seed=seed, study_seed=study_seed, ensemble=1, dataset=load("mnist")
    ).test_accuracy


def coarse_to_fine(study_seed: int, highest_learning_rate: float, effort: Effort) -> list[Measured]:
    """Three rounds of 100 trials; each round's box is spanned by the best ten of the round before."""
    epochs = effort.epochs(50)
    box = ARTICLE_BOX | {"learning_rate": (1e-6, highest_learning_rate)}
    rng, found = np.random.default_rng(study_seed), []
    for number in range(3):
        params = drawn(box, effort.trials, rng)
        seeds = range(1000 * number, 1000 * number + effort.trials)
        runs = zip(params, seeds, strict=True)
        values = np.array([trial_by_ours(each, epochs, seed, study_seed) for each, seed in runs])
        order = np.argsort(values)[::-1]
        best = [params[i] for i in order[:10]]
        found.append(
            {
                "mean": float(values.mean()),
                "share above 0.70": float((values > 0.7).mean()),
                "best": float(values.max()),
                "median": float(np.median(values)),
                "lowest learning rate of the best five": min(each["learning_rate"] for each in best[:5]),
                "test accuracy of the winner": winner(best[0], epochs, seeds[order[0]], study_seed),
            }
        )
        box = {name: (min(each[name] for each in best), max(each[name] for each in best)) for name in box}
    return found


# --- the tables ------------------------------------------------------------------------------------------------------


def measure_figures(effort: Effort) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=load, initargs=("mnist",)) as pool:
        print(f"mean [lowest, highest] over {effort.seeds} seeds; difference: ours less the book's style, with")
        print("the interval of 95 % and the p of Mann and Whitney's test\n")
        print(f"{'':46}{'reference':24}{'book style':24}{'ours':24}difference")
        differing = 0
        for setting in SETTINGS[: effort.settings]:
            objective = {**setting.objective, "epochs": effort.epochs(setting.objective["epochs"])}
            book = _over(pool, by_the_book, range(effort.seeds), objective)
            ours = _over(pool, by_ours, range(effort.seeds), objective)
            differing += _compare(setting.name, setting.reference, book, ours)
        tens = range(effort.searches)
        print(f"\nover {len(tens)} seeds:")
        differing += _compare(
            f"{ENSEMBLE} networks",
            {"alone": [0.752], "together": [0.796]},
            _over(pool, ensemble_by_the_book, tens, effort.epochs(201)),
            _over(pool, ensemble_by_ours, tens, effort.epochs(201)),
        )
        differing += _compare(
            "batch normalization",
            {"without: nets below 0.2": [13, 14], "with: nets below 0.2": [0], "with: nets beyond 0.65": [11]},
            _over(pool, batch_normalization_by_the_book, tens, effort.epochs(20), effort.scales),
            _over(pool, batch_normalization_by_ours, tens, effort.epochs(20), effort.scales),
        )
        differing += _compare_trials(pool, effort)
        words = "no comparison" if not differing else f"{differing} of the comparisons"
        print(f"\n{words} with p < {SURE}\n")
        _show_search(pool, effort)


def _over(pool: Executor, measure: Callable[..., Measured], seeds: Iterable[int], *first: object) -> dict:
    """Return, by the name of what was measured, the values over the seeds."""
    running = [pool.submit(measure, *first, seed) for seed in seeds]
    found = [each.result() for each in running]
    return {name: np.array([each[name] for each in found]) for name in found[0]}


def _compare(name: str, reference: Mapping[str, Sequence[float]], book: dict, ours: dict) -> int:
    """Print a line for each thing measured; return how many differ."""
    differing = 0
    for what in ours:
        low, high, p = _difference(book[what], ours[what])
        differing += p < SURE
        print(
            f"{f'{name}: {what}':46}{_reference(reference.get(what)):24}"
            f"{_spread(book[what]):24}{_spread(ours[what]):24}"
            f"{np.mean(ours[what]) - np.mean(book[what]):+.3f} [{low:+.3f}, {high:+.3f}], p = {p:.2f}"
        )
    return differing


def _difference(book: np.ndarray, ours: np.ndarray) -> tuple[float, float, float]:
    """The 95 % interval of the difference of means (Welch), and Mann and Whitney's p."""
    if np.ptp(np.concatenate([book, ours])) < 1e-9:
        return 0.0, 0.0, 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one of the two may be constant
        interval = stats.ttest_ind(ours, book, equal_var=False).confidence_interval()
    return float(interval.low), float(interval.high), float(stats.mannwhitneyu(ours, book).pvalue)


def _compare_trials(pool: Executor, effort: Effort) -> int:
    """100 trials of the search with the same params, trained by either, each on a split of its own."""
    params, epochs = drawn(ARTICLE_BOX, effort.trials, np.random.default_rng(0)), effort.epochs(50)
    book = [pool.submit(trial_by_the_book, each, epochs, seed) for seed, each in enumerate(params)]
    ours = [pool.submit(trial_by_ours, each, epochs, seed, seed) for seed, each in enumerate(params)]
    found = [{f"{effort.trials} trials": np.array([each.result() for each in running])} for running in (book, ours)]
    return _compare("search", {}, *found)


def _show_search(pool: Executor, effort: Effort) -> None:
    """The search from coarse to fine, by ours, beside what the book's own code found once."""
    reference = [("0.21", "0.07", "0.836"), ("0.69", "0.58", "0.848"), ("0.77", "0.91", "0.861")]
    runs, wider = (_searches(pool, effort, highest) for highest in (1e-2, 0.3))
    print(
        f"the search from coarse to fine, {len(runs)} times by ours: mean [lowest, highest]; the reference is one run"
    )
    for number, (mean, share, best) in enumerate(reference):
        for what, expected in [("mean", mean), ("share above 0.70", share), ("best", best)]:
            _show(f"round {number}: {what}", expected, [run[number][what] for run in runs])
    _show("round 0: median", "0.12", [run[0]["median"] for run in runs])
    rates = "lowest learning rate of the best five"
    _show(f"round 0: {rates}", "above 0.003", [run[0][rates] for run in runs], digits=4)
    test = "test accuracy of the winner"
    _show(f"round 0: {test}", "0.73", [run[0][test] for run in runs])
    _show(f"round 2: {test}", "0.73", [run[2][test] for run in runs])
    _show(f"to 0.3: {test}", "0.82", [run[2][test] for run in wider])
    _show("to 0.3: best", "0.87", [run[2]["best"] for run in wider])


def _searches(pool: Executor, effort: Effort, highest_learning_rate: float) -> list[list[Measured]]:
    running = [pool.submit(coarse_to_fine, seed, highest_learning_rate, effort) for seed in range(effort.searches)]
    return [each.result() for each in running]


def _show(what: str, reference: str, values: Sequence[float], digits: int = 3) -> None:
    print(f"{what:48}{reference:14}{_spread(np.array(values), digits)}")


def _spread(values: np.ndarray, digits: int = 3) -> str:
    return f"{values.mean():.{digits}f} [{values.min():.{digits}f}, {values.max():.{digits}f}]"


def _reference(numbers: Sequence[float] | None) -> str:
    if numbers is None:
        return ""
    shown = [f"{number:g}" if number >= 2 or number == 0 else f"{number:.3f}" for number in numbers]
    return {1: "{}", 2: "{} or {}", 3: "{} [{}, {}]"}[len(shown)].format(*shown)
