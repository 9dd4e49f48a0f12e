"""uvicorn's connections with limits: on their number, their buffered bytes, and the time to send or read."""

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

import httptools

from hpo_service.api import metrics, request_log
from hpo_service.api.fast_path import FastCycle, FastPath, FastPathConnection, header_lines
from hpo_service.api.http import LARGEST_BODY
from hpo_service.api.problems import problem
from hpo_service.api.request_heads import MOST_HEADERS, HeadRefused, too_many
from hpo_service.api.request_pieces import HEAD_END, LARGEST_PIECE, Backlog
from hpo_service.api.response_headers import ON_EVERY_ANSWER
from hpo_service.api.uploads import is_upload
from hpo_service.api.uvicorn_protocol import HIGH_WATER_LIMIT, STATUS_LINE, FlowControl
from hpo_service.settings import Settings

LARGEST_HEAD = 2**16  # request line and headers
LARGEST_END = 2**16  # bytes of a chunked body, in a row, that carry no content: trailers, a chunk's extension
# The rest of a body after its answer is read and dropped, so that the client gets to read the answer: up to the first
# limit the connection is kept, up to the second it lingers, and then it is reset.
DRAINED_AND_KEPT = LARGEST_BODY
DRAINED_AND_CLOSED = 64 * LARGEST_BODY
# Buffered request bytes of all connections together; complete requests of up to USUAL_REQUEST bytes do not count.
WAITING_BYTES = 2**26
USUAL_REQUEST = 2**12
# An artifact is stored while it arrives, and its sender has body_seconds for each UPLOAD_PIECE bytes. More of a refused
# upload is drained than of other bodies: its sender may look for an answer only after sending everything.
UPLOAD_PIECE = LARGEST_BODY
UPLOAD_DRAINED = 2**29
UNREAD_ANSWERS = 2**14  # bytes in the write buffer; above that, the connection's next request waits
LINGER_SECONDS = 5.0
# For a client that goes on sending over a slow line: nginx's lingering_time.
MOST_LINGER_SECONDS = 30.0
# Files beside connections: the database's, the log, the event loop's.
RESERVED_FILES = 128
SWEEP_SECONDS = 0.5


@dataclass(frozen=True)
class ConnectionBounds:
    """Limits: time for a request's head, its body, between requests, and for a stalled reader; number of connections.

    waiting_bytes: buffered bytes of incomplete or waiting requests, on all connections together.
    linger_seconds: after the last answer, how long the client may send nothing until the connection is closed;
    most_linger_seconds: how long it may go on sending.
    """

    head_seconds: float
    body_seconds: float
    idle_seconds: float
    stall_seconds: float
    connections: int
    waiting_bytes: int = WAITING_BYTES
    linger_seconds: float = LINGER_SECONDS
    most_linger_seconds: float = MOST_LINGER_SECONDS

    @classmethod
    def of(cls, settings: Settings) -> ConnectionBounds:
        return cls(
            settings.head_seconds,
            settings.body_seconds,
            settings.idle_seconds,
            settings.stall_seconds,
            _within_open_files(settings.connections),
        )

    def protocol(self, fast_path: FastPath | None = None) -> Callable[..., asyncio.Protocol]:
        """Protocol factory for uvicorn; all connections of a server share a ConnectionLimiter and the fast path."""
        return partial(BoundedConnection, ConnectionLimiter(self), fast_path)


