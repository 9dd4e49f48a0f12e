"""What JSON becomes when it is read."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
