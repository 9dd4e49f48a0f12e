"""Caches what was made from texts, as long as the texts together have no more than so many characters."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class BoundedCache(Generic[T]):
    """Called from several threads. The least recently used goes first."""

    def __init__(self, make: Callable[[str], T], most_characters: int) -> None:
        self._make = make
        self._most = most_characters
        self._kept: OrderedDict[str, T] = OrderedDict()
        self._characters = 0
        self._lock = threading.Lock()

    def __call__(self, text: str) -> T:
        with self._lock:
            if text in self._kept:
                self._kept.move_to_end(text)
                return self._kept[text]
        made = self._make(text)
        with self._lock:
            if text not in self._kept:
                self._kept[text] = made
                self._characters += len(text)
            while self._characters > self._most and self._kept:
                self._characters -= len(self._kept.popitem(last=False)[0])
        return made
