"""Rate limits: a token bucket for each key or address."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

MOST_BUCKETS = 10_000


class TokenBuckets:
    """Each bucket holds up to `size` calls and gains `per_second`. The least recently used are dropped."""

    def __init__(self, size: float, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._size, self._per_second, self._clock = size, per_second, clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (calls left, when)

    def take(self, name: str) -> float:
        """Take one call out; return 0, or the seconds until there is one to take."""
        now = self._clock()
        left, then = self._levels.get(name, (self._size, now))
        left = min(self._size, left + (now - then) * self._per_second)
        taken = left >= 1
        self._levels[name] = (left - 1 if taken else left, now)
        self._levels.move_to_end(name)
        if len(self._levels) > MOST_BUCKETS:
            self._levels.popitem(last=False)
        return 0.0 if taken else (1 - left) / self._per_second


def neighbourhood(address: str) -> str:
    """The address, or the network that one caller controls: a /64 in IPv6, 127.0.0.0/8 for loopback."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
        parsed = parsed.ipv4_mapped
    return "127.0.0.0/8" if parsed.is_loopback else str(parsed)
