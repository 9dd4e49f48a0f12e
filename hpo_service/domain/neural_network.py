"""The settings of the built-in objective: what each may be, fixed or searched, and which go together.

The server checks a study with them when it is created; a worker builds a trial's configuration from them.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard, cast

from hpo_service.domain.errors import Fault, Invalid
from hpo_service.domain.json_pointer import escaped
from hpo_service.domain.search_space import (
    AnyParameter,
    CategoricalParameter,
    FloatParameter,
    NumericParameter,
    SearchSpace,
)

KIND = "neural_network"

# A dataset is named, never given as a path: no dots, no slashes.
DATASET_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")
MNIST_TRAINING_IMAGES = 60_000

ACTIVATIONS = ("relu", "sigmoid", "tanh")
INITIALIZERS = ("he", "xavier")
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam")

Wrong = tuple[tuple[str | int, ...], str]  # the place below the value, and the rule it breaks


@dataclass(frozen=True)
class Range:
    """Finite numbers from low to high; `above` and `below` leave the bound itself out, None is no bound."""

    low: float | None = None
    above: float | None = None
    high: float | None = None
    below: float | None = None

    def complaint(self, value: float) -> str | None:
        if not _is_finite(value):
            return f"{_shown(value)} is not a finite number"
        if self.low is not None and value < self.low:
            return f"{value} is below {self.low}, the lowest allowed"
        if self.above is not None and value <= self.above:
            return f"{value} must be above {self.above}"
        if self.high is not None and value > self.high:
            return f"{value} is above {self.high}, the highest allowed"
        if self.below is not None and value >= self.below:
            return f"{value} must be below {self.below}"
        return None

    def nearest_bounds(self) -> tuple[float | None, float | None]:
        """The lowest and the highest value allowed."""
        low = self.low if self.above is None else math.nextafter(self.above, math.inf)
        high = self.high if self.below is None else math.nextafter(self.below, -math.inf)
        return low, high

    def __str__(self) -> str:
        parts = [
            f"{word} {bound}"
            for word, bound in [
                ("at least", self.low),
                ("above", self.above),
                ("at most", self.high),
                ("below", self.below),
            ]
            if bound is not None
        ]
        return " and ".join(parts)


@dataclass(frozen=True)
class Setting:
    """One setting: what kind of value it takes, which ones, and which it has when none is given.

    kind is "int", "float", "bool", "name", "word" (one of `words`), "word_or_float", or "sizes" (a list of
    ints). `optional`: null means that it was not given.
    """

    kind: str
    meaning: str
    default: object
    range: Range = Range()
    words: tuple[str, ...] = ()
    optional: bool = False

    @property
    def numeric(self) -> bool:
        return self.kind in ("int", "float", "word_or_float")

    def wrong(self, value: object) -> Iterator[Wrong]:
        """Yield what is wrong with a single value."""
        if value is None and self.optional:
            return
        if self.kind == "sizes" and isinstance(value, list | tuple):
            yield from self._wrong_sizes(value)
        elif (complaint := self._complaint(value)) is not None:
            yield (), complaint

    def _complaint(self, value: object) -> str | None:
        if self.numeric and _is_number(value):
            if self.kind == "int" and isinstance(value, float) and not value.is_integer():
                return f"{value!r} is not an integer"
            return self.range.complaint(value)
        if self.kind == "bool" and isinstance(value, bool):
            return None
        if isinstance(value, str) and (value in self.words or (self.kind == "name" and DATASET_NAME.fullmatch(value))):
            return None
        hint = _nearest(value, self.words) if isinstance(value, str) else ""
        return f"{_shown(value)} is not {self.expected}{hint}"

    def _wrong_sizes(self, sizes: Sequence[object]) -> Iterator[Wrong]:
        if not 1 <= len(sizes) <= MOST_LAYERS:
            yield (), f"{len(sizes)} layers; a network has from 1 to {MOST_LAYERS}"
        for position, size in enumerate(sizes):
            for place, complaint in SETTINGS["hidden_units"].wrong(size):
                yield (position, *place), complaint

    def wrong_range(self, parameter: NumericParameter) -> Iterator[Wrong]:
        """Yield what is wrong with a numeric parameter of the search space."""
        if not self.numeric:
            yield ("type",), f"takes {self.expected}: search it with a categorical parameter"
        elif self.kind == "int" and isinstance(parameter, FloatParameter):
            yield ("type",), 'takes integers: search it with "type": "int", or with categorical choices'
        else:
            for side in ("low", "high"):
                for place, complaint in self.wrong(getattr(parameter, side)):
                    yield (side, *place), complaint

    def read(self, value: object) -> object:
        """Return a value that is right in the type the configuration keeps."""
        if self.kind == "int" and value is not None:
            return int(cast(float, value))
        if self.kind == "sizes" and value is not None:
            return tuple(int(size) for size in cast(Sequence[float], value))
        if self.numeric and _is_number(value):
            return float(value)
        return value

    @property
    def expected(self) -> str:
        """Say what is taken, for messages."""
        words = ", ".join(self.words)
        return {
            "int": f"an integer {self.range}",
            "float": f"a number {self.range}",
            "bool": "true or false",
            "name": "a name of 1 to 63 letters, digits, - and _ that begins and ends with a letter or digit",
            "word": f"one of {words}",
            "word_or_float": f"one of {words}, or a standard deviation {self.range}",
            "sizes": "a list of layer sizes such as [100, 50]",
        }[self.kind] + (" (or null)" if self.optional else "")


MOST_LAYERS = 100
MOST_UNITS = 10_000

SETTINGS: Mapping[str, Setting] = {
    "dataset": Setting("name", "mnist, or a name in the worker's data folder", "mnist"),
    "samples": Setting(
        "int",
        "how many training images are used, from the first on; null: all that validation_samples leaves",
        None,
        Range(low=1, high=100_000_000),
        optional=True,
    ),
    "validation_fraction": Setting(
        "float", "the share of the samples split off for validation", 0.2, Range(above=0.0, below=1.0)
    ),
    "validation_samples": Setting(
        "int",
        "instead of a fraction: so many images from those that samples left over",
        None,
        Range(low=1, high=100_000_000),
        optional=True,
    ),
    "epochs": Setting("int", "how long it trains", 50, Range(low=1, high=1_000_000)),
    "batch_size": Setting("int", "images in a mini-batch", 100, Range(low=1, high=100_000)),
    "hidden_layers": Setting("int", "how many hidden layers", 6, Range(low=1, high=MOST_LAYERS)),
    "hidden_units": Setting("int", "neurons in each hidden layer", 100, Range(low=1, high=MOST_UNITS)),
    "hidden_sizes": Setting("sizes", "neurons of each hidden layer, one by one", None, optional=True),
    "activation": Setting("word", "what follows each hidden layer", "relu", words=ACTIVATIONS),
    "weight_init": Setting(
        "word_or_float",
        "he, xavier, or the standard deviation of the initial weights",
        "he",
        Range(above=0.0),
        words=INITIALIZERS,
    ),
    "batch_norm": Setting("bool", "batch normalization before each activation", False),
    "dropout": Setting("float", "share of the hidden neurons dropped while training", 0.0, Range(low=0.0, below=1.0)),
    "optimizer": Setting("word", "how a gradient becomes a step", "sgd", words=OPTIMIZERS),
    "momentum": Setting(
        "float", "share of the last step kept, by momentum and nesterov", 0.9, Range(low=0.0, below=1.0)
    ),
    "learning_rate": Setting("float", "η, the size of a step", 0.01, Range(above=0.0)),
    "weight_decay": Setting("float", "λ of ½ λ‖W‖² over the weight matrices", 0.0, Range(low=0.0)),
}

# Two ways of saying one thing: the first name excludes the others.
EXCLUDES = {
    "validation_samples": ("validation_fraction",),
    "hidden_sizes": ("hidden_layers", "hidden_units"),
}

# Fixed for a whole study, with the reason.
NEVER_SEARCHED = {
    "dataset": "all trials of a study train on one dataset; name it in the objective",
}


@dataclass(frozen=True)
class NetworkConfiguration:
    """Every setting of one training, complete and checked; `configuration` makes it."""

    dataset: str
    samples: int | None
    validation_fraction: float
    validation_samples: int | None
    epochs: int
    batch_size: int
    hidden_sizes: tuple[int, ...]
    activation: str
    weight_init: str | float
    batch_norm: bool
    dropout: float
    optimizer: str
    momentum: float
    learning_rate: float
    weight_decay: float

    def split_sizes(self, available: int) -> tuple[int, int]:
        """Return how many of the available images train and how many validate."""
        settings = {name: getattr(self, name) for name in _SPLIT}
        if (complaint := _split_complaint(settings, available)) is not None:
            raise Invalid([Fault(*complaint)])
        return _split_sizes(settings, available)


def configuration(objective: Mapping[str, object], params: Mapping[str, object]) -> NetworkConfiguration:
    """Return the configuration of a trial: what the objective fixes, the trial's params, and the defaults."""
    faults = list(_fixed_faults(objective))
    for name, value in params.items():
        if name not in SETTINGS:
            faults.append(_unknown(f"/params/{escaped(name)}", name))
        else:
            faults += _at(f"/params/{name}", SETTINGS[name].wrong(value))
            faults += _twice(f"/params/{name}", name, objective)
    given = _settings(objective) | dict(params)
    if not faults:
        pointers = {name: f"/params/{name}" for name in params}
        faults += _exclusive_faults(given, pointers)
        faults += _together_faults({name: (value,) for name, value in given.items()}, pointers)
    if faults:
        raise Invalid(faults)
    values = {name: setting.read(given.get(name, setting.default)) for name, setting in SETTINGS.items()}
    layers, units = values.pop("hidden_layers"), values.pop("hidden_units")
    if values["hidden_sizes"] is None:
        values["hidden_sizes"] = (cast(int, units),) * cast(int, layers)
    return NetworkConfiguration(**values)  # type: ignore[arg-type]  # the table above checked each of them


