"""What workers keep: checkpoints that a retry goes on from, and the network that the sealed test has tested."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpo_service.cli import main
from hpo_service.domain.errors import NotFound
from hpo_worker.datasets import load
from tests.patience import PATIENCE_SECONDS
from tests.worker_loop.real_server import create, wait_for

TRAIN = """
    import json, os, sys
    folder = os.environ["HPO_CHECKPOINTS"]
    checkpoint = os.path.join(folder, "epoch.json")
    first = json.load(open(checkpoint))["epoch"] + 1 if os.path.exists(checkpoint) else 0
    for epoch in range(first, 6):
        with open(os.path.join(sys.argv[2], "epochs"), "a") as log:
            log.write(f"{os.environ['HPO_TRIAL']} {epoch}\\n")
        with open(checkpoint + ".tmp", "w") as file:
            json.dump({"epoch": epoch}, file)
        os.replace(checkpoint + ".tmp", checkpoint)
        print(json.dumps({"step": epoch, "value": epoch / 10}), flush=True)
        if epoch == 3 and first == 0:
            sys.exit(75)  # the machine is taken away
"""


@pytest.mark.slow
def test_a_trial_saves_and_loads(hpo: Any, tmp_path: Path) -> None:
    study = create(hpo, "saving", trials=2)
    (trial,) = study.ask()
    assert trial.artifacts == []
    trial.save("checkpoint", b"epoch 1")
    (tmp_path / "file").write_bytes(bytes(3_000_000))
    trial.save("large.pt", tmp_path / "file")
    trial.save("large.txt", str(tmp_path / "file"))
    with pytest.raises(NotFound):
        trial.load("other")
    trial.release()
    (again,) = study.ask()
    assert again.artifacts == ["checkpoint", "large.pt", "large.txt"]
    assert again.load("checkpoint") == b"epoch 1"
    assert again.load("large.pt") == bytes(3_000_000)


@pytest.mark.slow
def test_a_command_goes_on_from_its_checkpoint(hpo: Any, start: Any, tmp_path: Path) -> None:
    create(hpo, "resumed", trials=2)
    (tmp_path / "train.py").write_text(textwrap.dedent(TRAIN))
    command = (sys.executable, str(tmp_path / "train.py"), "{x}", str(tmp_path))
    agent = start("hpo_service", "agent", "resumed", "--json", "--", *command)
    output, errors = agent.communicate(timeout=PATIENCE_SECONDS)
    assert agent.returncode == 0, errors
    assert json.loads(output)["trials"]["COMPLETE"] == 2
    epochs = (tmp_path / "epochs").read_text().split("\n")[:-1]
    assert sorted(epochs) == [f"{trial} {epoch}" for trial in range(2) for epoch in range(6)]
    for trial in hpo.trials("resumed"):
        assert (trial["attempt"], trial["artifacts"]) == (2, ["epoch.json"])


def scores(file: Path, x: np.ndarray) -> np.ndarray:
    """By the loader that docs/fleets.md shows."""
    page = (Path(__file__).parents[2] / "docs" / "fleets.md").read_text(encoding="utf-8")
    (loader,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "network.npz" in code)
    found = {"numpy": np, "x": x}
    exec(loader.replace('"network.npz"', repr(str(file))), found)
    probabilities = found["probabilities"]
    assert isinstance(probabilities, np.ndarray)
    assert (probabilities.argmax(axis=-1) == found["classes"]).all()
    return probabilities


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"batch_norm": True, "dropout": 0.2, "activation": "tanh"}])
def test_the_network_that_was_tested_is_taken_home(hpo: Any, start: Any, tmp_path: Path, how: dict[str, Any]) -> None:
    name = f"taken-home-{len(how)}"
    objective = {"kind": "neural_network", "samples": 300, "epochs": 5, "hidden_layers": 2, **how}
    space = {"learning_rate": {"type": "float", "low": 0.01, "high": 0.1, "log": True}}
    sampler = {"name": "random", "seed": 1}
    hpo.create_study(name, space, sampler=sampler, objective=objective, limits={"trials": 1})
    worker = start("hpo_worker", "--processes", "1", "--study", name, "--until-done")
    worker.communicate(timeout=PATIENCE_SECONDS)
    hpo.test(name, ensemble=3)
    worker = start("hpo_worker", "--processes", "1")
    wait_for(lambda: hpo.study(name)["test"]["state"] == "COMPLETE")
    worker.terminate()
    worker.communicate(timeout=PATIENCE_SECONDS)
    test = hpo.study(name)["test"]

    file = tmp_path / "network.npz"
    with pytest.raises(SystemExit) as ended:
        main(["study", "artifact", name, "network.npz", "-o", str(file), "--server", hpo.server])
    assert not ended.value.code

    dataset = load("mnist", None)
    assert all(array.dtype == np.float32 for key, array in np.load(file).items() if key[0] in "Wb")
    found = float(np.mean(scores(file, dataset.x_test).argmax(axis=-1) == dataset.t_test))
    assert found == pytest.approx(test["test_accuracy"], abs=2e-4)
