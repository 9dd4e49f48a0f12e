"""Commands called in this process, and a real server that they speak to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from hpo_service.cli import main
from hpo_service.client import Client
from tests.forked import Fork
from tests.patience import PATIENCE_SECONDS


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def hpo(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run `hpo` with these arguments."""

    def call(*arguments: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return call


@pytest.fixture(scope="session")
def server(fork: Fork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server on a database of its own."""
    folder = tmp_path_factory.mktemp("server")
    command = ["serve", "--no-auth", "--port", "0", "--json", "--database", f"sqlite:///{folder}/hpo.db"]
    process = fork(*command, errors=folder / "log")
    answer = process.stdout.readline()
    assert answer, (folder / "log").read_text()
    yield json.loads(answer)["url"]
    process.terminate()
    assert process.wait(timeout=PATIENCE_SECONDS) == 0
    process.stdout.close()


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    with Client(server) as client:
        yield client


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a file of that name and text."""

    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write
