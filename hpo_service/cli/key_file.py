"""Writes a key into a file that only its owner can read."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_new(file: Path, token: str) -> None:
    """Write the key to a file that is not there yet, whole or not at all. Raise OSError."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as opened:
            os.fchmod(descriptor, 0o600)  # whatever the umask
            opened.write(token + "\n")
            opened.flush()
            os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            file.unlink()
        raise
