"""What the how-to pages and the page of the SDK show runs as it stands there."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hpo_service.client import Client, HeldTrial
from tests.forked import Fork
from tests.patience import PATIENCE_SECONDS

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def commands(block: str) -> list[str]:
    return [line.removeprefix("$ ").partition("  #")[0].strip() for line in block.splitlines()]


def run_python(code: str, **surroundings: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | surroundings,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_example_of_the_sdk_asks_reports_and_tells(server: str) -> None:
    (code,) = blocks("reference/sdk.md", "python")
    assert "'lr'" in run_python(code.replace("http://127.0.0.1:8000", server))


def test_in_an_event_loop_calls_go_into_threads_as_the_page_of_the_sdk_says(client: Client) -> None:
    assert "await asyncio.to_thread(study.ask)" in (DOCS / "reference" / "sdk.md").read_text()
    study = client.create_study("in-a-loop", search_space={"x": {"type": "float", "low": 0, "high": 1}})

    async def ask_at_once() -> list[int]:
        given = await asyncio.gather(*(asyncio.to_thread(study.ask) for _ in range(5)))
        return sorted(trial.number for trials in given for trial in trials)

    assert asyncio.run(ask_at_once()) == [0, 1, 2, 3, 4]


# -- backups


@contextmanager
def serving(fork: Fork, folder: Path, *options: str) -> Iterator[Client]:
    """`hpo serve`, as the page has it, on another port; for a caller without a key."""
    process = fork("serve", "--port", "0", *options, cwd=folder)
    try:
        address = re.search(r"http://[\d.:]+", process.stdout.readline())
        assert address is not None
        with Client(address[0]) as client:
            yield client
    finally:
        process.terminate()
        process.communicate()


def typed(folder: Path, lines: list[str], **given: str) -> None:
    """What somebody types there, `hpo` being on the path."""
    (folder / "bin").mkdir(exist_ok=True)
    hpo = folder / "bin" / "hpo"
    hpo.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m hpo_service "$@"\n')
    hpo.chmod(0o755)
    surroundings = os.environ | {"PATH": f"{hpo.parent}:{os.environ['PATH']}"} | given
    for line in lines:
        done = subprocess.run(
            ["sh", "-c", line], cwd=folder, env=surroundings, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (line, done.stderr)


@pytest.mark.slow
def test_a_backup_taken_and_restored_as_the_page_says_has_what_there_was(fork: Fork, tmp_path: Path) -> None:
    take, restore = map(commands, blocks("how-to/back-up-and-restore.md", "console"))
    assert restore.pop() == "hpo serve"
    with serving(fork, tmp_path, "--no-auth") as client:
        study = client.create_study("kept", search_space={"x": {"type": "float", "low": 0, "high": 1}})
        (first,) = study.ask()
        first.save("model", b"weights")
        first.tell(0.5)
        typed(tmp_path, take)
        (second,) = study.ask()
        second.tell(0.7)
    typed(tmp_path, restore)
    with serving(fork, tmp_path, "--no-auth") as client:
        study = client.open_study("kept")
        assert [trial.value for trial in study.trials] == [0.5]
        assert b"".join(client.artifact("kept", 0, "model")) == b"weights"


# -- several machines

_STUDY = """
name = "study"
limits = { trials = 8 }
[search_space]
lr = { type = "float", low = 0.0, high = 1.0 }
"""


@pytest.mark.slow
def test_workers_with_the_key_that_the_page_makes_train_the_study_that_it_creates(fork: Fork, tmp_path: Path) -> None:
    at_the_server, at_a_worker, looking = map(commands, blocks("how-to/several-machines.md", "console"))
    serve, *others = at_the_server
    assert serve == "hpo serve --host 0.0.0.0"  # here on loopback
    export, worker = at_a_worker
    assert export == "export HPO_SERVER=http://server.example.org:8000 HPO_TOKEN_FILE=worker.key"
    (tmp_path / "study.toml").write_text(_STUDY)
    (tmp_path / "study.py").write_text("def objective(trial):\n    return trial.params['lr']\n")
    with serving(fork, tmp_path) as stranger:
        key = (tmp_path / "hpo.db.key").read_text().strip()
        typed(tmp_path, others, HPO_SERVER=stranger.server, HPO_TOKEN=key)
        typed(tmp_path, [worker], HPO_SERVER=stranger.server, HPO_TOKEN_FILE="worker.key")
        with Client(stranger.server, key) as client:
            study = client.study("study")
            assert (study["state"], study["counts"]["COMPLETE"]) == ("COMPLETED", 8)
            (some, *_) = client.workers()
        filled = [line.replace(" ID", f" {some['worker_id']}") for line in looking]
        typed(tmp_path, filled, HPO_SERVER=stranger.server, HPO_TOKEN=key)


# -- machines that are taken away


@pytest.mark.slow
def test_the_objective_with_checkpoints_goes_on_where_a_lost_machine_left_it(client: Client) -> None:
    (code,) = blocks("how-to/preemptible-machines.md", "python")
    found: dict[str, Any] = {}
    exec(code, found)
    space = {"lr": {"type": "float", "low": 0.1, "high": 0.5}}
    study = client.create_study("taken-away", search_space=space, limits={"trials": 1})
    (trial,) = study.ask()
    undisturbed: list[int] = []

    class TakenAway(Exception):
        pass

    def until_it_is_gone(value: float, step: int) -> bool:
        undisturbed.append(step)
        if step == 7:
            raise TakenAway
        return False

    trial.report = until_it_is_gone  # type: ignore[method-assign,assignment]
    with pytest.raises(TakenAway):
        found["objective"](trial)
    trial.release("taken away")
    (again,) = study.ask()
    assert (again.number, again.attempt, again.params) == (trial.number, 2, trial.params)
    told = _trained(again, found["objective"])
    assert undisturbed == list(range(8))
    assert [report["step"] for report in client.trial("taken-away", 0)["reports"]] == list(range(8, 20))
    lr = trial.params["lr"]
    assert isinstance(lr, float)
    assert told == pytest.approx(-((1 - lr) ** 20))


def _trained(trial: HeldTrial, objective: Any) -> float:
    value = float(objective(trial))
    trial.tell(value)
    return value


# -- MLflow and W&B

_USING_IT = """
from hpo_service.client import Client, TrialPruned

