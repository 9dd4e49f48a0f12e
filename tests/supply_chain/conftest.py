"""Puts the reader of the lock files in reach of its tests, as it is when `make audit` runs it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
