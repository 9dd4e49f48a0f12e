"""What every sampler returns: the params of one trial, and what is kept with the trial for the next draws."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpo_service.domain.search_space import Params
from hpo_service.domain.trial import HistoryTrial
from hpo_service.tuning.axes import Axes

_WORDS = np.dtype("<u8")
_BITS_LEFT_OUT = np.array(12, dtype=_WORDS)
_FROM_ONE = np.array(1.0).view(np.uint64)


class Exhausted(Exception):
    """A grid has no point left."""


@dataclass(frozen=True, slots=True)
class DrawnParams:
    """system_attrs: JSON to be kept with the trial, for whoever draws the next ones."""

    params: Params
    system_attrs: dict[str, Any] = field(default_factory=dict)


class Sampler(Protocol):
    def absorb(self, trial: HistoryTrial) -> None:
        """Take note of a new or changed trial."""

    def draw(self, number: int, axes: Axes, fixed: Params) -> DrawnParams:
        """The params of trial `number`: a function of the study's seed, the number and what was absorbed."""


def uniforms(count: int, seed: int, number: int, purpose: str = "") -> NDArray[np.float64]:
    """(count,): numbers in (0, 1), the same for the trial on every server, before and after a restart.

    SHAKE is ten times as fast as seeding one of NumPy's generators, and the streams of any two trials are independent.
    `purpose` separates the independent streams of one trial.
    """
    stream = hashlib.shake_128(f"{seed}/{number}/{purpose}".encode()).digest(8 * count)
    # The bits of the numbers from 1 to 2, in steps of 2⁻⁵²: nothing has to be converted.
    bits = np.frombuffer(stream, _WORDS) >> _BITS_LEFT_OUT
    bits |= _FROM_ONE
    numbers: NDArray[np.float64] = bits.view(np.float64)
    numbers -= 1 - 2.0**-53
    return numbers


def positions(seed: int, number: int) -> Callable[[], float]:
    """Return a function that gives one uniform number in [0, 1) per call: for a few. Not the stream of `uniforms`."""
    key = f"{seed}/{number}/".encode()
    block, left = 0, b""

    def position() -> float:
        nonlocal block, left
        if not left:
            left = hashlib.blake2b(key + str(block).encode(), digest_size=64).digest()
            block += 1
        word, left = left[:8], left[8:]
        return (int.from_bytes(word, "little") >> 11) * 2.0**-53

    return position


def short_seed(seed: int, number: int) -> int:
    """A seed of 32 bits for the generators of other libraries."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