def objective_faults(objective: Mapping[str, object], space: SearchSpace) -> list[Fault]:
    """Return each rule that a study of this objective breaks: none when its every trial can be trained."""
    faults = list(_fixed_faults(objective))
    for name, parameter in space.items():
        faults += _searched_faults(name, parameter)
        faults += _twice(f"/search_space/{escaped(name)}", name, objective)
    if faults:
        return faults
    pointers = {name: f"/search_space/{name}" for name in space.names()}
    faults += _exclusive_faults(_settings(objective) | dict(space.items()), pointers)
    return faults or _together_faults(_extremes(objective, space), pointers)


def bounds(name: str) -> tuple[float | None, float | None]:
    """Return the lowest and the highest value the objective takes for a numeric setting; None: unbounded."""
    return SETTINGS[name].range.nearest_bounds() if name in SETTINGS else (None, None)


def epochs(objective: Mapping[str, object], params: Mapping[str, object]) -> object:
    """How many epochs a trial with these params is trained for."""
    return params.get("epochs", objective.get("epochs", SETTINGS["epochs"].default))


def _settings(objective: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in objective.items() if name != "kind"}


def _fixed_faults(objective: Mapping[str, object]) -> Iterator[Fault]:
    for name, value in objective.items():
        if name == "kind":
            if value != KIND:
                yield Fault("/objective/kind", f"{_shown(value)} is not {KIND!r}")
        elif name not in SETTINGS:
            yield _unknown(f"/objective/{escaped(name)}", name)
        else:
            yield from _at(f"/objective/{name}", SETTINGS[name].wrong(value))


