"""Numbers in order, of which any one can be asked for by rank: insertion costs the same however many there are."""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort

import numpy as np

_LARGEST_CHUNK = 8192


# From so many unmerged additions on all are sorted together rather than inserted one by one.
_MANY = 256


class SortedValues:
    """Doubles without NaN, in chunks of at most 8,192: eight bytes a number. Additions are merged at the next read."""

    def __init__(self) -> None:
        self._chunks: list[array[float]] = []
        self._highs: list[float] = []
        self._size = 0
        self._added = array("d")

    def __len__(self) -> int:
        return self._size

    def add(self, value: float) -> None:
        self._size += 1
        self._added.append(value)

    def _merge_added(self) -> None:
        if len(self._added) >= _MANY:
            self._sort_all()
        for value in self._added:
            self._insert(value)
        self._added = array("d")

    def _sort_all(self) -> None:
        for chunk in self._chunks:
            self._added.extend(chunk)
        ranked = array("d", np.sort(np.array(self._added)).tobytes())
        half = _LARGEST_CHUNK // 2
        self._chunks = [ranked[start : start + half] for start in range(0, len(ranked), half)]
        self._highs = [chunk[-1] for chunk in self._chunks]
        self._added = array("d")

    def _insert(self, value: float) -> None:
        if not self._chunks:
            self._chunks.append(array("d", [value]))
            self._highs.append(value)
            return
        place = min(bisect_left(self._highs, value), len(self._chunks) - 1)
        chunk = self._chunks[place]
        insort(chunk, value)
        if len(chunk) > _LARGEST_CHUNK:
            half = len(chunk) // 2
            self._chunks[place : place + 1] = [chunk[:half], chunk[half:]]
            self._highs[place : place + 1] = [chunk[half - 1], chunk[-1]]
        else:
            self._highs[place] = chunk[-1]

    def remove(self, value: float) -> None:
        """value: one that was added."""
        self._merge_added()
        place = bisect_left(self._highs, value)
        chunk = self._chunks[place]
        del chunk[bisect_left(chunk, value)]
        self._size -= 1
        if chunk:
            self._highs[place] = chunk[-1]
        else:
            del self._chunks[place], self._highs[place]

    def below(self, value: float) -> int:
        """How many are smaller."""
        if self._added:
            self._merge_added()
        place = bisect_left(self._highs, value)
        smaller = sum(len(chunk) for chunk in self._chunks[:place])
        return smaller + (bisect_left(self._chunks[place], value) if place < len(self._chunks) else 0)

    def _find(self, rank: int) -> tuple[int, int]:
        """The index of the chunk with this rank, and the index in the chunk."""
        if self._added:
            self._merge_added()
        for place, chunk in enumerate(self._chunks):
            if rank < len(chunk):
                return place, rank
            rank -= len(chunk)
        raise IndexError(rank)

    def __getitem__(self, rank: int) -> float:
        place, at = self._find(rank)
        return self._chunks[place][at]

    def percentile(self, share: float) -> float:
        """The value below which `share` percent lie, between two neighbours in proportion (NumPy's 'linear')."""
        place = share / 100 * (self._size - 1)
        rank = min(int(place), self._size - 1)
        chunk, at = self._find(rank)
        low = self._chunks[chunk][at]
        between = place - rank
        if between == 0:
            return low
        last = at + 1 == len(self._chunks[chunk])
        high = self._chunks[chunk + 1][0] if last else self._chunks[chunk][at + 1]
        return low if high == low else low + (high - low) * between
