"""Answers that are sent piece by piece, and broken off where the rest cannot be had."""

from __future__ import annotations

import asyncio

import structlog
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from hpo_service.domain.errors import HpoError
from hpo_service.reading.reading_process import ReadingProcessEnded

BREAK_OFF = "break_off"  # in a request's state: what resets its connection

log = structlog.get_logger()


class Stream(StreamingResponse):
    """What fails half-way must not look whole: the connection is reset, which no client takes for an end.

    An answer to HTTP/1.0, which is what some proxies speak to servers, ends with its connection: closing it would do.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._break_off = scope.get("state", {}).get(BREAK_OFF)
        await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except (HpoError, ReadingProcessEnded) as error:
            if self._break_off is None:
                raise
            log.warning("an answer was broken off", error=str(error) or type(error).__name__)
            self._break_off()
            await asyncio.sleep(0)  # the connection hears of its end