def _searched_faults(name: str, parameter: AnyParameter) -> Iterator[Fault]:
    place = f"/search_space/{escaped(name)}"
    if name not in SETTINGS:
        yield _unknown(place, name)
    elif name in NEVER_SEARCHED:
        yield Fault(place, f"{name} cannot be searched: {NEVER_SEARCHED[name]}")
    elif isinstance(parameter, CategoricalParameter):
        for position, choice in enumerate(parameter.choices):
            yield from _at(f"{place}/choices/{position}", SETTINGS[name].wrong(choice))
    else:
        yield from _at(place, SETTINGS[name].wrong_range(parameter))


def _twice(pointer: str, name: str, objective: Mapping[str, object]) -> Iterator[Fault]:
    if name != "kind" and name in objective:
        fixed = _shown(objective[name])
        yield Fault(pointer, f"{name} is fixed in the objective ({fixed}) as well; keep one of the two")


def _exclusive_faults(given: Mapping[str, object], pointers: Mapping[str, str]) -> Iterator[Fault]:
    """Yield a fault for each setting that is given together with one that excludes it; null counts as not given."""
    for first, others in EXCLUDES.items():
        for other in others:
            if given.get(first) is not None and given.get(other) is not None:
                yield Fault(
                    pointers.get(other, f"/objective/{other}"),
                    f"{other} cannot be given together with {first}: they say the same thing; keep one",
                )


