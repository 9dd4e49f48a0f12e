"""What tests of the store share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hpo_service.operations.service import Service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Open on SQLite, in this process."""
    opened = Service(f"sqlite:///{tmp_path}/hpo.db")
    yield opened
    opened.close()
