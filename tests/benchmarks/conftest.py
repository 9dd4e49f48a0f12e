"""Puts the parts of the benchmarks in reach of their tests, as they are when a script among them runs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
