"""Files that a command writes; a streamed one is renamed from NAME.part only once it is complete."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hpo_service.cli.console import note
from hpo_service.cli.exits import CommandFailed


def write_pieces(pieces: Iterable[bytes], output: Path | None) -> None:
    """Write to the file, or to standard output if none is named."""
    if output is None:
        sys.stdout.buffer.writelines(pieces)
        sys.stdout.buffer.flush()
        return
    unfinished = output.with_name(output.name + ".part")
    try:
        with writing(output):
            with unfinished.open("wb") as target:
                target.writelines(pieces)
            unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)
    note(f"wrote {output}")


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Turn an OSError while the file is written into CommandFailed."""
    try:
        yield
    except OSError as error:
        raise CommandFailed(f"{file} cannot be written: {error.strerror}") from None