_SPLIT = ("samples", "validation_fraction", "validation_samples")


def _extremes(objective: Mapping[str, object], space: SearchSpace) -> dict[str, tuple[object, ...]]:
    """Return, for each setting that is given, the values whose combinations are the hardest to train with."""
    possible: dict[str, tuple[object, ...]] = {name: (value,) for name, value in _settings(objective).items()}
    for name, parameter in space.items():
        ends = (
            tuple(parameter.choices) if isinstance(parameter, CategoricalParameter) else (parameter.low, parameter.high)
        )
        # a parameter that does not exist in a trial leaves the setting at its default
        possible[name] = (*ends, SETTINGS[name].default) if parameter.when else ends
    return possible


def _together_faults(possible: Mapping[str, tuple[object, ...]], pointers: Mapping[str, str]) -> list[Fault]:
    """Return the first combination of possible values that no training can work with."""
    dataset = possible.get("dataset", ("mnist",))[0]
    available = MNIST_TRAINING_IMAGES if dataset == "mnist" else None
    names = ("batch_norm", "batch_size", *_SPLIT)
    for values in itertools.product(*(possible.get(name, (SETTINGS[name].default,)) for name in names)):
        settings = dict(zip(names, values, strict=True))
        complaint = _split_complaint(settings, available) or _batch_complaint(settings)
        if complaint is not None:
            name, rule = complaint
            return [Fault(pointers.get(name, f"/objective/{name}"), rule)]
    return []


def _batch_complaint(settings: Mapping[str, object]) -> tuple[str, str] | None:
    if settings["batch_norm"] is True and settings["batch_size"] == 1:
        return "batch_size", (
            "1 cannot be combined with batch_norm: a batch of one image is its own mean, "
            "and every activation becomes 0; let batch_size begin at 2"
        )
    return None


def _split_sizes(settings: Mapping[str, object], available: int) -> tuple[int, int]:
    """Return how many images train and how many validate."""
    samples = cast(int | None, settings["samples"])
    validation = cast(int | None, settings["validation_samples"])
    if validation is not None:
        return int(available - validation if samples is None else samples), int(validation)
    samples = int(available if samples is None else samples)
    validation = round(samples * cast(float, settings["validation_fraction"]))
    return samples - validation, validation


def _split_complaint(settings: Mapping[str, object], available: int | None) -> tuple[str, str] | None:
    """Return (setting, rule broken) when these leave no image to train or to validate with."""
    samples = cast(int | None, settings["samples"])
    validation = cast(int | None, settings["validation_samples"])
    if available is not None and max(samples or 0, 1) + (validation or 0) > available:
        name = "samples" if validation is None else "validation_samples"
        asked = " + ".join(str(number) for number in (samples, validation) if number is not None)
        return name, f"asks for {asked} images, but the dataset has {available} training images"
    if validation is None and (samples is not None or available is not None):
        total = cast(int, available if samples is None else samples)
        fraction = settings["validation_fraction"]
        training, validating = _split_sizes(settings, total)
        if training < 1 or validating < 1:
            part = "training" if training < 1 else "validation"
            return (
                "samples" if samples is not None else "validation_fraction",
                f"with validation_fraction {fraction} of {total} images none is left for {part}; "
                "take more samples or another fraction",
            )
    return None


def _at(pointer: str, wrongs: Iterable[Wrong]) -> Iterator[Fault]:
    for place, complaint in wrongs:
        yield Fault("/".join([pointer, *map(str, place)]), complaint)


def _unknown(pointer: str, name: str) -> Fault:
    hint = _nearest(name, SETTINGS) or f"; it has {', '.join(SETTINGS)}"
    return Fault(pointer, f"{name!r} is not a setting of {KIND}{hint}")


def _nearest(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest double
        return False


def _shown(value: object) -> str:
    """Write a value for a message, which stays short whatever was sent."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
