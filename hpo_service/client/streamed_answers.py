"""Requests whose body is streamed: exports, events, artifacts. Imported with the first of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import urllib3
from urllib3.exceptions import HTTPError

from hpo_service.client.connection_pool import HttpResponse

_PIECE_BYTES = 65_536


class BrokenStream(OSError):
    """A connection failed while streaming; its cause is urllib3's error."""


class Streamed:
    """A response whose head has arrived; headers are case-insensitive."""

    def __init__(self, answer: urllib3.BaseHTTPResponse) -> None:
        self.status, self.headers = answer.status, answer.headers
        self._answer = answer

    def pieces(self) -> Iterator[bytes]:
        with _as_os_errors():
            yield from self._answer.stream(_PIECE_BYTES)

    def whole(self) -> bytes:
        with _as_os_errors():
            return self._answer.data

    def close(self) -> None:
        self._answer.close()

    def release(self) -> None:
        """Return the connection to the pool, for reuse if this response was read to its end."""
        self._answer.release_conn()


class StreamedAnswers:
    """Connections to one server; any number of streams may be open at a time."""

    def __init__(self, connect_timeout: float) -> None:
        self._connect_timeout = connect_timeout
        self._pools: dict[int, urllib3.PoolManager] = {}  # by process: after a fork the connections are the parent's

    def get(self, url: str, headers: Mapping[str, str], read_timeout: float) -> Streamed:
        """Raise OSError when there is no answer."""
        return Streamed(self._request("GET", url, headers, read_timeout, preload_content=False))

    def put(self, url: str, headers: Mapping[str, str], content: bytes | BinaryIO, read_timeout: float) -> HttpResponse:
        """Raise OSError when there is no answer."""
        answer = self._request("PUT", url, headers, read_timeout, body=content)
        lines = tuple((name.encode(), value.encode()) for name, value in answer.headers.items())
        return HttpResponse(answer.status, lines, answer.data)

    def _request(
        self, method: str, url: str, headers: Mapping[str, str], read_timeout: float, **how: Any
    ) -> urllib3.BaseHTTPResponse:
        timeout = urllib3.Timeout(connect=self._connect_timeout, read=read_timeout)
        with _as_os_errors():
            return self._pool().request(method, url, headers=headers, timeout=timeout, redirect=False, **how)

    def _pool(self) -> urllib3.PoolManager:
        return self._pools.setdefault(os.getpid(), urllib3.PoolManager(num_pools=1, maxsize=8, retries=False))

    def close(self) -> None:
        self._pool().clear()


@contextmanager
def _as_os_errors() -> Iterator[None]:
    try:
        yield
    except HTTPError as error:
        raise BrokenStream(str(error)) from error
