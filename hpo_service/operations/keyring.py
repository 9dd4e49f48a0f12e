"""The valid keys, held in memory: to authenticate a call costs a hash and a look-up, and no SQL."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import structlog

from hpo_service.domain.key import Key, Scope, hash_of
from hpo_service.store.key_table import KeyTable

FRESH_SECONDS = 0.5  # older, they are read again, while calls go on with what is known
VALID_SECONDS = 1.0  # older, a call waits for them: a key revoked this long ago is refused

log = structlog.get_logger()


class Keyring:
    """Open for one server process; its methods belong to one event loop."""

    def __init__(self, table: KeyTable, private_hash: str | None = None) -> None:
        """private_hash: of a key that is not in the database, which whoever started this server has made."""
        self.table = table
        self._private = {} if private_hash is None else {private_hash: _private_key(private_hash)}
        self._keys: Mapping[str, Key] = self._private
        self._read_at = -VALID_SECONDS
        self._reading: asyncio.Task[None] | None = None
        self._said: tuple[str, ...] = ()
        self._waiting = 0
        self._refreshing: asyncio.Task[None] | None = None
        # a separate thread: behind slow reads of the database, every call would wait for the keys
        self._thread = ThreadPoolExecutor(1, "keys")

    def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
        self._thread.shutdown()
        self.table.close()

    def find(self, token: str) -> Key | None:
        """The live key, as of at most VALID_SECONDS ago if `is_valid`."""
        hashed = hash_of(token)
        key = self._keys.get(hashed)
        # found by its hash, of which nobody can choose a prefix; compared in constant time all the same
        return key if key is not None and hmac.compare_digest(key.hash, hashed) else None

    def still_has(self, key: Key) -> bool:
        """Whether the key is still valid and unchanged."""
        return self._keys.get(key.hash) == key

    @contextmanager
    def kept_fresh(self) -> Iterator[None]:
        """While a call waits, the keys are read again, even if no other call comes."""
        self._waiting += 1
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._keep_refreshing())
        try:
            yield
        finally:
            self._waiting -= 1

    def is_valid(self) -> bool:
        """Whether the keys in memory are recent enough; once they are over FRESH_SECONDS old, begin to read them."""
        age = time.monotonic() - self._read_at
        if age >= FRESH_SECONDS:
            self._begin_reading()
        return age < VALID_SECONDS

    async def refreshed(self) -> None:
        """Wait until the keys have been read again. Raise Unavailable."""
        wanted = time.monotonic() - VALID_SECONDS
        while self._read_at <= wanted:  # a slow reading under way may have begun too long ago
            await asyncio.shield(self._begin_reading())

    async def _keep_refreshing(self) -> None:
        while self._waiting:
            self.is_valid()
            await asyncio.sleep(FRESH_SECONDS / 2)
        self._refreshing = None

    def _begin_reading(self) -> asyncio.Task[None]:
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(self._has_read)
        return self._reading

    async def _read(self) -> None:
        began = time.monotonic()
        self._keys = await asyncio.get_running_loop().run_in_executor(self._thread, self._by_hash)
        self._read_at = began
        if self.table.unreadable != self._said:
            self._said = self.table.unreadable
            if self._said:
                log.warning("keys were changed to what is none; they open nothing", keys=self._said)

    def _by_hash(self) -> Mapping[str, Key]:
        return {key.hash: key for key in self.table.live()} | self._private

    def _has_read(self, reading: asyncio.Task[None]) -> None:
        self._reading = None
        if not reading.cancelled():
            reading.exception()  # retrieved, or asyncio logs it; calls that wait get it, too


def _private_key(hashed: str) -> Key:
    return Key("private", hashed, "of this process", Scope.ADMIN, None, created_at=0.0)
