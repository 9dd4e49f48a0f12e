"""Wilcoxon's signed-rank test kept up pair by pair: another pair costs the same however many there are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping

from hpo_service.domain.curve import Curve
from hpo_service.tuning.sorted_values import SortedValues

_EXACT = 50  # pairs, up to which SciPy's test does not go by the normal distribution


class SignedRanks:
    """Differences by the ranks of their sizes; of equal ones each has the mean rank, of zeros half counts as positive.

    What scipy.stats.wilcoxon(differences, alternative="greater", zero_method="zsplit") tests by.
    """

    def __init__(self) -> None:
        self._sizes, self._positive = SortedValues(), SortedValues()
        self._equal: Counter[float] = Counter()
        self._equal_positive: Counter[float] = Counter()
        self._positive_ranks = 0.0  # their sum
        self._ties = 0  # sum of t³ - t over groups of t equal ones

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, difference: float) -> None:
        size = abs(difference)
        self._positive_ranks += self._share_of(difference)
        self._count(size, 1)
        self._sizes.add(size)
        if difference > 0:
            self._positive.add(size)
            self._equal_positive[size] += 1

    def remove(self, difference: float) -> None:
        """difference: one that was added."""
        size = abs(difference)
        self._sizes.remove(size)
        self._count(size, -1)
        if difference > 0:
            self._positive.remove(size)
            self._equal_positive[size] -= 1
            if not self._equal_positive[size]:
                del self._equal_positive[size]
        self._positive_ranks -= self._share_of(difference)

    def _share_of(self, difference: float) -> float:
        """By how much the sum of the positive ranks is higher with this one than without it."""
        size = abs(difference)
        equal = self._equal[size]
        if size == 0:
            return (equal + 1) / 2 + len(self._positive)
        equal_positive = self._equal_positive[size]
        above = len(self._positive) - self._positive.below(size) - equal_positive
        rank = self._sizes.below(size) + (equal + 2) / 2 if difference > 0 else 0.0
        return rank + equal_positive / 2 + above

    def _count(self, size: float, by: int) -> None:
        before = self._equal[size]
        after = before + by
        self._ties += (after**3 - after) - (before**3 - before)
        self._equal[size] = after
        if not after:
            del self._equal[size]

    def p_of_greater(self) -> float:
        """The p-value by the normal distribution: how likely differences are so positive by chance."""
        n = len(self)
        error = math.sqrt((n * (n + 1) * (2 * n + 1) - self._ties / 2) / 24)
        if error == 0:
            return math.nan
        z = (self._positive_ranks - n * (n + 1) / 4) / error
        return math.erfc(z / math.sqrt(2)) / 2


class PairedTest:
    """A running trial against the best one, step by step."""

    def __init__(self, sign: float, best: Mapping[int, float], reports: Curve) -> None:
        self.best, self.reports = best, reports
        self._sign = sign
        self._version = reports.version
        self._values: dict[int, float] = {}
        self._sum = 0.0
        self._not_finite = 0
        self._ranks = SignedRanks()
        self._differences: dict[int, float] = {}
        for step, value in reports.items():
            self._take(step, value)

    def follow(self, new: Collection[int]) -> bool:
        """Take the reports of these steps; return whether that is all that has changed since."""
        if self._version + len(new) != self.reports.version:
            return False
        self._version = self.reports.version
        for step in new:
            found = self.reports.find(step)
            assert found is not None
            self._take(step, found[0])
        return True

    def _take(self, step: int, value: float) -> None:
        before = self._values.get(step)
        if before is not None:
            self._leave(step, before)
        self._values[step] = value
        if not math.isfinite(value):
            self._not_finite += 1
            return
        self._sum += value
        if step in self.best:
            difference = self._differences[step] = self._sign * (value - self.best[step])
            self._ranks.add(difference)

    def _leave(self, step: int, value: float) -> None:
        if not math.isfinite(value):
            self._not_finite -= 1
            return
        self._sum -= value
        if step in self._differences:
            self._ranks.remove(self._differences.pop(step))

    @property
    def is_finite(self) -> bool:
        return self._not_finite == 0

    @property
    def pairs(self) -> int:
        return len(self._differences)

    @property
    def mean(self) -> float:
        return self._sum / len(self._values)

    def p_of_worse(self) -> float:
        """The p-value: how likely it is by chance that the trial is so much worse."""
        if self.pairs > _EXACT:
            return self._ranks.p_of_greater()
        from scipy.stats import wilcoxon  # 0.4 s to import, for those who use it

        differences = list(self._differences.values())
        return float(wilcoxon(differences, alternative="greater", zero_method="zsplit").pvalue)
