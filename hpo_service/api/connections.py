"""Connections are bounded: in number, in what they hold, and in the time that a request or the reader may take."""

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
LARGEST_END = 2**16  # of a chunked body: what comes after its last byte, trailers above all
# A body that nobody wants is read on, so that its sender gets to read the answer: so much for the connection to go on,
# and so much until it is closed.
DRAINED_AND_KEPT = LARGEST_BODY
DRAINED_AND_CLOSED = 64 * LARGEST_BODY
# What waits in all connections together, counted for those that send more than a usual request.
WAITING_BYTES = 2**26
USUAL_REQUEST = 2**12
# An artifact is larger than other bodies: it goes to its place as it comes, and its sender has the time of a body for
# each so many bytes. Refused, more of it is read on: whoever sends it may look for an answer at its end only.
UPLOAD_PIECE = LARGEST_BODY
UPLOAD_DRAINED = 2**29
UNREAD_ANSWERS = 2**14  # bytes; beyond, the next request of this connection waits
LINGER_SECONDS = 5.0
# Whoever goes on sending meanwhile, over a slow line: nginx's lingering_time.
MOST_LINGER_SECONDS = 30.0
# Files beside connections: the database's, the log, the event loop's.
RESERVED_FILES = 128
SWEEP_SECONDS = 0.5