def _within_open_files(connections: int) -> int:
    """Raise the limit of open files if needed; return how many connections it allows, with files to spare."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + RESERVED_FILES
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        allowed = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return max(1, min(connections, allowed - RESERVED_FILES))
    return connections


class ConnectionLimiter:
    """Tracks all open connections: limits their number and buffered bytes, closes those past their deadline.

    One timer checks all of them every SWEEP_SECONDS, while there are any; a request needs no timer of its own.
    """

    def __init__(self, bounds: ConnectionBounds) -> None:
        self.bounds = bounds
        self.open: dict[BoundedConnection, None] = {}  # in the order in which they came
        self.waiting_bytes = 0
        self._sweeps = False

    def admit(self, connection: BoundedConnection) -> bool:
        """Add the connection; at the limit, first close the one that is unused longest, or return False."""
        if len(self.open) >= self.bounds.connections and not self.close_least_useful():
            return False
        self.open[connection] = None
        if not self._sweeps:
            self._sweeps = True
            connection.loop.call_later(SWEEP_SECONDS, self._sweep, connection.loop)
        return True

    def close_least_useful(self) -> bool:
        longest, since = None, math.inf
        for connection in self.open:
            if (its_since := connection.unused_since()) < since:
                longest, since = connection, its_since
            if since == -math.inf:
                break
        if longest is None:
            return False
        self.remove(longest)
        longest.close_to_make_room()
        return True

    def remove(self, connection: BoundedConnection) -> None:
        self.open.pop(connection, None)
        self.set_buffered(connection, 0)

    def set_buffered(self, connection: BoundedConnection, buffered: int) -> None:
        """Set a connection's buffered bytes. Above the total limit, refuse the largest, those without a key first."""
        self.waiting_bytes += buffered - connection.buffered
        connection.buffered = buffered
        while self.waiting_bytes > self.bounds.waiting_bytes:
            greedy = [other for other in self.open if other.buffered and other.may_be_refused()]
            if not greedy:
                break
            max(greedy, key=lambda other: (not other.is_authenticated(), other.buffered)).refuse_buffered()

    def close_overdue(self, now: float) -> None:
        for connection in list(self.open):
            if connection.due <= now or connection.stalled_until <= now:
                connection.run_out(now)
            elif connection.transport.is_closing() and connection.due == math.inf:
                # closed, but its client has not read the last bytes yet
                connection.due = now + self.bounds.stall_seconds

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self.close_overdue(loop.time())
        self._sweeps = bool(self.open)
        if self._sweeps:
            loop.call_later(SWEEP_SECONDS, self._sweep, loop)


class Part(Enum):
    """Which part of a request is arriving; None in its place: the request is complete, or none has begun."""

    HEAD = "head"
    BODY = "body"


class OneAtATime(FlowControl):
    """Keeps reading paused while a request waits in the backlog, also when uvicorn resumes it."""

    requests_wait = False

    def resume_reading(self) -> None:
        if not self.requests_wait:
            super().resume_reading()


