"""The sampler `auto`: for each trial it chooses the one that was measured to find most with what is known so far.

One direction: a Gaussian process; once there are some trials TPE draws every third one, since it looks where the
process would not; from a hundred on, if there is little noise, another third is drawn close to the best, by a process
fitted to the trials there; from a thousand on TPE alone. Several directions, and very many axes: see `auto`.
What each choice was measured to give: docs/decisions/0050.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpo_service.domain.search_space import CategoricalParameter, Params, SearchSpace
from hpo_service.domain.trial import BECAUSE, DRAWN_BY, HistoryTrial
from hpo_service.domain.wording_of_numbers import count
from hpo_service.tuning.axes import Axes
from hpo_service.tuning.drawing import DrawnParams, Sampler
from hpo_service.tuning.gp import GaussianProcess
from hpo_service.tuning.tpe import Tpe, tpe

# The Gaussian process was measured with at most so many axes.
MOST_AXES = 20
_EVERY = 3
_ALONE, _ALONE_WITH_OTHERS = 40, 10
_NEAR_BEST = 100
_MOST_FINISHED = 1_000


class Auto:
    """Chooses between gp and tpe for each trial; for one direction and few axes."""

    def __init__(self, seed: int, direction: str, space: SearchSpace) -> None:
        self._gp = GaussianProcess(seed, direction, space)
        self._tpe = Tpe(seed, direction, space)

    def absorb(self, trial: HistoryTrial) -> None:
        self._gp.absorb(trial)
        self._tpe.absorb(trial)

    def draw(self, number: int, axes: Axes, fixed: Params) -> DrawnParams:
        finished, running = self._gp.known(axes)
        if finished >= _MOST_FINISHED:
            because = f"{_MOST_FINISHED:,} trials have finished: as good, and quicker"
            return chosen(self._tpe.draw(number, axes, fixed), "tpe", because)
        if number % _EVERY == _EVERY - 1 and finished >= (_ALONE_WITH_OTHERS if running else _ALONE):
            because = f"every {_EVERY}rd trial, for places where gp would not look"
            return chosen(self._tpe.draw(number, axes, fixed), "tpe", because)
        if number % _EVERY == 0 and finished >= _NEAR_BEST and self._gp.sees_finely(number, axes):
            because = f"every {_EVERY}rd trial, from the trials around the best alone, and there"
            return chosen(self._gp.draw(number, axes, fixed, near_best=True), "gp", because)
        because = f"{count(finished, 'trial')} finished: gp learns most from few"
        return chosen(self._gp.draw(number, axes, fixed), "gp", because)


class Always:
    """One sampler for all trials of a study."""

    def __init__(self, sampler: Sampler, name: str, because: str) -> None:
        self._sampler, self._name, self._because = sampler, name, because

    def absorb(self, trial: HistoryTrial) -> None:
        self._sampler.absorb(trial)

    def draw(self, number: int, axes: Axes, fixed: Params) -> DrawnParams:
        return chosen(self._sampler.draw(number, axes, fixed), self._name, self._because)


def chosen(drawn: DrawnParams, name: str, because: str) -> DrawnParams:
    return DrawnParams(drawn.params, {**drawn.system_attrs, DRAWN_BY: name, BECAUSE: because})


def auto(seed: int, directions: Sequence[str], space: SearchSpace) -> Sampler:
    if len(directions) > 1:
        return Always(tpe(seed, directions, space, {}), "tpe", "the study has several directions")
    if sum(not isinstance(parameter, CategoricalParameter) for parameter in space.root.values()) > MOST_AXES:
        return Always(tpe(seed, directions, space, {}), "tpe", f"more than {MOST_AXES} numeric parameters")
    return Auto(seed, directions[0], space)
