"""Objects in a bucket (S3, Google Cloud Storage, Azure), by obstore; credentials are in the cloud's own variables."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.exceptions import NotFoundError as NoSuchObject
from obstore.store import from_url

from hpo_service.domain.errors import Unavailable
from hpo_service.objects.object_store import READ_AT_ONCE, ObjectMissing, Upload

PART_BYTES = 8 * 2**20  # of a multipart upload: S3 requires at least 5 MiB; each upload buffers this much
_PATIENCE = timedelta(seconds=10)  # for retries, until a bucket counts as unavailable
_RETRIES: Any = {"max_retries": 2, "retry_timeout": _PATIENCE}
_CONNECTIONS: Any = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=60)}


class BucketStore:
    def __init__(self, url: str) -> None:
        """Raise ValueError for a bucket that cannot be used."""
        try:
            # allow_http: AWS_ENDPOINT_URL and its like decide between http and https
            options = {**_CONNECTIONS, "allow_http": True}
            make: Any = from_url  # its overloads need to know which cloud it is
            self._store = make(url, client_options=options, retry_config=_RETRIES)
        except BaseError as error:
            raise ValueError(f"HPO_ARTIFACTS names no bucket that can be used: {_line(error)}") from None

    def begin(self, key: str, size: int | None) -> Upload:
        return _BucketUpload(self._store, key)

    def read(self, key: str, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            with _in_words():
                piece = bytes(obstore.get_range(self._store, key, start=start, end=min(end, start + READ_AT_ONCE)))
            start += len(piece)
            yield piece

    def delete(self, key: str) -> None:
        with _in_words(), suppress(NoSuchObject, FileNotFoundError):
            obstore.delete(self._store, key)


class _BucketUpload:
    """An upload whose object appears as a whole when the writer is closed, never in part."""

    def __init__(self, store: Any, key: str) -> None:
        self._store, self._key = store, key
        self._writer: Any = obstore.open_writer(store, key, buffer_size=PART_BYTES, max_concurrency=2)
        self._is_closed = False
        self._closing = threading.Lock()

    def write(self, data: bytes) -> None:
        with _in_words():
            self._writer.write(data)

    def keep(self) -> None:
        with self._closing, _in_words():
            self._is_closed = True
            self._writer.close()

    def drop(self) -> None:
        """Delete a kept object. Parts of an unfinished upload are left to the bucket's own rule for these."""
        with self._closing:
            was_kept, self._is_closed = self._is_closed, True
        if was_kept:
            with suppress(BaseError, OSError):
                obstore.delete(self._store, self._key)


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except (NoSuchObject, FileNotFoundError) as error:
        raise ObjectMissing("an artifact is not in its bucket (any more)") from error
    except (BaseError, OSError) as error:
        raise Unavailable(f"the artifacts' bucket cannot be used now: {_line(error)}") from error


def _line(error: BaseException) -> str:
    said = str(error).partition("Debug source")[0]
    return " ".join(said.split())[:300] or type(error).__name__
