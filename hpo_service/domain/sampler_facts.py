"""The samplers by name, and what the draws of each depend on, without importing the libraries that draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SamplerName = Literal["auto", "random", "tpe", "cmaes", "gp", "qmc", "grid", "nsgaii"]


@dataclass(frozen=True)
class SamplerFacts:
    """
    learns       a draw depends on the trials before it, so that they have to be read first
    draws_ahead  a draw does not depend on their results, so that nothing is lost by drawing several at a time
    """

    learns: bool
    draws_ahead: bool


# How each draws, and how long that takes: hpo_service/tuning/samplers.py.
SAMPLER_FACTS: Mapping[str, SamplerFacts] = {
    "auto": SamplerFacts(learns=True, draws_ahead=False),
    "random": SamplerFacts(learns=False, draws_ahead=True),
    "qmc": SamplerFacts(learns=True, draws_ahead=True),  # which points of the sequence have been used
    "grid": SamplerFacts(learns=True, draws_ahead=True),  # which points of the grid
    "tpe": SamplerFacts(learns=True, draws_ahead=False),
    "cmaes": SamplerFacts(learns=True, draws_ahead=False),
    "gp": SamplerFacts(learns=True, draws_ahead=False),
    "nsgaii": SamplerFacts(learns=True, draws_ahead=False),
}


def draws_ahead(sampler: str) -> bool:
    """Whether it is known to draw ahead; False for a name that a worker older than the server does not know."""
    facts = SAMPLER_FACTS.get(sampler)
    return facts is not None and facts.draws_ahead