@dataclass(frozen=True)
class ConnectionBounds:
    """How long a whole request head, a whole body, and a pause of the reader may take; how many may be connected.

    waiting_bytes: of requests that are not all here, or whose turn has not come, on all connections together.
    linger_seconds: how long a connection that has its last answer may take to read it, and be silent while it still
    sends; most_linger_seconds: for how long it may go on sending.
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
        """What uvicorn makes a connection with; all of one server share a Gate, and the way past the application."""
        return partial(BoundedConnection, ConnectionLimiter(self), fast_path)


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


class ConnectionLimiter:
    """All connections of a server: lets them in, and closes those whose time is over.

    One sweep for all of them, twice a second and only while there are any: a request costs no timer.
    """

    def __init__(self, bounds: ConnectionBounds) -> None:
        self.bounds = bounds
        self.inside: dict[BoundedConnection, None] = {}  # in the order in which they came
        self.waiting_bytes = 0
        self._sweeps = False

    def lets_in(self, connection: BoundedConnection) -> bool:
        """When all places are taken, whoever is here longest for nothing makes room (`here_for_nothing_since`)."""
        if len(self.inside) >= self.bounds.connections and not self.makes_room():
            return False
        self.inside[connection] = None
        if not self._sweeps:
            self._sweeps = True
            connection.loop.call_later(SWEEP_SECONDS, self._sweep, connection.loop)
        return True

    def makes_room(self) -> bool:
        longest, since = None, math.inf
        for connection in self.inside:
            if (its_since := connection.here_for_nothing_since()) < since:
                longest, since = connection, its_since
            if since == -math.inf:
                break
        if longest is None:
            return False
        self.leaves(longest)
        longest.make_room()
        return True

    def leaves(self, connection: BoundedConnection) -> None:
        self.inside.pop(connection, None)
        self.weigh(connection, 0)

    def weigh(self, connection: BoundedConnection, weight: int) -> None:
        """Note how many bytes wait there; when it is too much in all, the greediest of those nobody knows give way."""
        self.waiting_bytes += weight - connection.weight
        connection.weight = weight
        while self.waiting_bytes > self.bounds.waiting_bytes:
            greedy = [other for other in self.inside if other.weight and other.may_give_way()]
            if not greedy:
                break
            max(greedy, key=lambda other: (not other.is_known(), other.weight)).give_way()

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


class OneAtATime(FlowControl):
    """Reading stays paused while a request waits for its turn, whoever else would like to read on."""

    requests_wait = False

    def resume_reading(self) -> None:
        if not self.requests_wait:
            super().resume_reading()


class BoundedConnection(FastPathConnection):
    """uvicorn's connection with the bounds that it lacks.

        connected ──▶ head ──▶ body ──▶ answering ──▶ idle          any ──▶ ending ──▶ closed
                       ▲                                │
                       └────────────────────────────────┘

    One request at a time: what comes while one is answered waits as it came, at most as much as one read gives, and
    nothing more is read. ending: the last answer is written, and what still comes is dropped until its reader has it.

    due: when the head or the body under way has to be here, or the next request; never, while it is the server's turn.
    Most requests come in one piece: for them there are some comparisons more, and no timer.
    """

    flow: OneAtATime

    def __init__(self, gate: ConnectionLimiter, fast_path: FastPath | None, *arguments: Any, **options: Any) -> None:
        super().__init__(fast_path, *arguments, **options)
        self.gate = gate
        self.due = math.inf
        self.stalled_until = math.inf
        self.has_sent_a_request = False
        self.weight = 0  # in the gate's count
        self._backlog = Backlog()
        self._part: Part | None = None
        self._part_of: object = None  # the request's scope
        self._part_size = 0  # of a head; of a body, what came after its last byte so far
        self._arrived = 0  # bytes of the request under way, roughly
        self._last_three = b""  # of a head, whose end may come in two pieces
        self._drained = 0
        self._lingers_until = 0.0  # at most; 0: it does not linger
        self._came_at = 0.0
        self._is_deaf = False  # it is ending, or will be when those before are answered
        self._last_word: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = OneAtATime(transport)
        transport.set_write_buffer_limits(UNREAD_ANSWERS)
        metrics.connections_open.inc()
        self._came_at = self.loop.time()
        self.due = self._came_at + self.gate.bounds.head_seconds
        if not self.gate.lets_in(self):
            self._refuse(503, "unavailable", "there are too many connections; try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        metrics.connections_open.dec()
        self._is_deaf = True
        self._backlog.clear()
        self.gate.leaves(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_deaf or self.transport.is_closing():
            self._drop(data)
        elif self._backlog.size or self._is_occupied():
            self._put_off(data)
        elif len(data) <= LARGEST_PIECE and data.count(HEAD_END) < 2:
            self._take(data)
        else:
            self._put_off(data)
            self._take_up()

    def _is_occupied(self) -> bool:
        """Whether a request has to be answered, or an answer to be read, before the next request is looked at."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            return True
        return self.flow.write_paused or bool(self.pipeline)

    def _put_off(self, data: bytes) -> None:
        self._backlog.add(data)
        self.flow.requests_wait = True
        self.flow.pause_reading()
        self._weigh()

    def _take_up(self) -> None:
        """Go on with what has waited, as far as the next request that has to be answered first."""
        while self._backlog.size and not self._is_deaf and not self._is_occupied():
            self._take(self._backlog.next_piece())
        if not self._is_deaf:
            self._weigh()
            if not self._backlog.size:
                self.flow.requests_wait = False
                if not self._body_waits():
                    self.flow.resume_reading()

    def _body_waits(self) -> bool:
        """Whether the application has to take of the body before more of it is read."""
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
            self._is_here()
            if len(piece) > USUAL_REQUEST:
                self._arrived = len(piece)
                self._weigh()
        elif not self._is_deaf and not self.transport.is_closing():
            body = len(cycle.body) - body_before if self._is_in_body() else 0
            self._goes_on(piece, cycle is before, body)
            self._weigh()

    def _weigh(self) -> None:
        if self._is_deaf:
            return
        if self._is_answered():
            waits = self._drained if self._drained and self._is_chunked() else 0
        elif self._is_in_body() and self._is_upload():
            waits = len(self.cycle.body)  # the rest of what has come is in its place
        else:
            waits = min(self._arrived, LARGEST_HEAD + LARGEST_BODY)
        if (weight := self._backlog.size + waits) != self.weight:
            self.gate.weigh(self, weight)

    def _is_answered(self) -> bool:
        """Whether nothing of what has come is for a request without an answer."""
        return self._part is not Part.HEAD and (self.cycle is None or self.cycle.response_complete)

    def on_response_complete(self) -> None:
        """uvicorn's, with the sweep in place of a timer for each answer, and one request at a time."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._last_word is not None:
            self._last_word()
            return
        elif self._part is None:
            self.due = self.loop.time() + self.gate.bounds.idle_seconds
        elif self._part is Part.HEAD:  # begun early: its time counts from when it is its turn
            self.due = self.loop.time() + self.gate.bounds.head_seconds
        if self.weight:
            self._arrived = 0
            self._weigh()
        if self._backlog.size:
            self.loop.call_soon(self._take_up)
        elif self.flow.read_paused:
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalled_until = self.loop.time() + self.gate.bounds.stall_seconds

    def resume_writing(self) -> None:
        super().resume_writing()
        self.stalled_until = math.inf
        if self._backlog.size:
            self.loop.call_soon(self._take_up)

    def run_out(self, now: float) -> None:
        """Its time is over: say so where somebody may wait for an answer, and close."""
        cycle = self.cycle
        if self._is_deaf or self.stalled_until <= now or self.transport.is_closing():
            self.transport.abort()
        elif self._part is Part.HEAD and cycle is not None and not cycle.response_complete:
            # It is the server's turn: whoever has begun the next request early may wait with the rest of it.
            self.due = now + self.gate.bounds.head_seconds
        elif self._part is None or (self._part is Part.BODY and cycle.response_started):
            self.transport.close()
        else:
            self._refuse(408, "request_timeout", f"the request's {self._part.value} did not arrive in time")

    def make_room(self) -> None:
        if self._is_deaf:
            self.transport.abort()
        elif self.has_sent_a_request:  # an answer to no request would be taken for that to the next one
            self._hear_no_more()
            self.transport.abort()  # it has read all: nothing is lost, and no reader can keep it open
        else:
            self._refuse(503, "unavailable", "others were waiting, and no request had arrived here; try again later")

    def here_for_nothing_since(self) -> float:
        """Since when no request was finished, or, without a key, all was answered and read. Infinite: it is at work."""
        if self._lingers_until:  # it has its refusal, and reads it at best
            return -math.inf
        if self._is_deaf or self.transport.is_closing():  # its last answers are made or read: the sweep sees to it
            return math.inf
        if not self.has_sent_a_request:
            return self._came_at
        answered = self.cycle.response_complete and self._part is None and not self._backlog.size
        is_idle = answered and not self.transport.get_write_buffer_size() and not self.is_known()
        return self.due - self.gate.bounds.idle_seconds if is_idle else math.inf

    def is_known(self) -> bool:
        """Whether its last request was let in by a key."""
        return isinstance(self.cycle, FastCycle) or (self.cycle is not None and "hpo_studies" in self.cycle.scope)

    def may_give_way(self) -> bool:
        return bool(self._backlog.size) or self._part is not None

    def give_way(self) -> None:
        self._refuse(
            503,
            "unavailable",
            "more waits on the connections to this server than it holds; send less at once, or later",
        )

    def shutdown(self) -> None:
        if self._is_deaf:
            self.transport.close()
        else:
            super().shutdown()

    def _is_here(self) -> None:
        self.due = self.loop.time() + self.gate.bounds.idle_seconds if self.cycle.response_complete else math.inf
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
        """Whether the head under way is, with as much of the piece as belongs to it."""
        if self._is_in_body():
            return False
        end = (self._last_three + piece).find(HEAD_END)
        of_head = len(piece) if end < 0 else end + len(HEAD_END) - len(self._last_three)
        return self._part_size + of_head > LARGEST_HEAD

    def _goes_on(self, piece: bytes, of_the_same: bool, body: int) -> None:
        """Part of a request has come, and not the end of it; body: how much of it was body."""
        part = Part.BODY if self._is_in_body() else Part.HEAD
        if part is Part.HEAD and self._part is Part.BODY and self.cycle.scope is self.scope:
            self._is_here()
            return
        if part is not self._part or self._part_of is not self.scope:
            self._part, self._part_of, self._part_size = part, self.scope, 0
            bounds = self.gate.bounds
            self.due = self.loop.time() + (bounds.head_seconds if part is Part.HEAD else bounds.body_seconds)
        # What came with the end of another request is not counted: it is small, as all that comes at once.
        self._part_size = self._part_size + len(piece) if of_the_same and not body else 0
        if not self._is_answered():
            before, self._arrived = self._arrived, self._arrived + len(piece)
            if before // UPLOAD_PIECE < self._arrived // UPLOAD_PIECE and part is Part.BODY and self._is_upload():
                self.due = self.loop.time() + self.gate.bounds.body_seconds
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
            # Trailers look like chunks from here, and the parser keeps one as long as it goes on.
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
        """Refuse what comes here, before the application; every refusal of that kind goes this way."""
        metrics.refused(status)
        sent = self.headers or (self.scope or {}).get("headers")
        request_id = request_log.refused(self.client, sent, status, code, detail)
        if self._part is not Part.HEAD and self._is_in_body() and self.pipeline:
            self.pipeline.popleft()  # its body will never be here
        if self.pipeline or (self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body):
            self._last_word = partial(self._say, status, code, detail, request_id)  # those before it are answered first
            self.due = math.inf
            self._hear_no_more()
        elif self._is_in_body() and self.cycle.response_started:
            self.end()  # it has its answer, or half of it
        else:
            self._say(status, code, detail, request_id)

    def _say(self, status: int, code: str, detail: str, request_id: bytes) -> None:
        answer = problem(
            status, code, detail, headers={"Connection": "close", "X-Request-Id": request_id.decode("ascii")}
        )
        headers = (*self.server_state.default_headers, *ON_EVERY_ANSWER, *answer.raw_headers)
        self.transport.write(STATUS_LINE[status] + header_lines(headers) + b"\r\n" + bytes(answer.body))
        if status == 408:  # whoever is so slow has nothing on its way
            self._hear_no_more()
            self.transport.close()
        else:
            self._linger()

    def end(self) -> None:
        """Close after the last answer, which its caller gets to read even while it still sends."""
        if self._is_in_body() or self._backlog.size:
            self._linger()
        else:
            self._hear_no_more()
            self.transport.close()

    def _linger(self) -> None:
        """Closed with something unread, a connection is reset, and the answer may be lost with it: read and drop."""
        cycle = self.cycle
        self._hear_no_more()
        self.pipeline.clear()
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if self not in self.gate.inside or self.transport.is_closing():
            self.transport.close()
            return
        self.has_sent_a_request = False  # the first to make room
        self.due = self.loop.time() + self.gate.bounds.linger_seconds
        self._lingers_until = self.loop.time() + self.gate.bounds.most_linger_seconds
        self._drained = 0
        self.flow.requests_wait = False
        self.flow.resume_reading()
        self.transport.write_eof()

    def _hear_no_more(self) -> None:
        self._is_deaf = True
        self._arriving = None
        self._backlog.clear()
        self.gate.weigh(self, 0)

    def _drop(self, data: bytes) -> None:
        self._drained += len(data)
        most = UPLOAD_DRAINED if self.cycle is not None and self._is_upload() else DRAINED_AND_CLOSED
        if self._drained > most:
            self.transport.abort()
        elif self._lingers_until:
            self.due = min(self.loop.time() + self.gate.bounds.linger_seconds, self._lingers_until)
