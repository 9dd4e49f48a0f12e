"""Numbers and choices in sentences."""

from __future__ import annotations

import json


def count(amount: int, noun: str) -> str:
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"


def shown(value: object) -> str:
    """Four digits of a number are enough to know which one is meant."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return str(value) if isinstance(value, int) else f"{value:.4g}"
