"""Keys: who may call what. A key is shown once, when it is drawn; the record knows its hash only.

    hpo_ 7Yw0Kq…30 characters… 3fTz1A
         drawn, 178 bits       CRC-32 of what stands before it

The checksum tells a typo without a look-up, and a scanner for leaked secrets recognizes a key.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib
from dataclasses import dataclass
from enum import StrEnum

from hpo_service.domain.errors import Fault, Invalid

PREFIX = "hpo_"
DRAWN = 30
CHECK = 6
LONGEST_LABEL = 100
LONGEST_LIFE_SECONDS = 100 * 365 * 86_400.0

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_STUDY_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")


class Scope(StrEnum):
    """What a key may do; each one may do what those before it may."""

    READ = "read"  # every GET
    WORKER = "worker"  # ask for trials, report, tell, hand back
    ADMIN = "admin"  # everything

    def covers(self, other: Scope) -> bool:
        return self is Scope.ADMIN or self is other or other is Scope.READ


@dataclass(frozen=True)
class Key:
    """A key as the record knows it. studies: None is every study."""

    id: str
    hash: str
    label: str
    scope: Scope
    studies: frozenset[str] | None
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    def state(self, now: float) -> str:
        """live, expired or revoked."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "live"


def draw() -> str:
    """A new key, from the operating system's random numbers."""
    drawn = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(DRAWN))
    return drawn + _checksum(drawn)


def hash_of(key: str) -> str:
    # 178 random bits need no slow hash: there is nothing to guess
    return hashlib.sha256(key.encode()).hexdigest()


def form_fault(text: str) -> str | None:
    """Why the text cannot be a key, or None. It never repeats the text."""
    if not text.startswith(PREFIX):
        return f"this is not a key: keys begin with {PREFIX}"
    expected = len(PREFIX) + DRAWN + CHECK
    if len(text) != expected:
        return f"this is not a key: a key has {expected} characters, not {len(text)}"
    if not text.isascii() or not text[len(PREFIX) :].isalnum():
        return f"this is not a key: after {PREFIX} stand letters and digits only"
    if _checksum(text[:-CHECK]) != text[-CHECK:]:
        return "this is not a key: its checksum does not fit, so some character is wrong"
    return None


def _checksum(drawn: str) -> str:
    number = zlib.crc32(drawn.encode())
    digits = ""
    for _ in range(CHECK):
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits


def seconds_of(text: str) -> float:
    """30d, 12h, 90m, 45s as seconds; raise Invalid for anything else."""
    found = re.fullmatch(r"([0-9]{1,10})([smhd])", text, re.ASCII)
    seconds = float(int(found[1]) * _UNITS[found[2]]) if found else 0.0
    if not 0 < seconds <= LONGEST_LIFE_SECONDS:
        raise Invalid([Fault("/expires", f"a whole number above 0 and one of s, m, h, d, such as 30d; not {text!r}")])
    return seconds


def check(label: str, studies: frozenset[str] | None) -> None:
    """Raise Invalid for a label or a study's name that cannot be."""
    faults = [
        Fault("/studies", f"{name!r} names no study: names are of a-z, 0-9, _ and -, at most 63")
        for name in sorted(studies or ())
        if not _STUDY_NAME.fullmatch(name)
    ]
    if len(label) > LONGEST_LABEL or not label.isprintable():
        faults.append(Fault("/label", f"at most {LONGEST_LABEL} printable characters"))
    if faults:
        raise Invalid(faults)
