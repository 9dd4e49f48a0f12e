"""The reports of one trial in the order of their steps: the cost of one does not grow with their number.

They are kept in chunks of at most 512, each with its least and its greatest value. To add a report, to replace one, and
to ask for the best of all but the last few visits each chunk at most once, in whatever order the steps come.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping

_LARGEST_CHUNK = 512


class _Chunk:
    """least and greatest: of the values but NaN; inf and -inf where there is none."""

    __slots__ = ("greatest", "least", "sizes", "steps", "values")

    def __init__(self, steps: array[int], values: array[float], sizes: array[int]) -> None:
        self.steps, self.values, self.sizes = steps, values, sizes
        self.measure()

    def measure(self) -> None:
        self.least, self.greatest = _extremes(self.values)

    def include(self, value: float) -> None:
        if value < self.least:
            self.least = value
        if value > self.greatest:
            self.greatest = value

    def split(self) -> _Chunk:
        """Keep the lower half; return the upper one."""
        half = len(self.steps) // 2
        upper = _Chunk(self.steps[half:], self.values[half:], self.sizes[half:])
        del self.steps[half:], self.values[half:], self.sizes[half:]
        self.measure()
        return upper


def _extremes(values: array[float]) -> tuple[float, float]:
    numbers = [value for value in values if value == value]
    return min(numbers, default=math.inf), max(numbers, default=-math.inf)


class Curve:
    """bytes: of all reports together; version: rises with every change."""

    def __init__(self) -> None:
        self.bytes = 0
        self.version = 0
        self._chunks: list[_Chunk] = []
        self._firsts: list[int] = []  # the first step of each chunk
        self._length = 0
        self._held: dict[float, bool] = {}  # the answers of `holds`, by value

    @classmethod
    def of(cls, reports: Mapping[int, float]) -> Curve:
        curve = cls()
        for step in sorted(reports):
            curve.put(step, reports[step])
        return curve

    def __len__(self) -> int:
        return self._length

    def items(self) -> Iterator[tuple[int, float]]:
        """(step, value), by rising step."""
        for chunk in self._chunks:
            yield from zip(chunk.steps, chunk.values, strict=True)

    # -- changing it --------------------------------------------------------------------------------------

    def put(self, step: int, value: float, size: int = 0) -> None:
        """Add a report, or replace that of the same step. size: its bytes."""
        self.version += 1
        if value in self._held:
            self._held[value] = True
        chunks = self._chunks
        if self.is_beyond(step) and chunks and len(chunks[-1].steps) < _LARGEST_CHUNK:
            self._append(chunks[-1], step, value, size)  # the usual case
            return
        place = bisect_right(self._firsts, step) - 1
        if place < 0:
            if not chunks:
                chunks.append(_Chunk(array("q"), array("d"), array("I")))
                self._firsts.append(step)
            place = 0
        chunk = chunks[place]
        at = bisect_left(chunk.steps, step)
        if at < len(chunk.steps) and chunk.steps[at] == step:
            self._replace(chunk, at, value, size)
            return
        if at == _LARGEST_CHUNK:  # the usual case: in order
            chunk = _Chunk(array("q"), array("d"), array("I"))
            place, at = place + 1, 0
            chunks.insert(place, chunk)
            self._firsts.insert(place, step)
        chunk.steps.insert(at, step)
        chunk.values.insert(at, value)
        chunk.sizes.insert(at, size)
        chunk.include(value)
        self._firsts[place] = chunk.steps[0]
        self._length += 1
        self.bytes += size
        if len(chunk.steps) > _LARGEST_CHUNK:
            upper = chunk.split()
            chunks.insert(place + 1, upper)
            self._firsts.insert(place + 1, upper.steps[0])

    def is_beyond(self, step: int) -> bool:
        """Whether the step lies beyond all reported ones."""
        return not self._chunks or step > self._chunks[-1].steps[-1]

    def _append(self, chunk: _Chunk, step: int, value: float, size: int) -> None:
        chunk.steps.append(step)
        chunk.values.append(value)
        chunk.sizes.append(size)
        if value < chunk.least:
            chunk.least = value
        if value > chunk.greatest:
            chunk.greatest = value
        self._length += 1
        self.bytes += size

    def _replace(self, chunk: _Chunk, at: int, value: float, size: int) -> None:
        self.bytes += size - chunk.sizes[at]
        before = chunk.values[at]
        chunk.values[at], chunk.sizes[at] = value, size
        if before in (chunk.least, chunk.greatest):
            chunk.measure()
        else:
            chunk.include(value)
        self._held.clear()

    # -- asking it ----------------------------------------------------------------------------------------

    def find(self, step: int) -> tuple[float, int] | None:
        """The value and the bytes of this step's report."""
        if self.is_beyond(step):
            return None
        place = bisect_right(self._firsts, step) - 1
        if place < 0:
            return None
        chunk = self._chunks[place]
        at = bisect_left(chunk.steps, step)
        if at == len(chunk.steps) or chunk.steps[at] != step:
            return None
        return chunk.values[at], chunk.sizes[at]

    @property
    def last(self) -> tuple[int, float]:
        """The last step and its value; only if there is a report."""
        chunk = self._chunks[-1]
        return chunk.steps[-1], chunk.values[-1]

    @property
    def last_value(self) -> float | None:
        return self.last[1] if self._chunks else None

    @property
    def step_before_the_last(self) -> int | None:
        chunk = self._chunks[-1]
        if len(chunk.steps) > 1:
            return chunk.steps[-2]
        return self._chunks[-2].steps[-1] if len(self._chunks) > 1 else None

    def lowest_loss(self, sign: float, first: int = 0, end: int | None = None) -> float | None:
        """The least of sign × value of the reports from position `first` to before `end`, without NaN; None: none left.

        sign: 1 where less is better, -1 where more is.
        """
        end = self._length if end is None else min(end, self._length)
        if first >= end:
            return None
        place, at = self._find(first)
        last, before = self._find(end - 1)
        chunks = self._chunks
        parts = [(chunk.least, chunk.greatest) for chunk in chunks[place : last + 1]]
        if at:
            parts[0] = _extremes(chunks[place].values[at : before + 1 if place == last else None])
        if before + 1 < len(chunks[last].steps) and not (at and place == last):
            parts[-1] = _extremes(chunks[last].values[: before + 1])
        numbers = [(least, greatest) for least, greatest in parts if least <= greatest]
        if not numbers:
            return None
        return min([least for least, _ in numbers]) if sign > 0 else -max([greatest for _, greatest in numbers])

    def _find(self, position: int) -> tuple[int, int]:
        """The index of the chunk with this position, and the index in the chunk; searched from the nearer end."""
        chunks = self._chunks
        if position < self._length // 2:
            for place, chunk in enumerate(chunks):
                if position < len(chunk.steps):
                    return place, position
                position -= len(chunk.steps)
        left = self._length
        for place in range(len(chunks) - 1, -1, -1):
            left -= len(chunks[place].steps)
            if left <= position:
                return place, position - left
        raise IndexError(position)

    def holds(self, value: float) -> bool:
        """Whether some report has this value; the answer is cached."""
        held = self._held.get(value)
        if held is None:
            held = self._held[value] = any(value in chunk.values for chunk in self._chunks)
        return held

    def first_of_the_last(self, most_bytes: int) -> int | None:
        """The first step of the last reports that fit into so many bytes; None: not even the last one fits."""
        if self.bytes <= most_bytes:
            return self._firsts[0] if self._firsts else None
        left, first = most_bytes, None
        for chunk in reversed(self._chunks):
            for at in range(len(chunk.steps) - 1, -1, -1):
                left -= chunk.sizes[at]
                if left < 0:
                    return first
                first = chunk.steps[at]
        return first

    def steps_from(self, first: int) -> Iterator[tuple[int, float, int]]:
        """(step, value, bytes) from this step on."""
        for place in range(max(bisect_right(self._firsts, first) - 1, 0), len(self._chunks)):
            chunk = self._chunks[place]
            for at in range(bisect_left(chunk.steps, first), len(chunk.steps)):
                yield chunk.steps[at], chunk.values[at], chunk.sizes[at]
