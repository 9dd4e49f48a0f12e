"""A server for all tests of a file, and `hpo fleet` as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpo_service.client import Client
from tests.forked import Fork
from tests.patience import PATIENCE_SECONDS


@pytest.fixture(scope="module")
def server(fork: Fork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    database = f"sqlite:///{tmp_path_factory.mktemp('server')}/hpo.db"
    process = fork("serve", "--no-auth", "--port", "0", "--json", "--database", database)
    yield json.loads(process.stdout.readline())["url"]
    process.terminate()
    process.wait(PATIENCE_SECONDS)
    process.stdout.close()


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    with Client(server) as client:
        yield client


@pytest.fixture
def fleet(server: str, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`hpo fleet …` against that server, with a state folder of its own; environment: beside ours."""

    def call(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "hpo_service", "fleet", *arguments],
            env={**os.environ, **(environment or {}), "HPO_SERVER": server, "XDG_STATE_HOME": str(tmp_path / "state")},
            capture_output=True,
            text=True,
            check=False,
        )

    return call


def items(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["items"]
    return found
