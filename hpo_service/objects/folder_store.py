"""Objects as files of a folder that servers may share: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpo_service.domain.errors import Unavailable
from hpo_service.objects.object_store import READ_AT_ONCE, ObjectMissing, Upload

PART = ".part"
LEAST_FREE_BYTES = 64 * 2**20  # the database may lie on the same disk
_FOLDERS, _FILES = 0o750, 0o640


class FolderStore:
    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    def begin(self, key: str, size: int | None) -> Upload:
        with _in_words():
            path = self._path(key)
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self._folder, path.parent):  # mkdir(parents=True) ignores the mode for parents
                folder.mkdir(_FOLDERS, exist_ok=True)
            free = shutil.disk_usage(path.parent).free
            if free < LEAST_FREE_BYTES + (size or 0):
                raise Unavailable(f"the artifacts cannot take it now: only {free // 2**20} MiB are free on their disk")
            return _FileUpload(path)

    def read(self, key: str, start: int, end: int) -> Iterator[bytes]:
        with _in_words(), self._path(key).open("rb") as file:
            file.seek(start)
            while start < end and (piece := file.read(min(READ_AT_ONCE, end - start))):
                start += len(piece)
                yield piece
            if start < end:
                raise Unavailable("an artifact's file is shorter than it was written")

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _in_words():
            for each in (path.with_name(path.name + PART), path):
                each.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / key


class _FileUpload:
    def __init__(self, path: Path) -> None:
        self._path, self._part = path, path.with_name(path.name + PART)
        self._file = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILES)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        with _in_words():
            while view:
                view = view[os.write(self._file, view) :]

    def keep(self) -> None:
        with _in_words():
            os.fsync(self._file)
            self._close()
            os.rename(self._part, self._path)
            for folder in (self._path.parent, self._path.parent.parent):  # the second, as the first may be new in it
                _sync(folder)

    def drop(self) -> None:
        self._close()
        for each in (self._part, self._path):
            with suppress(OSError):
                each.unlink()

    def _close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissing("an artifact's file is not there (any more)") from error
    except OSError as error:
        raise Unavailable(f"the artifacts' folder cannot be used now: {error.strerror}") from error
