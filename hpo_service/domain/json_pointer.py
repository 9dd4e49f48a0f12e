"""JSON pointers (RFC 6901): they name the place of a broken rule."""

from __future__ import annotations


def pointer(*parts: str | int, below: str = "") -> str:
    """The pointer of these members, each inside the one before; below: one that is already written."""
    return below + "".join("/" + escaped(str(part)) for part in parts)


def escaped(member: str) -> str:
    return member.replace("~", "~0").replace("/", "~1")


def members(pointer: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
