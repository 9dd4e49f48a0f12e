"""Connections are bounded: in number, and in the time that a request may take to arrive and an answer to be read."""

from __future__ import annotations

import asyncio
import contextlib
import math
import resource
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from hpo_service.api import metrics, request_log
from hpo_service.api.hot_connections import HotConnection, HotWay
from hpo_service.api.problems import problem
from hpo_service.settings import Settings

LARGEST_HEAD = 2**16  # request line and headers
# Files beside connections: the database's, the log, the event loop's.
RESERVED_FILES = 128
SWEEP_SECONDS = 0.5


@dataclass(frozen=True)
class Bounds:
    """How long a whole request head, a whole body, and a pause of the reader may take; how many may be connected."""

    head_seconds: float
    body_seconds: float
    idle_seconds: float
    stall_seconds: float
    connections: int

    @classmethod
    def of(cls, settings: Settings) -> Bounds:
        return cls(
            settings.head_seconds,
            settings.body_seconds,
            settings.idle_seconds,
            settings.stall_seconds,
            _within_open_files(settings.connections),
        )

    def protocol(self, way: HotWay | None = None) -> Callable[..., asyncio.Protocol]:
        """What uvicorn makes a connection with; all of one server share a Gate, and the way past the application."""
        return partial(BoundedConnection, Gate(self), way)


def _within_open_files(connections: int) -> int:
    """So many, or as many as the process may open: a server without a free file can accept nobody."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + RESERVED_FILES
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        allowed = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return max(1, min(connections, allowed - RESERVED_FILES))
    return connections


class Gate:
    """All connections of a server: lets them in, and closes those whose time is over.

    One sweep for all of them, twice a second and only while there are any: a request costs no timer.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.inside: dict[BoundedConnection, None] = {}  # in the order in which they came
        self._sweeps = False

    def lets_in(self, connection: BoundedConnection) -> bool:
        """When all places are taken, whoever has waited longest without ever finishing a request makes room."""
        if len(self.inside) >= self.bounds.connections and not self.makes_room():
            return False
        self.inside[connection] = None
        metrics.connections_open.inc()
        if not self._sweeps:
            self._sweeps = True
            connection.loop.call_later(SWEEP_SECONDS, self._sweep, connection.loop)
        return True

    def makes_room(self) -> bool:
        for connection in self.inside:
            if not connection.has_sent_a_request:
                self.leaves(connection)
                connection.make_room()
                return True
        return False

    def leaves(self, connection: BoundedConnection) -> None:
        if connection in self.inside:
            del self.inside[connection]
            metrics.connections_open.dec()

    def close_overdue(self, now: float) -> None:
        for connection in list(self.inside):
            if connection.due <= now or connection.stalled_until <= now:
                connection.run_out(now)
            elif connection.transport.is_closing() and connection.due == math.inf:
                # it waits until its last bytes are read; not for ever
                connection.due = now + self.bounds.stall_seconds

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self.close_overdue(loop.time())
        self._sweeps = bool(self.inside)
        if self._sweeps:
            loop.call_later(SWEEP_SECONDS, self._sweep, loop)


class Part(Enum):
    """What of a request is under way; None: nothing, since all of it is here, or nothing has come yet."""

    HEAD = "head"
    BODY = "body"


class BoundedConnection(HotConnection):
    """uvicorn's connection with the deadlines that it lacks.

        connected ──▶ head ──▶ body ──▶ answering ──▶ idle
                       ▲                                │
                       └────────────────────────────────┘

    due: when the head or the body under way has to be here, or the next request; never, while it is the server's turn.
    Most requests come in one piece: for them there is one comparison more, and no timer.
    """

    def __init__(self, gate: Gate, way: HotWay | None, *arguments: Any, **options: Any) -> None:
        super().__init__(way, *arguments, **options)
        self.gate = gate
        self.due = math.inf
        self.stalled_until = math.inf
        self.has_sent_a_request = False
        self._part: Part | None = None
        self._part_of: object = None  # the request's scope
        self._head_size = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.due = self.loop.time() + self.gate.bounds.head_seconds
        if not self.gate.lets_in(self):
            self._refuse(503, "unavailable", "there are too many connections; try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        self.gate.leaves(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        before = self.cycle
        super().data_received(data)
        cycle = self.cycle
        if cycle is not before and not cycle.more_body and cycle.scope is self.scope:
            self._is_here()
        elif not self.transport.is_closing():
            # What came with the end of another request is not counted: it is small, as all that comes at once.
            self._goes_on(len(data) if cycle is before else 0)

    def on_response_complete(self) -> None:
        """uvicorn's, with the sweep in place of a timer for each answer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._part is None:
            self.due = self.loop.time() + self.gate.bounds.idle_seconds
        elif self._part is Part.HEAD:  # begun early: its time counts from when it is its turn
            self.due = self.loop.time() + self.gate.bounds.head_seconds

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalled_until = self.loop.time() + self.gate.bounds.stall_seconds

    def resume_writing(self) -> None:
        super().resume_writing()
        self.stalled_until = math.inf

    def run_out(self, now: float) -> None:
        """Its time is over: say so where somebody may wait for an answer, and close."""
        cycle = self.cycle
        if self.stalled_until <= now or self.transport.is_closing():
            self.transport.abort()
        elif self._part is Part.HEAD and cycle is not None and not cycle.response_complete:
            # It is the server's turn: whoever has begun the next request early may wait with the rest of it.
            self.due = now + self.gate.bounds.head_seconds
        elif self._part is None or (self._part is Part.BODY and cycle.response_started):
            self.transport.close()
        else:
            self._refuse(408, "request_timeout", f"the request's {self._part.value} did not arrive in time")

    def make_room(self) -> None:
        self._refuse(503, "unavailable", "others were waiting, and no request had arrived here; try again later")

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is not HTTP, as a problem."""
        self._refuse(400, "malformed_request", msg)

    def _unsupported_upgrade_warning(self) -> None:
        """Whoever offers another protocol is answered in this one, and the log need not say so each time."""

    def _is_here(self) -> None:
        self.due = math.inf
        self.has_sent_a_request = True
        self._part = None

    def _goes_on(self, size: int) -> None:
        """Part of a request has come, and not the end of it."""
        cycle = self.cycle
        if cycle is None or cycle.scope is not self.scope:
            part = Part.HEAD
        elif cycle.more_body:
            part = Part.BODY
        elif self._part is Part.BODY:
            self._is_here()
            return
        else:
            part = Part.HEAD  # empty lines before a request, which are no request yet
        if part is not self._part or self._part_of is not self.scope:
            self._part, self._part_of, self._head_size = part, self.scope, 0
            bounds = self.gate.bounds
            self.due = self.loop.time() + (bounds.head_seconds if part is Part.HEAD else bounds.body_seconds)
        self._head_size += size
        if part is Part.HEAD and self._head_size > LARGEST_HEAD:
            self._refuse(431, "too_large", f"the request's head is larger than {LARGEST_HEAD} bytes")

    def _refuse(self, status: int, code: str, detail: str) -> None:
        metrics.refused(status)
        request_id = request_log.refused(self.client, self.headers, status, code, detail)
        answer = problem(
            status, code, detail, headers={"Connection": "close", "X-Request-Id": request_id.decode("ascii")}
        )
        lines = [STATUS_LINE[status], *(b"%s: %s\r\n" % header for header in answer.raw_headers), b"\r\n"]
        self.transport.write(b"".join(lines) + bytes(answer.body))
        self.transport.close()
