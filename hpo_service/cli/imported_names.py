"""Which name a study from elsewhere gets here: its own where it can be, else a readable one that is nobody else's."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping

LONGEST = 63
_DIGITS = 6
_VALID = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")


def both_names(name: str, others: Mapping[str, int]) -> tuple[str, str]:
    """The nearest name there is, and one that no other study's name leads to.

    others: all studies where it comes from, with their ids.
    """
    near = name if _VALID.fullmatch(name) else near_name(name)
    first = near or f"study-{others[name]}"
    tag = hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]
    return first, f"{first[: LONGEST - _DIGITS - 1].rstrip('-_')}-{tag}"


def possible_names(name: str, others: Mapping[str, int]) -> list[str]:
    """The names to try, the best first; what another one of them is called, or comes near to, is not for this one."""
    first, tagged = both_names(name, others)
    if first == name:
        return [name, tagged]
    taken = any(other != name and (other == first or near_name(other) == first) for other in others)
    return [tagged] if taken else [first, tagged]


def near_name(name: str) -> str:
    """The nearest name that a study of ours can have; letters lose their accents."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    letters = re.sub(r"[^a-z0-9_]+", "-", plain)
    return letters.strip("-_")[:LONGEST].rstrip("-_")
