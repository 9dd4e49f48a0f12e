"""The interface of an object store, and how the store of a setting is opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from hpo_service import extras
from hpo_service.domain.errors import Unavailable

BUCKETS = ("s3://", "gs://", "az://")
READ_AT_ONCE = 2**20


class ObjectMissing(Unavailable):
    """No object has this key, or not any more."""


class Upload(Protocol):
    """An object that is being written; until `keep`, readers find nothing under its key."""

    def write(self, data: bytes) -> None:
        """Raise Unavailable."""

    def keep(self) -> None:
        """Make the object visible; return once it would survive a power cut. Raise Unavailable."""

    def drop(self) -> None:
        """Remove the object and its parts as far as possible, kept or not."""


class ObjectStore(Protocol):
    """Its methods block, and are called from any thread."""

    def begin(self, key: str, size: int | None) -> Upload:
        """size: in bytes, if known. Raise Unavailable."""

    def read(self, key: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes from start to before end, piece by piece. Raise ObjectMissing, Unavailable."""

    def delete(self, key: str) -> None:
        """Delete the object if there is one. Raise Unavailable."""


def open_store(place: str) -> ObjectStore:
    """place: a folder, or a bucket's URL. Raise ValueError for one that cannot be used."""
    if place.startswith(BUCKETS):
        if not extras.is_installed("artifacts"):
            raise ValueError(f"HPO_ARTIFACTS names a bucket, which needs obstore: {extras.install('artifacts')}")
        # imported when needed: a folder does not need obstore
        from hpo_service.objects.bucket_store import BucketStore

        return BucketStore(place)
    if "://" in place:
        raise ValueError(f"HPO_ARTIFACTS is a folder, or a URL that begins with {', '.join(BUCKETS)}; not {place}")
    from hpo_service.objects.folder_store import FolderStore

    return FolderStore(Path(place))
