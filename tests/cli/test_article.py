"""What docs/article.md tells a reader to type works: each of its studies runs, in a form that trains hardly at all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpo_service.cli.study_file import read_study_file
from hpo_service.client import Client
from tests.forked import Fork
from tests.patience import PATIENCE_SECONDS

PROJECT = Path(__file__).parents[2]
ARTICLE = (PROJECT / "docs" / "article.md").read_text(encoding="utf-8")
NOT_OF_THE_ARTICLE = ("best",)  # what goes beyond it
STUDIES = {
    file.stem: file for file in sorted((PROJECT / "studies").glob("*.toml")) if file.stem not in NOT_OF_THE_ARTICLE
}
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("HPO_")}


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", ARTICLE, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [line.removeprefix("$ ").split("  #")[0].strip() for line in lines]


def quick(name: str) -> dict[str, Any]:
    """The study with few trials, few images, few neurons and three epochs."""
    body = tomllib.loads(STUDIES[name].read_text(encoding="utf-8"))
    body["objective"] |= {"samples": 100, "epochs": 3}
    if "hidden_units" not in body["search_space"]:
        body["objective"]["hidden_units"] = 10
    if "validation_samples" in body["objective"]:
        body["objective"]["validation_samples"] = 50
    if "narrowing" in body:
        body["narrowing"] |= {"rounds": 2, "trials_per_round": 2}
    elif body["sampler"]["name"] == "grid":
        for parameter in body["search_space"].values():
            del parameter["choices"][2:]
    else:
        body["limits"]["trials"] = 3
    return body


def test_the_article_runs_every_study_there_is_and_nothing_that_no_test_runs() -> None:
    figures = "python benchmarks/network.py --figures"
    assert set(commands()) == {f"hpo run studies/{name}.toml" for name in STUDIES} | {figures}


def test_every_picture_of_the_article_is_there() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", ARTICLE)

    assert {Path(picture).stem for picture in pictures} == set(STUDIES)
    for picture in pictures:
        assert (PROJECT / "docs" / picture).stat().st_size < 150_000, picture


@pytest.mark.parametrize("name", STUDIES)
def test_each_study_file_says_what_was_claimed_and_which_study_comes_next(name: str) -> None:
    figure = read_study_file(STUDIES[name]).spec().metadata["figure"]

    assert isinstance(figure, dict)
    assert figure["claim"]
    assert figure["expected"]
    assert "next" not in figure or (PROJECT / str(figure["next"])).exists()


@pytest.fixture
def own_server(fork: Fork, tmp_path: Path) -> Iterator[str]:
    """A server with no study: a worker of any study has those of the test, and is done when they are."""
    process = fork("serve", "--no-auth", "--port", "0", "--json", "--database", f"sqlite:///{tmp_path}/hpo.db")
    yield json.loads(process.stdout.readline())["url"]
    process.terminate()
    process.communicate()


@pytest.mark.slow
def test_each_study_is_trained_drawn_and_held_against_its_claim(own_server: str, tmp_path: Path, hpo: Any) -> None:
    server = own_server
    with Client(server) as client:
        for name in STUDIES:
            client.create(quick(name))
        worker = [sys.executable, "-m", "hpo_service", "worker", "--server", server, "--processes", "1", "--until-done"]
        subprocess.run(worker, env=PLAIN, capture_output=True, timeout=PATIENCE_SECONDS, check=True)
        for name in STUDIES:
            claim = client.study(name)["metadata"]["figure"]["claim"]
            shown = hpo("study", "show", name, "--server", server)
            assert " ".join(claim.split())[:60] in " ".join(shown.out.split()), name
            assert "measured " in shown.out
            assert hpo("plot", name, "-o", str(tmp_path / f"{name}.png"), "--server", server).code == 0
            assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_one_command_runs_an_ensemble_and_ends_with_the_table_the_picture_and_the_next_study(tmp_path: Path) -> None:
    (tmp_path / "quick.json").write_text(json.dumps(quick("ensemble")))

    command = [sys.executable, "-m", "hpo_service", "run", "quick.json", "--workers", "1"]
    done = subprocess.run(
        command, cwd=tmp_path, env=PLAIN, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "test accuracy of one network alone" in out
    assert "Evaluated once: 5 networks" in out
    assert "pictures/ensemble.png" in out
    assert "hpo run studies/hyperparameters.toml" in out
    assert (tmp_path / "pictures" / "ensemble.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "alone"),
    [
        ({"metadata": {"figure": {"kind": "best"}}}, True),
        ({"metadata": {}, "sampler": {"name": "tpe"}}, False),
        ({"metadata": {}, "limits": {"trials": 3}}, False),
        ({"metadata": {}, "directions": ["minimize"]}, False),
    ],
)
def test_another_figure_alone_makes_no_other_study(
    changed: dict[str, Any], alone: bool, client: Client, tmp_path: Path
) -> None:
    space = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
    body: dict[str, Any] = {"name": "described", "search_space": space, "sampler": {"name": "random"}}
    existing = client.create(body)
    (tmp_path / "study.json").write_text(json.dumps(body | changed))

    assert read_study_file(tmp_path / "study.json").differs_in_metadata_only(existing) is alone
    client.delete("described")


@pytest.mark.slow
def test_the_figures_are_measured_three_times_over() -> None:
    command = [sys.executable, "benchmarks/network.py", "--figures", "--quick"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)

    assert done.returncode == 0, done.stderr
    for part in ("overfitting: test", "5 networks: together", "batch normalization: with", "to 0.3: test accuracy"):
        assert part in done.stdout
