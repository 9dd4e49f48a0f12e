"""Prometheus metrics, prefix hpo_. No label holds the name of a study or a worker."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hpo_service import __version__

MEDIA_TYPE = CONTENT_TYPE_LATEST

registry = CollectorRegistry()
_trials = Gauge("hpo_trials", "Trials in the record, by state", ["state"], registry=registry)
_requests = Counter("hpo_requests_total", "Answered requests", ["route", "method", "status"], registry=registry)
_seconds = Histogram(
    "hpo_request_seconds",
    "Time to the start of the answer; a long poll counts as long as it waits",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30),
    registry=registry,
)
_refused = Counter(
    "hpo_connections_refused_total",
    "Requests refused before the application: 400, 408, 431, 503 as their connection was over a bound",
    ["status"],
    registry=registry,
)
_open = Gauge("hpo_connections_open", "Connections open now", registry=registry)
Info("hpo_build", "This version", registry=registry).info({"version": __version__})


def exposition(trials_in_states: Mapping[str, int]) -> bytes:
    for state, count in trials_in_states.items():
        _trials.labels(state).set(count)
    return generate_latest(registry)


@lru_cache(maxsize=10_000)  # finding a counter by its labels costs more than counting
def _counters(route: str, method: str, status: int) -> tuple[Counter, Histogram]:
    return _requests.labels(route, method, status), _seconds.labels(route)


def count(route: str, method: str, status: int, seconds: float) -> None:
    requests, took = _counters(route, method, status)
    requests.inc()
    took.observe(seconds)


def refused(status: int) -> None:
    _refused.labels(status).inc()


def connection_opened() -> None:
    _open.inc()


def connection_closed() -> None:
    _open.dec()


class Measured:
    """Counts and times every request by its route."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                count(route, scope["method"], message["status"], time.perf_counter() - began)
            await send(message)

        await self.app(scope, receive, noted)
