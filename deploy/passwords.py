"""Draws the database's passwords, each into a folder of its own, so that a service can be given one and not the other.

FOLDER/owner/owner.password and owner.pgpass, FOLDER/reader/reader.password; one that is there stays as it is. An
installation from before had both in one folder: FOLDER/before keeps it, and its passwords go on.
"""

import os
import secrets
import sys
from pathlib import Path

READ_BY_ANY_USER = 0o444  # of the services that mount the folder: the database runs as a user of its own


def main(folder: Path) -> None:
    os.umask(0o077)
    for role in ("owner", "reader"):
        if not (folder / role / f"{role}.password").exists():
            draw(folder, role)


def draw(folder: Path, role: str) -> None:
    before = folder / "before" / f"{role}.password"
    password = before.read_text() if before.exists() else secrets.token_urlsafe(32)
    if role == "owner":
        write(folder / role / "owner.pgpass", f"db:5432:hpo:hpo:{password}\n", 0o600)
    write(folder / role / f"{role}.password", password, READ_BY_ANY_USER)


def write(file: Path, text: str, mode: int) -> None:
    """The whole text or none of it."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.chmod(mode)
    new.replace(file)


main(Path(sys.argv[1]))
