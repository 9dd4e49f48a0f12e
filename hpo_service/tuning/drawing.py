"""What every sampler gives: the params of one trial, and what it keeps with the trial to go on from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from hpo_service.domain.search_space import Params
from hpo_service.domain.trial import HistoryTrial
from hpo_service.tuning.axes import Axes


class Exhausted(Exception):
    """A grid has no point left."""


@dataclass(frozen=True)
class Drawn:
    """system_attrs: JSON to be kept with the trial, for whoever draws the next ones."""

    params: Params
    system_attrs: dict[str, Any] = field(default_factory=dict)


class Sampler(Protocol):
    def absorb(self, trial: HistoryTrial) -> None:
        """Take note of a new or changed trial."""

    def draw(self, number: int, axes: Axes, fixed: Params) -> Drawn:
        """The params of trial `number`: a function of the study's seed, the number and what was absorbed."""


def generator(seed: int, number: int) -> np.random.Generator:
    """The random numbers of one trial: the same on every server, before and after a restart."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number])))


def short_seed(seed: int, number: int) -> int:
    """The same for those who want 32 bits."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