class BoundedConnection(FastPathConnection):
    """uvicorn's connection with the limits that it lacks.

        connected ──▶ head ──▶ body ──▶ answering ──▶ idle          any ──▶ ending ──▶ closed
                       ▲                                │
                       └────────────────────────────────┘

    One request at a time: bytes that arrive while one is answered wait unparsed in the backlog, at most one read of
    them, and reading pauses. ending: the last answer is written; input is dropped until the client has read it.

    due: deadline for the head or body that is arriving, or for the next request; infinite while the server answers.
    Most requests come in one piece: each costs a few comparisons more, and no timer.
    """

    flow: OneAtATime

    def __init__(self, limiter: ConnectionLimiter, fast_path: FastPath | None, *arguments: Any, **options: Any) -> None:
        super().__init__(fast_path, *arguments, **options)
        self.limiter = limiter
        self.due = math.inf
        self.stalled_until = math.inf
        self.has_sent_a_request = False
        self.buffered = 0  # buffered bytes, as counted by the limiter
        self._backlog = Backlog()
        self._part: Part | None = None
        self._part_of: object = None  # the request's scope
        self._part_size = 0  # bytes of the head so far; in a body, bytes since the last piece with content
        self._arrived = 0  # bytes of the request in progress, roughly
        self._last_three = b""  # bytes of a head, whose end may be split over two pieces
        self._drained = 0
        self._lingers_until = 0.0  # at the latest; 0: it does not linger
        self._came_at = 0.0
        self._drops_input = False  # drops its input: it is ending, or will be once earlier requests are answered
        self._last_answer: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = OneAtATime(transport)
        transport.set_write_buffer_limits(UNREAD_ANSWERS)
        metrics.connections_open.inc()
        self._came_at = self.loop.time()
        self.due = self._came_at + self.limiter.bounds.head_seconds
        if not self.limiter.admit(self):
            self._refuse(503, "unavailable", "there are too many connections; try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        metrics.connections_open.dec()
        self._drops_input = True
        self._backlog.clear()
        self.limiter.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._drops_input or self.transport.is_closing():
            self._drop(data)
        elif self._backlog.size or self._is_occupied():
            self._put_off(data)
        elif len(data) <= LARGEST_PIECE and data.count(HEAD_END) < 2:
            self._take(data)
        else:
            self._put_off(data)
            self._take_up()

    def _is_occupied(self) -> bool:
        """Whether the next request has to wait until a request is answered, or an answer is read."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            return True
        return self.flow.write_paused or bool(self.pipeline)

    def _put_off(self, data: bytes) -> None:
        self._backlog.add(data)
        self.flow.requests_wait = True
        self.flow.pause_reading()
        self._count_buffered()

    def _take_up(self) -> None:
        """Parse the backlog up to the next request that has to be answered first; resume reading when it is empty."""
        while self._backlog.size and not self._drops_input and not self._is_occupied():
            self._take(self._backlog.next_piece())
        if not self._drops_input:
            self._count_buffered()
            if not self._backlog.size:
                self.flow.requests_wait = False
                if not self._body_waits():
                    self.flow.resume_reading()

    def _body_waits(self) -> bool:
        """Whether the application has to consume some of the body before more of it is read."""
        return self._is_in_body() and not self.cycle.response_complete and len(self.cycle.body) > HIGH_WATER_LIMIT

    def _take(self, piece: bytes) -> None:
        if self._part_size + len(piece) > LARGEST_HEAD and self._is_head_too_large(piece):
            self._refuse(431, "too_large", f"the request's head is larger than {LARGEST_HEAD} bytes")
            return
        before = self.cycle
        body_before = len(before.body) if self._part is Part.BODY else 0
        try:
            self.parse(piece)
        except httptools.HttpParserError as error:
            self._refuse_what_is_not_http(error)
            return
        except httptools.HttpParserUpgrade:
            self._refuse(400, "malformed_request", "this server is no proxy: it takes no CONNECT")
            return
        cycle = self.cycle
        if cycle is not before and not cycle.more_body and cycle.scope is self.scope:
            self._request_complete()
            if len(piece) > USUAL_REQUEST:
                self._arrived = len(piece)
                self._count_buffered()
        elif not self._drops_input and not self.transport.is_closing():
            body = len(cycle.body) - body_before if self._is_in_body() else 0
            self._count_piece(piece, cycle is before, body)
            self._count_buffered()

    def _count_buffered(self) -> None:
        if self._drops_input:
            return
        if self._is_answered():
            waits = self._drained if self._drained and self._is_chunked() else 0
        elif self._is_in_body() and self._is_upload():
            waits = len(self.cycle.body)  # the application has taken the rest
        else:
            waits = min(self._arrived, LARGEST_HEAD + LARGEST_BODY)
        if (buffered := self._backlog.size + waits) != self.buffered:
            self.limiter.set_buffered(self, buffered)

    def _is_answered(self) -> bool:
        """Whether all that was parsed belongs to requests that are answered."""
        return self._part is not Part.HEAD and (self.cycle is None or self.cycle.response_complete)

    def on_response_complete(self) -> None:
        """Like uvicorn's, but with a deadline for the sweep instead of a timer, and with one request at a time."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._last_answer is not None:
            self._last_answer()
            return
        elif self._part is None:
            self.due = self.loop.time() + self.limiter.bounds.idle_seconds
        elif self._part is Part.HEAD:  # sent early: its time counts from now on
            self.due = self.loop.time() + self.limiter.bounds.head_seconds
        if self.buffered:
            self._arrived = 0
            self._count_buffered()
        if self._backlog.size:
            self.loop.call_soon(self._take_up)
        elif self.flow.read_paused:
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalled_until = self.loop.time() + self.limiter.bounds.stall_seconds

    def resume_writing(self) -> None:
        super().resume_writing()
        self.stalled_until = math.inf
        if self._backlog.size:
            self.loop.call_soon(self._take_up)

    def run_out(self, now: float) -> None:
        """Close the connection, whose deadline has passed; answer 408 first if a request was arriving."""
        cycle = self.cycle
        if self._drops_input or self.stalled_until <= now or self.transport.is_closing():
            self.transport.abort()
        elif self._part is Part.HEAD and cycle is not None and not cycle.response_complete:
            # The server still answers the request before: the client may hold back the rest of its next one.
            self.due = now + self.limiter.bounds.head_seconds
        elif self._part is None or (self._part is Part.BODY and cycle.response_started):
            self.transport.close()
        else:
            self._refuse(408, "request_timeout", f"the request's {self._part.value} did not arrive in time")

    def close_to_make_room(self) -> None:
        if self._drops_input:
            self.transport.abort()
        elif self.has_sent_a_request:  # idle: a refusal would be taken for the answer to its next request
            self._drop_input()
            self.transport.abort()  # nothing is unread, so nothing is lost; abort() waits for no reader
        else:
            self._refuse(503, "unavailable", "others were waiting, and no request had arrived here; try again later")

    def unused_since(self) -> float:
        """Since when it has sent no whole request, or is idle without a key; inf: it is in use; -inf: it lingers."""
        if self._lingers_until:  # it was refused, and at best reads the refusal
            return -math.inf
        if self._drops_input or self.transport.is_closing():  # its last answers are made or read: the sweep closes it
            return math.inf
        if not self.has_sent_a_request:
            return self._came_at
        answered = self.cycle.response_complete and self._part is None and not self._backlog.size
        is_idle = answered and not self.transport.get_write_buffer_size() and not self.is_authenticated()
        return self.due - self.limiter.bounds.idle_seconds if is_idle else math.inf

    def is_authenticated(self) -> bool:
        """Whether its last request was allowed: by its key, or on the fast path."""
        return isinstance(self.cycle, FastCycle) or (self.cycle is not None and "hpo_studies" in self.cycle.scope)

    def may_be_refused(self) -> bool:
        return bool(self._backlog.size) or self._part is not None

    def refuse_buffered(self) -> None:
        self._refuse(
            503,
            "unavailable",
            "more waits on the connections to this server than it holds; send less at once, or later",
        )

    def shutdown(self) -> None:
        if self._drops_input:
            self.transport.close()
        else:
            super().shutdown()

    def _request_complete(self) -> None:
        self.due = self.loop.time() + self.limiter.bounds.idle_seconds if self.cycle.response_complete else math.inf
        self.has_sent_a_request = True
        if self._part is not None:
            self._part = None
            self._part_size = self._drained = 0

    def _is_in_body(self) -> bool:
        cycle = self.cycle
        return cycle is not None and cycle.scope is self.scope and cycle.more_body

    def _is_upload(self) -> bool:
        scope = self.cycle.scope
        return not isinstance(self.cycle, FastCycle) and is_upload(scope["method"], scope["path"])

    def _is_head_too_large(self, piece: bytes) -> bool:
        """Whether the head is larger than LARGEST_HEAD, with the part of the piece that belongs to it."""
        if self._is_in_body():
            return False
        end = (self._last_three + piece).find(HEAD_END)
        of_head = len(piece) if end < 0 else end + len(HEAD_END) - len(self._last_three)
        return self._part_size + of_head > LARGEST_HEAD

    def _count_piece(self, piece: bytes, of_the_same: bool, body: int) -> None:
        """Count a piece that holds no whole request. of_the_same: no head ended in it; body: its bytes of content."""
        part = Part.BODY if self._is_in_body() else Part.HEAD
        if part is Part.HEAD and self._part is Part.BODY and self.cycle.scope is self.scope:
            self._request_complete()
            return
        if part is not self._part or self._part_of is not self.scope:
            self._part, self._part_of, self._part_size = part, self.scope, 0
            bounds = self.limiter.bounds
            self.due = self.loop.time() + (bounds.head_seconds if part is Part.HEAD else bounds.body_seconds)
        # A piece in which a head has ended is not counted: pieces are small.
        self._part_size = self._part_size + len(piece) if of_the_same and not body else 0
        if not self._is_answered():
            before, self._arrived = self._arrived, self._arrived + len(piece)
            if before // UPLOAD_PIECE < self._arrived // UPLOAD_PIECE and part is Part.BODY and self._is_upload():
                self.due = self.loop.time() + self.limiter.bounds.body_seconds
        self._last_three = (self._last_three + piece)[-3:] if part is Part.HEAD else b""
        self._check_size(part, len(piece))

    def _check_size(self, part: Part, size: int) -> None:
        if part is Part.HEAD:
            if self._part_size > LARGEST_HEAD:
                self._refuse(431, "too_large", f"the request's head is larger than {LARGEST_HEAD} bytes")
            elif len(self.headers or ()) > MOST_HEADERS:
                refused = too_many("headers")
                self._refuse(refused.status, refused.code, refused.detail)
        elif self.cycle.response_complete:
            self._drained += size
            # Trailers cannot be told from chunks here, and the parser holds a trailer field until it ends.
            if self._drained > (LARGEST_END if self._is_chunked() else DRAINED_AND_KEPT):
                self.end()
        elif self._part_size > LARGEST_END:
            self._refuse(431, "too_large", f"a chunk's extension, or the trailers, are larger than {LARGEST_END} bytes")

    def _is_chunked(self) -> bool:
        return any(name == b"transfer-encoding" for name, _ in self.cycle.scope["headers"])

    def _refuse_what_is_not_http(self, error: httptools.HttpParserError) -> None:
        cause = error.__context__
        if isinstance(cause, HeadRefused):
            self._refuse(cause.status, cause.code, cause.detail)
        elif isinstance(error, httptools.HttpParserCallbackError):
            self._refuse(400, "malformed_request", "the request's target is no path on this server")
        else:
            self._refuse(400, "malformed_request", f"this is no request in HTTP/1.1: {error}")

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Refuse a request before it reaches the application, after the answers to those before it."""
        metrics.refused(status)
        sent = self.headers or (self.scope or {}).get("headers")
        request_id = request_log.refused(self.client, sent, status, code, detail)
        if self._part is not Part.HEAD and self._is_in_body() and self.pipeline:
            self.pipeline.popleft()  # its body will never be here
        if self.pipeline or (self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body):
            self._last_answer = partial(
                self._send_refusal, status, code, detail, request_id
            )  # after the earlier answers
            self.due = math.inf
            self._drop_input()
        elif self._is_in_body() and self.cycle.response_started:
            self.end()  # it has its answer, or half of it
        else:
            self._send_refusal(status, code, detail, request_id)

    def _send_refusal(self, status: int, code: str, detail: str, request_id: bytes) -> None:
        answer = problem(
            status, code, detail, headers={"Connection": "close", "X-Request-Id": request_id.decode("ascii")}
        )
        headers = (*self.server_state.default_headers, *ON_EVERY_ANSWER, *answer.raw_headers)
        self.transport.write(STATUS_LINE[status] + header_lines(headers) + b"\r\n" + bytes(answer.body))
        if status == 408:  # so slow a client has nothing in flight
            self._drop_input()
            self.transport.close()
        else:
            self._linger()

    def end(self) -> None:
        """Close after the last answer; linger if the client still sends, so that it can read the answer."""
        if self._is_in_body() or self._backlog.size:
            self._linger()
        else:
            self._drop_input()
            self.transport.close()

    def _linger(self) -> None:
        """Read and drop input for a while: closing with input unread resets the connection, and may lose the answer."""
        cycle = self.cycle
        self._drop_input()
        self.pipeline.clear()
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if self not in self.limiter.open or self.transport.is_closing():
            self.transport.close()
            return
        self.has_sent_a_request = False  # so that it is the first to be closed to make room
        self.due = self.loop.time() + self.limiter.bounds.linger_seconds
        self._lingers_until = self.loop.time() + self.limiter.bounds.most_linger_seconds
        self._drained = 0
        self.flow.requests_wait = False
        self.flow.resume_reading()
        self.transport.write_eof()

    def _drop_input(self) -> None:
        self._drops_input = True
        self._arriving = None
        self._backlog.clear()
        self.limiter.set_buffered(self, 0)

    def _drop(self, data: bytes) -> None:
        self._drained += len(data)
        most = UPLOAD_DRAINED if self.cycle is not None and self._is_upload() else DRAINED_AND_CLOSED
        if self._drained > most:
            self.transport.abort()
        elif self._lingers_until:
            self.due = min(self.loop.time() + self.limiter.bounds.linger_seconds, self._lingers_until)
