"""A batch between its sending to PostgreSQL and its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import sqlalchemy as sa

from hpo_service.store.one_round_trip import NotThisSession, RoundTrip
from hpo_service.store.write_batch import WriteBatch
from hpo_service.store.write_call import Outcome, WriteCall


@dataclass(eq=False)
class InFlightBatch:
    """A batch that was sent to PostgreSQL and has no answer yet. began: by time.perf_counter."""

    on_socket_ready: Callable[[InFlightBatch], None]
    loop: asyncio.AbstractEventLoop
    calls: Sequence[WriteCall]
    outcomes: Sequence[Outcome]
    batch: WriteBatch
    sent: RoundTrip
    began: float
    _watched: tuple[int, bool] | None = None

    def watch(self) -> None:
        """Have the event loop call `on_socket_ready` when the socket is readable (or writable: more to send)."""
        self.unwatch()
        self._watched = (self.sent.socket, not self.sent.is_out)
        try:
            self.loop.add_reader(self.sent.socket, self.on_socket_ready, self)
            if not self.sent.is_out:
                self.loop.add_writer(self.sent.socket, self.on_socket_ready, self)
        except BaseException:
            self.unwatch()
            raise

    def unwatch(self) -> None:
        watched, self._watched = self._watched, None
        if watched is not None and self.loop.is_running():
            self.loop.remove_reader(watched[0])
            if watched[1]:
                self.loop.remove_writer(watched[0])

    def complete_without_loop(self) -> None:
        with suppress(sa.exc.DBAPIError, NotThisSession):
            self.sent.received()
        self.on_socket_ready(self)
