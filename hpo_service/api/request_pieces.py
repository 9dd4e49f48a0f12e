"""What has come on a connection before its turn, given out in pieces that end no more than one request's head.

A parser takes whatever it is given to the end, and makes objects of all requests in it: a few kilobytes for each 30
bytes of `GET / HTTP/1.1`. Every head ends with an empty line, so a piece that goes as far as the next one begins one
request at most. The cut decides nothing about HTTP, the parser does: an empty line within a body makes one piece more.
"""

from __future__ import annotations

import re

HEAD_END = b"\r\n\r\n"
LARGEST_PIECE = 2**16  # a parser is not to go on long with what is refused after all
# Empty lines that follow belong to nothing; each in a piece of its own would cost more than it weighs.
_PIECE_END = re.compile(rb"\r\n\r\n[\r\n]*")


class Backlog:
    """size: how many bytes wait."""

    def __init__(self) -> None:
        self._data = b""
        self._given = 0
        self.size = 0

    def add(self, data: bytes) -> None:
        self._data = self._data[self._given :] + data if self.size else data
        self._given = 0
        self.size += len(data)

    def next_piece(self) -> bytes:
        limit = self._given + LARGEST_PIECE
        end = _PIECE_END.search(self._data, self._given, limit)
        piece = self._data[self._given : end.end() if end else limit]
        self._given += len(piece)
        self.size -= len(piece)
        if not self.size:
            self.clear()
        return piece

    def clear(self) -> None:
        self._data, self._given, self.size = b"", 0, 0
