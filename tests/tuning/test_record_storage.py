"""Our record behind Optuna's storage interface: its own contract suite, and the rules we add."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.testing.pytest_storages import StorageTestCase

from hpo_service.domain.search_space import params_faults
from hpo_service.domain.study import StudySpec
from hpo_service.store import Database
from hpo_service.store.optuna_rows import OptunaRows
from hpo_service.tuning.storage import ReadOnly, RecordStorage
from tests.tuning.writing_storage import WritingStorage


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.mark.slow
class TestItIsAStorageOfOptunas(StorageTestCase):
    @pytest.fixture
    def storage(self, database: Database) -> BaseStorage:
        return WritingStorage(database)


def served(client: Any, create: Any, ask: Any) -> None:
    """A study over HTTP with trials in several states, two rounds, every kind of param."""
    create(
        search_space={
            "lr": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
            "units": {"type": "int", "low": 32, "high": 256, "log": True},
            "kind": {"type": "categorical", "choices": [True, 1, "1", None]},
            "momentum": {"type": "float", "low": 0.5, "high": 0.9, "step": 0.1, "when": {"kind": [1, True]}},
        }
    )
    for step in range(12):
        (trial,) = ask()
        call = f"/v1/studies/mnist/trials/{trial['number']}"
        value: Any = ["Infinity", "-Infinity", "NaN"][step] if step < 3 else trial["params"]["lr"]
        report = {"attempt": 1, "reports": [{"step": 0, "value": value}, {"step": 7, "value": 0.5}]}
        assert client.post(f"{call}:report", json=report).status_code == 200
        if step % 4 != 3:
            state = "PRUNED" if step == 5 else "COMPLETE"
            metrics = {
                "step": step,
                "losses": [0.5, 1e-7],
                "note": 'é"',
                "model": {"layers": 3},
                "none": None,
                "ok": True,
            }
            told = {"attempt": 1, "state": state, "values": [value], "metrics": metrics}
            assert client.post(f"{call}:tell", json=told).status_code == 200
        if step == 8:
            assert client.post("/v1/studies/mnist:narrow", json={}).status_code == 201
    enqueued = {"trials": [{"params": {"kind": "1"}}]}
    assert client.post("/v1/studies/mnist/trials:enqueue", json=enqueued).status_code == 201


def test_it_shows_the_trials_that_the_api_and_the_views_show(client: Any, create: Any, ask: Any) -> None:
    served(client, create, ask)
    database = client.app.state.service.database
    study = optuna.load_study(study_name="mnist", storage=RecordStorage(database))
    told = client.get("/v1/studies/mnist/trials?page_size=1000").json()["items"]
    assert len(told) == 13
    for trial, seen in zip(told, study.trials, strict=True):
        assert (seen.number, seen.state.name) == (trial["number"], trial["state"])
        assert list(seen.params.items()) == list(trial["params"].items())
        assert [type(value) for value in seen.params.values()] == [type(value) for value in trial["params"].values()]
        words = {"Infinity": float("inf"), "-Infinity": -float("inf")}
        assert seen.values == (trial["values"] and [words.get(value, value) for value in trial["values"]])
        assert list(seen.intermediate_values) == [report["step"] for report in trial["reports"]]
    url = str(database.url.render_as_string(hide_password=False))
    stock = optuna.load_study(study_name="mnist", storage=optuna.storages.RDBStorage(url))
    assert [repr(trial) for trial in stock.trials] == [repr(trial) for trial in study.trials]


def test_read_only_means_that_every_write_is_refused(client: Any, create: Any, ask: Any) -> None:
    served(client, create, ask)
    storage = RecordStorage(client.app.state.service.database)
    study = optuna.load_study(study_name="mnist", storage=storage)
    running = study.trials[3]._trial_id
    for write in (
        study.ask,
        lambda: study.set_user_attr("x", 1),
        lambda: study.add_trial(study.trials[4]),
        lambda: optuna.create_study(storage=storage),
        lambda: optuna.delete_study(study_name="mnist", storage=storage),
        lambda: storage.set_trial_state_values(running, optuna.trial.TrialState.FAIL),
        lambda: storage.set_trial_intermediate_value(running, 0, 1.0),
    ):
        with pytest.raises(ReadOnly, match="reading only"):
            write()


@pytest.mark.slow
def test_what_was_read_is_not_read_again(database: Database) -> None:
    storage = WritingStorage(database)
    study = optuna.create_study(storage=storage, study_name="own")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=5)
    reader = RecordStorage(database)
    first = reader.get_all_trials(study._study_id, deepcopy=False)
    again = reader.get_all_trials(study._study_id, deepcopy=False)
    assert all(one is other for one, other in zip(first, again, strict=True))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    later = reader.get_all_trials(study._study_id, deepcopy=False)
    assert len(later) == 6
    assert all(one is other for one, other in zip(first, later, strict=False))


@pytest.mark.slow
def test_optimize_runs_on_the_record_and_the_study_appears_in_it(database: Database) -> None:
    storage = WritingStorage(database)
    study = optuna.create_study(storage=storage, study_name="own", direction="maximize")

    def objective(trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("kind", ["a", "b"])
        trial.report(0.5, step=1)
        return trial.suggest_float("x", 1e-3, 1, log=True) + trial.suggest_int("n", 1, 9, step=2) * (kind == "a")

    study.optimize(objective, n_trials=15)
    row = database.read(lambda record: OptunaRows(record).study(study._study_id))
    spec = StudySpec.model_validate(row.spec)
    assert (spec.name, spec.maximizes, list(spec.search_space.names())) == ("own", True, ["kind", "x", "n"])
    trials = database.read(lambda record: OptunaRows(record).trials_since(study._study_id, -1))
    assert [trial.params for trial in trials] == [trial.params for trial in study.trials]
    assert all(not params_faults(spec.search_space, trial.params) for trial in trials)
    again = optuna.load_study(study_name="own", storage=RecordStorage(database))
    assert [repr(trial) for trial in again.trials] == [repr(trial) for trial in study.trials]
