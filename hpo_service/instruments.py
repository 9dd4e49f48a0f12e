"""Counters and histograms that all packages of the server use; `api/metrics.py` exposes them to Prometheus.

Those of prometheus_client take a lock and a microsecond per update. Each of these is updated by one thread at a time,
the event loop or the writer, at a sixth of that cost.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from types import TracebackType

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from hpo_service import tracing

registry = CollectorRegistry()

# In seconds: from a commit on a good disk to a long poll.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30)


class Counter(Collector):
    """name: without _total. labels: their names; `inc` takes their values. begins: label values that start at 0."""

    def __init__(self, name: str, says: str, *labels: str, begins: Iterable[tuple[str, ...]] = ()) -> None:
        self._name, self._says, self._labels = name, says, labels
        self._counts: dict[tuple[str, ...], float] = dict.fromkeys(begins if labels else [()], 0.0)
        registry.register(self)

    def inc(self, *labels: str, by: float = 1) -> None:
        self._counts[labels] = self._counts.get(labels, 0.0) + by

    def value(self, *labels: str) -> float:
        return self._counts.get(labels, 0.0)

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._says, labels=self._labels)
        for labels, count in list(self._counts.items()):
            family.add_metric(labels, count)
        yield family


class HistogramCounts:
    """Observations by bucket, each up to a bound, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, amount: float) -> None:
        self.counts[bisect_left(self.bounds, amount)] += 1
        self.sum += amount

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        names = [*(f"{float(bound)}" for bound in self.bounds), "+Inf"]
        return list(zip(names, accumulate(self.counts), strict=True))


class Histogram(Collector):
    def __init__(self, name: str, says: str, bounds: Sequence[float] = SECONDS, label: str | None = None) -> None:
        """label: its name; each of its values has its own buckets, which `of` returns."""
        self._name, self._says, self._bounds, self._label = name, says, bounds, label
        self._buckets: dict[str, HistogramCounts] = {}
        self._all = HistogramCounts(bounds) if label else self.of("")
        self.observe = self._all.observe
        registry.register(self)

    def of(self, value: str) -> HistogramCounts:
        return self._buckets.setdefault(value, HistogramCounts(self._bounds))

    @property
    def count(self) -> int:
        return sum(buckets.count for buckets in self._buckets.values())

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._says, labels=[self._label] if self._label else None)
        for value, buckets in list(self._buckets.items()):
            family.add_metric([value] if self._label else [], buckets.cumulative(), buckets.sum)
        yield family


leases_expired = Counter("hpo_leases_expired", "Leases that ran out, of trials and of sealed tests")
leases_released = Counter("hpo_leases_released", "Leases that were handed back, of trials and of sealed tests")
commit_seconds = Histogram(
    "hpo_commit_seconds", "From the end of a group's work until the database has it; on PostgreSQL there and back"
)
group_calls = Histogram("hpo_group_calls", "Calls written in one commit", (1, 2, 4, 8, 16, 32, 64))
call_wait_seconds = Histogram("hpo_call_wait_seconds", "From a writing call until its transaction has begun or failed")
draw_seconds = Histogram("hpo_draw_seconds", "Drawing the params of one trial")
event_loop_lag_seconds = Histogram("hpo_event_loop_lag_seconds", "How much too late the event loop woke a timer")
reading_process_restarts = Counter(
    "hpo_reading_process_restarts", "Times that the reading process was started again after it had died"
)


class LeaseEnds:
    """Counts ended attempts: the counter by AttemptEnd, for those that have one."""

    counters: Mapping[str | None, Counter] = {"expired": leases_expired, "released": leases_released}

    @classmethod
    def count(cls, ends: Iterable[str | None]) -> None:
        for end in ends:
            if end in cls.counters:
                cls.counters[end].inc()


class drawing:  # noqa: N801 - read where it is used: with drawing()
    """Times a draw, and adds a span for it to the trace of its call."""

    __slots__ = ("_began", "_span")

    def __enter__(self) -> None:
        self._span = tracing.span("draw")
        self._span.__enter__()
        self._began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        draw_seconds.observe(time.perf_counter() - self._began)
        self._span.__exit__(None, None, None)
