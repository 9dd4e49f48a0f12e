"""Names for imported studies: the original name if it is valid here, else a similar one that no other study gets."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping

LONGEST = 63
_DIGITS = 6
_VALID = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")


def both_names(name: str, others: Mapping[str, int]) -> tuple[str, str]:
    """The nearest valid name, and the same with a hash of the original name, which no other study gets.

    others: the ids of all studies of the source, by name.
    """
    near = name if _VALID.fullmatch(name) else near_name(name)
    first = near or f"study-{others[name]}"
    tag = hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]
    return first, f"{first[: LONGEST - _DIGITS - 1].rstrip('-_')}-{tag}"


def possible_names(name: str, others: Mapping[str, int]) -> list[str]:
    """The names to try, the best first, without one that another study of the source has or is nearest to."""
    first, tagged = both_names(name, others)
    if first == name:
        return [name, tagged]
    taken = any(other != name and (other == first or near_name(other) == first) for other in others)
    return [tagged] if taken else [first, tagged]


def near_name(name: str) -> str:
    """The nearest valid name, without accents; "" if no character can be kept."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    letters = re.sub(r"[^a-z0-9_]+", "-", plain)
    return letters.strip("-_")[:LONGEST].rstrip("-_")