def objective(trial):
    x = trial.suggest_float("x", -1, 1)
    trial.set_user_attr("twice", 2 * x)
    for step in range(3):
        trial.report(x * x + 1 / (step + 1), step)
    if trial.number == 3:
        raise TrialPruned
    return x * x

with Client() as hpo:
    study = hpo.create_study("{name}", direction="minimize", limits={{"trials": 5}})
    study.optimize(objective, callbacks=[{callback}])
"""


@pytest.mark.slow
@pytest.mark.parametrize("store", ["file", "sqlite"])
def test_the_callback_for_mlflow_fills_its_own_store(
    server: str, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    uri = f"file:{tmp_path}/runs" if store == "file" else f"sqlite:///{tmp_path}/runs.db"
    surroundings = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_FILE_STORE": "true", "HPO_SERVER": server}
    surroundings["MLFLOW_DISABLE_TELEMETRY"] = "true"
    name = f"in-mlflow-{store}"
    code = blocks("how-to/track-in-mlflow.md", "python")[0] + _USING_IT.format(name=name, callback="to_mlflow")
    run_python(code, **surroundings)
    for variable, value in surroundings.items():
        monkeypatch.setenv(variable, value)
    from mlflow.tracking import MlflowClient

    runs = MlflowClient(uri)
    by_name = {run.info.run_name: run for run in runs.search_runs(["0"])}
    trials = list(client.open_study(name).trials)
    assert sorted(by_name) == [f"{name}-{trial.number}" for trial in trials]
    for trial in trials:
        run = by_name[f"{name}-{trial.number}"]
        assert float(run.data.params["x"]) == trial.params["x"]
        assert run.data.tags["state"] == ("PRUNED" if trial.number == 3 else "COMPLETE")
        assert float(run.data.tags["twice"]) == 2 * trial.params["x"]
        curve = {each.step: each.value for each in runs.get_metric_history(run.info.run_id, "reported")}
        assert curve == trial.intermediate_values
        assert run.data.metrics.get("value") == trial.value
    afterwards = blocks("how-to/track-in-mlflow.md", "python")[2].replace('"mine"', repr(name))
    code = blocks("how-to/track-in-mlflow.md", "python")[0] + "\nfrom hpo_service.client import Client\n" + afterwards
    run_python(code, **surroundings, MLFLOW_EXPERIMENT_NAME="afterwards")
    experiment = runs.get_experiment_by_name("afterwards")
    assert experiment is not None
    assert len(runs.search_runs([experiment.experiment_id])) == len(trials)


@pytest.mark.slow
def test_the_callback_for_wandb_writes_its_files(server: str, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not among the development packages; tried by hand")
    surroundings = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "HPO_SERVER": server}
    code = blocks("how-to/track-in-mlflow.md", "python")[1] + _USING_IT.format(name="in-wandb", callback="to_wandb")
    run_python(code, **surroundings)
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 5


def test_the_pages_that_are_run_are_those_that_show_something_to_run() -> None:
    """A page of how-to with code in Python that is in no test would be believed, and not known."""
    shown = {str(file.relative_to(DOCS)) for file in DOCS.glob("how-to/*.md") if "```python" in file.read_text()}
    assert shown == {"how-to/preemptible-machines.md", "how-to/track-in-mlflow.md"}
