"""By mouse alone, on a fresh server: a study is pasted, watched, steered, tested, and its best taken home."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.page.conftest import Screen, Served

pytestmark = pytest.mark.slow

FILE = """
name = "by-mouse"
limits = { trials = 10 }
sampler = { name = "random", seed = 1 }

[search_space]
learning_rate = { type = "float", low = 1e-3, high = 1e-1, log = true }

[objective]
kind = "neural_network"
samples = 200
epochs = 20
"""


@pytest.fixture
def worker(served: Served, tmp_path: Path) -> Iterator[None]:
    """One that trains the built-in network, started as the page says it is wanted."""
    (tmp_path / "key").write_text(served.admin)
    (tmp_path / "key").chmod(0o600)
    command = [sys.executable, "-m", "hpo_service", "worker", "--server", served.url, "--processes", "1"]
    with subprocess.Popen(
        command,
        env={"HPO_TOKEN_FILE": str(tmp_path / "key"), "OPENBLAS_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        yield
        running.terminate()


def test_the_whole_job_is_done_by_mouse(screen: Screen, served: Served, request: pytest.FixtureRequest) -> None:
    page = screen.open()
    expect(page.get_by_text("There is no study yet.")).to_be_visible()
    screen.button("New study").click()
    page.get_by_label("Study file", exact=True).fill(FILE)
    page.get_by_label("Key", exact=True).fill(served.admin)
    screen.in_dialog("Create").click()
    title = page.locator(".title-row")
    expect(title).to_contain_text("ACTIVE")

    screen.button("Pause").click()
    expect(title).to_contain_text("PAUSED")
    screen.button("Enqueue").click()
    page.get_by_label("learning_rate").fill("0.05")
    screen.in_dialog("Enqueue").click()
    trials = page.get_by_role("region", name="Trials", exact=True)
    expect(trials).to_contain_text("WAITING")
    request.getfixturevalue("worker")
    screen.button("Resume").click()
    expect(title).to_contain_text("ACTIVE")

    expect(trials).to_contain_text("train_accuracy")  # what the trials report
    expect(title).to_contain_text("COMPLETED")
    study = served.study("by-mouse")
    assert study["counts"]["COMPLETE"] == 10
    expect(page.locator(".fact-card").first).to_contain_text(f"trial {study['best']['number']}")

    screen.button("Study file").click()
    best = tomllib.loads(page.get_by_role("dialog").get_by_label("Study file", exact=True).input_value())
    assert best["search_space"]["learning_rate"]["low"] == study["best"]["params"]["learning_rate"]
    screen.in_dialog("Close").click()

    screen.button("Confirm").click()
    page.get_by_label("How many of the best").fill("2")
    page.get_by_label("Seeds for each").fill("2")
    screen.in_dialog("Confirm").click()
    expect(page.get_by_text("The best 2 again with 2 seeds each.")).to_be_visible()
    expect(title).to_contain_text("COMPLETED")
    expect(page.get_by_role("region", name="Confirmation").get_by_role("row")).to_have_count(3)

    screen.button("Test").click()
    screen.in_dialog("Test").click()
    expect(page.locator(".of-test")).to_contain_text("on the test set")
    assert served.study("by-mouse")["test"]["state"] == "COMPLETE"
