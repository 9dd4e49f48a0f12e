"""Bytes that wait on a connection until they are parsed, in pieces with the end of at most one request head each.

The parser parses all it is given, and makes objects of every request in it: a few kilobytes for each 30 bytes of
`GET / HTTP/1.1`. A head ends with an empty line, so a piece up to the next empty line begins at most one request. The
cut is no parsing of HTTP: an empty line within a body makes one more piece.
"""

from __future__ import annotations

import re

HEAD_END = b"\r\n\r\n"
LARGEST_PIECE = 2**16  # limits how long the parser works on input that is refused after all
# Further empty lines join the piece: a piece for each of them would cost too much.
_PIECE_END = re.compile(rb"\r\n\r\n[\r\n]*")


class Backlog:
    """A connection's unparsed bytes. size: how many."""

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
