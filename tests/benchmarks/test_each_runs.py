"""Each benchmark runs, quickly and without a claim: its figures are made by hand, on a quiet machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_SECONDS

PROJECT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

# service.py: test_service_benchmark.py; network.py: tests/cli/test_article.py; install_sizes.py asks a package index.
QUICK = {
    "http_client.py": (["--calls", "20", "--rounds", "1"], "hpo_service.client"),
    "sampling.py": (["--only", "random", "--largest", "100"], "random, a draw"),
    "moving_house.py": (["--trials", "50"], "50 of 50 trials equal"),
    "search_quality.py": (["--only", "two_logs", "--seeds", "1", "--askers", "1", "--searches", "tpe"], "two_logs"),
    "failing_trials.py": (["--seeds", "1", "--samplers", "random", "--cliffs-only"], "cliff"),
    "saturation.py": (["--callers", "2", "--seconds", "0.5"], "heartbeats: "),
    "importances.py": (["--studies", "1"], "of 1"),
    "confirmation.py": (["--only", "even", "--searches", "20"], "even"),
    "by_turns.py": (
        [
            *("--before", ".", "--starts", "1", "--rounds", "1", "--seconds", "0.3"),
            *("--load", "random", "--workers", "2"),
        ],
        "trials_per_second",
    ),
}
UNDER_VALGRIND = ["--before", ".", "--rounds", "1", "--load", "random", "--workers", "4"]


@pytest.mark.parametrize("script", QUICK)
def test_it_runs_and_prints_its_figures(script: str) -> None:
    options, prints = QUICK[script]
    command = [sys.executable, f"benchmarks/{script}", *options]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert prints in done.stdout


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_instructions_are_counted() -> None:
    command = [sys.executable, "benchmarks/instructions.py", *UNDER_VALGRIND]
    patience = 4 * PATIENCE_SECONDS
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=patience, check=False)
    assert done.returncode == 0, done.stderr
    assert "thousands a trial before" in done.stdout


def test_the_thousand_workers_may_be_twenty(postgres_url: str) -> None:
    fewer = ["--workers", "20", "--trials", "60", "--hold-seconds", "1"]
    command = [sys.executable, "benchmarks/thousand_workers.py", "--postgres", postgres_url, *fewer]
    patience = 4 * PATIENCE_SECONDS  # three starts of a server
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=patience, check=False)
    assert done.returncode == 0, done.stderr
    assert "as the servers say, a tell with the ask for the next: p50 within" in done.stdout
