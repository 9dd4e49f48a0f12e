"""Prometheus metrics, prefix hpo_; docs/operating.md has the table. No label value is chosen by a caller."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, Gauge, Info, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from hpo_service import __version__, log_format
from hpo_service.instruments import Counter, Histogram, HistogramCounts, event_loop_lag_seconds, registry
from hpo_service.operations.service import Service
from hpo_service.reading.figures import Figures

MEDIA_TYPE = CONTENT_TYPE_LATEST
BEFORE_THE_APP = ("400", "408", "413", "431", "503")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
TICK_SECONDS = 0.5
_NOWHERE = "none"  # as a process id: no such process

_requests = Counter("hpo_requests", "Answered requests", "route", "method", "status")
_seconds = Histogram(
    "hpo_request_seconds", "Time to the start of the answer; a long poll counts as long as it waits", label="route"
)
_refused = Counter(
    "hpo_connections_refused",
    "Connections refused before their request could reach a route",
    "status",
    begins=[(status,) for status in BEFORE_THE_APP],
)
wrong_keys = Counter("hpo_wrong_keys", "Calls with a key that opens nothing")
rate_limited = Counter(
    "hpo_rate_limited",
    "Calls refused since too many came: of one key, or with wrong keys from one address",
    "by",
    begins=[("key",), ("address",)],
)


def _gauge(name: str, says: str, *labels: str) -> Gauge:
    return Gauge(name, says, labels, registry=registry)


connections_open = _gauge("hpo_connections_open", "Connections that are open")
_trials = _gauge("hpo_trials", "Trials in the record, by state", "state")
_studies = _gauge("hpo_studies", "Studies in the record, by state", "state")
_oldest_waiting = _gauge(
    "hpo_oldest_waiting_trial_seconds",
    "How long the oldest trial has waited that an ACTIVE study would give out, enqueued or for another attempt",
)
_workers_wanted = _gauge(
    "hpo_workers_wanted", "Workers of one trial at a time that would have something to do, busy ones among them"
)
_reachable = _gauge("hpo_database_reachable", "1: the database has answered the last look at it")
_wal_bytes = _gauge("hpo_database_wal_bytes", "Size of the write-ahead log; on SQLite only")
_free_bytes = _gauge("hpo_database_disk_free_bytes", "Free on the disk of the database; on SQLite only")
_calls_waiting = _gauge("hpo_calls_waiting", "Writing calls without an answer yet")
_reaper_lag = _gauge("hpo_reaper_lag_seconds", "Since the reaper last finished a look for leases that ran out")
_long_polls = _gauge("hpo_long_polls", "Asks that wait for a trial")
_streams = _gauge("hpo_event_streams", "Event streams that are open")
_reading_up = _gauge("hpo_reading_process_up", "1: the reading process is there")
_readings = _gauge("hpo_readings_under_way", "Readings that the reading process has not answered yet")
Info("hpo_build", "This version", registry=registry).info({"version": __version__})
_reading_pid: Callable[[], int | str] = lambda: _NOWHERE  # noqa: E731 - replaced at each exposition
ProcessCollector("hpo", registry=registry)
ProcessCollector("hpo_reading", pid=lambda: _reading_pid(), registry=registry)


class _LogLines(Collector):
    def collect(self) -> Iterator[Metric]:
        says = {
            "dropped": "Lines of the log that nobody took: the pipe was full, or the disk",
            "withheld": "Lines of the log left out, since too many of their kind came at once",
        }
        for name, lines in log_format.lost.items():
            yield CounterMetricFamily(f"hpo_log_lines_{name}", says[name], lines)


registry.register(_LogLines())


def exposition(service: Service, figures: Figures, reachable: bool) -> bytes:
    """The metrics as text. figures: the last known ones; reachable: whether the database has just answered."""
    _set_by_state(_trials, figures.trials)
    _set_by_state(_studies, figures.studies)
    _oldest_waiting.set(figures.oldest_waiting_seconds)
    _workers_wanted.set(figures.workers_wanted)
    _reachable.set(reachable)
    for gauge, size in ((_wal_bytes, figures.wal_bytes), (_free_bytes, figures.free_bytes)):
        gauge.set(math.nan if size is None else size)
    _describe(service)
    return generate_latest(registry)


def _set_by_state(gauge: Gauge, counts: Mapping[str, int]) -> None:
    for state, count in counts.items():
        gauge.labels(state).set(count)


def _describe(service: Service) -> None:
    global _reading_pid
    _calls_waiting.set(service.calls_waiting)
    _reaper_lag.set(time.monotonic() - service.reaped_at)
    _long_polls.set(service.long_polls)
    _streams.set(service.streams)
    reading = service.reading
    _reading_up.set(reading is not None and reading.is_up)
    _readings.set(0 if reading is None else reading.under_way)
    pid = None if reading is None else reading.pid
    _reading_pid = lambda: _NOWHERE if pid is None else pid  # noqa: E731


_counted: dict[tuple[str, str, int], tuple[tuple[str, str, str], HistogramCounts]] = {}


def count(route: str, method: str, status: int, seconds: float) -> None:
    found = _counted.get((route, method, status))
    if found is None:
        if method not in METHODS:
            method = "other"
        found = _counted[route, method, status] = ((route, method, str(status)), _seconds.of(route))
    labels, buckets = found
    _requests.inc(*labels)
    buckets.observe(seconds)


def refused(status: int) -> None:
    """Count a connection that was refused before its request could reach a route."""
    _refused.inc(str(status))


async def watch_the_event_loop() -> None:
    """Run until cancelled: measure how late the event loop wakes a sleeper, and log how many lines were withheld."""
    while True:
        began = time.monotonic()
        await asyncio.sleep(TICK_SECONDS)
        event_loop_lag_seconds.observe(max(0.0, time.monotonic() - began - TICK_SECONDS))
        log_format.limited.tell()
