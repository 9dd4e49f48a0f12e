"""Studies of Optuna's own come over whole, each trial once, however often and from wherever they are imported."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from hpo_service.cli.import_studies import Transfer, parts
from hpo_service.cli.imported_names import possible_names
from hpo_service.client import Client
from hpo_service.domain.number_ranges import as_text, from_text
from hpo_service.tuning.optuna_studies import ForeignTrial
from tests.conftest import Postgres

FAIL, PRUNED = optuna.trial.TrialState.FAIL, optuna.trial.TrialState.PRUNED
SPACE: dict[str, Any] = {"x": optuna.distributions.FloatDistribution(0, 10)}


@pytest.fixture
def foreign(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/optuna.db"
    study = optuna.create_study(study_name="My Search!", storage=url, direction="maximize")
    for number in range(6):
        trial = study.ask()
        rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
        trial.suggest_int("units", 8, 64, step=8)
        if trial.suggest_categorical("kind", ["a", 1, None]) == "a":
            trial.suggest_float("only_a", 0, 1)
        trial.report(rate, 1)
        trial.report(math.nan, 2)
        trial.set_user_attr("host", {"name": "gpu\0-3", "load": math.inf})
        if number == 4:
            study.tell(trial, state=FAIL)
        elif number == 5:
            study.tell(trial, state=PRUNED)
        else:
            study.tell(trial, math.inf if number == 3 else rate)
    study.ask()
    return url


def grow(study: optuna.Study, *values: float, x: float = 1.0) -> None:
    for value in values:
        study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 10)}), value)


def new_study(url: str, name: str, *values: float, **fields: Any) -> optuna.Study:
    study = optuna.create_study(study_name=name, storage=url, **fields)
    grow(study, *values)
    return study


def imported(hpo: Callable[..., Any], server: str, place: str, *options: str) -> tuple[int, list[Any]]:
    """The exit code, and a row for each study."""
    ended = hpo("import", place, "--server", server, "--json", *options)
    return ended.code, json.loads(ended.out)["imports"]


@pytest.mark.slow
def test_its_trials_are_there_with_params_values_and_reports(
    foreign: str, server: str, client: Client, hpo: Callable[..., Any]
) -> None:
    ended = hpo("import", foreign, "--server", server, "--json")
    assert ended.code == 0, ended.err
    (study,) = json.loads(ended.out)["items"]
    assert (study["name"], study["directions"]) == ("my-search", ["maximize"])
    assert study["counts"] == {"WAITING": 0, "RUNNING": 0, "COMPLETE": 4, "PRUNED": 1, "FAIL": 1}
    originals = optuna.load_study(study_name="My Search!", storage=foreign).trials[:6]
    for trial, original in zip(client.trials("my-search"), originals, strict=True):
        assert trial["params"] == original.params
        assert trial["state"] == original.state.name
        assert [report["step"] for report in trial["reports"]] == [1, 2]
        assert trial["metrics"]["host"] == {"name": "gpu\ufffd-3", "load": "Infinity"}
        assert trial["metrics"]["imported"]["number"] == original.number
        assert trial["metrics"]["imported"]["finished_at"].endswith("+00:00")
    assert study["best"]["values"] == ["Infinity"]
    again = hpo("import", foreign, "--server", server)
    assert (again.code, "0 trials (and 6 before)" in again.out, "1 trial still running" in again.out) == (0, True, True)
    assert client.study("my-search")["counts"]["COMPLETE"] == 4


@pytest.mark.slow
def test_a_source_that_has_grown_gives_what_is_new_and_what_was_unfinished(
    tmp_path: Path, server: str, client: Client, hpo: Callable[..., Any]
) -> None:
    url = f"sqlite:///{tmp_path}/grown.db"
    study = new_study(url, "grown", *range(4))
    running = study.ask(SPACE)
    grow(study, *range(5, 10))
    _, (row,) = imported(hpo, server, url)
    assert (row["taken"], row["there_before"]) == (9, 0)
    study.tell(running, 4)
    grow(study, 10)
    _, (row,) = imported(hpo, server, url)
    assert (row["taken"], row["there_before"]) == (2, 9)
    told = {trial["metrics"]["imported"]["number"]: trial["values"] for trial in client.trials("grown")}
    assert told == {number: [float(number)] for number in range(11)}
    assert client.study("grown")["metadata"]["imported"]["taken"] == "0-10"


@pytest.mark.slow
def test_an_import_that_was_broken_off_goes_on_without_sending_twice(
    tmp_path: Path, server: str, client: Client, hpo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/broken.db"
    study = new_study(url, "broken", *range(3))
    monkeypatch.setattr("hpo_service.cli.import_studies.MOST_IN_A_PART", 2)
    send = Client.import_trials
    sent: list[int] = []

    def lost(self: Client, *arguments: Any, **options: Any) -> Any:
        send(self, *arguments, **options)
        sent.append(len(arguments[1]))
        if len(sent) == 2:
            raise RuntimeError("the answer was lost, and this program with it")

    monkeypatch.setattr(Client, "import_trials", lost)
    assert hpo("import", url, "--server", server).code == 1
    monkeypatch.setattr(Client, "import_trials", send)
    assert client.study("broken")["metadata"]["imported"] | {"storage": ""} == {
        "storage": "",
        "study": "broken",
        "taken": "0-1",
        "sending": "2",
    }
    grow(study, 3)
    _, (row,) = imported(hpo, server, url)
    assert sorted(trial["values"][0] for trial in client.trials("broken")) == [0, 1, 2, 3]
    assert row["taken"] == 2
    assert "sending" not in client.study("broken")["metadata"]["imported"]


@pytest.mark.slow
def test_a_study_that_does_not_fit_stops_no_other_and_is_named(
    tmp_path: Path, server: str, client: Client, hpo: Callable[..., Any]
) -> None:
    url = f"sqlite:///{tmp_path}/several.db"
    for number in range(5):
        new_study(url, f"several-{number}", 1.0, 2.0)
    optuna.create_study(study_name="several-empty", storage=url)
    odd = optuna.create_study(study_name="several-odd", storage=url)
    odd.tell(odd.ask({"x": optuna.distributions.CategoricalDistribution([1.0, math.inf])}), 1)
    new_study(url, "several-last", 1.0)
    ended = hpo("import", url, "--server", server)
    assert ended.code == 1
    lines = ended.out.splitlines()
    assert lines[0].split() == ["FROM", "STUDY", "TAKEN", "LEFT"]
    assert "no finished trial" in next(line for line in lines if line.startswith("several-empty"))
    assert "finite" in next(line for line in lines if line.startswith("several-odd"))
    assert client.study("several-last")["counts"]["COMPLETE"] == 1
    names = {study["name"] for study in client.studies()}
    assert {"several-empty", "several-odd"}.isdisjoint(names)


@pytest.mark.slow
def test_the_best_is_optunas_best_where_there_are_constraints(
    tmp_path: Path, server: str, client: Client, hpo: Callable[..., Any]
) -> None:
    url = f"sqlite:///{tmp_path}/constrained.db"
    study = optuna.create_study(study_name="constrained", storage=url, direction="minimize")
    for number in range(10):
        trial = study.ask(SPACE)
        trial.set_constraint("memory", 1.0 if number < 8 else -1.0)
        study.tell(trial, float(number))
    # as versions before 5 wrote it
    study.add_trial(
        optuna.trial.create_trial(
            params={"x": 1.0}, distributions=SPACE, value=-5.0, system_attrs={"constraints": [-1.0, 0.5]}
        )
    )
    assert imported(hpo, server, url)[0] == 0
    trials = list(client.trials("constrained"))
    assert client.study("constrained")["best"]["number"] == study.best_trial.number == 8
    assert [trial["reason"] for trial in trials] == [*["infeasible"] * 8, None, None, "infeasible"]
    assert trials[2]["state"] == "FAIL"
    assert trials[2]["metrics"]["imported"]["values"] == [2.0]
    assert trials[2]["metrics"]["imported"]["constraints"] == {"memory": 1.0}


@pytest.mark.slow
def test_another_source_of_the_same_name_is_refused_and_may_have_another_name(
    tmp_path: Path, server: str, client: Client, hpo: Callable[..., Any]
) -> None:
    first, second = (f"sqlite:///{tmp_path}/{name}.db" for name in ("first", "second"))
    new_study(first, "same", 1.0, 2.0)
    new_study(second, "same", 3.0)
    imported(hpo, server, first)
    ended = hpo("import", second, "--server", server)
    assert (ended.code, "--as NAME" in ended.out, f"{tmp_path}/first.db" in ended.out) == (1, True, True)
    assert client.study("same")["counts"]["COMPLETE"] == 2
    for _ in range(2):
        code, (row,) = imported(hpo, server, second, "--as", "other")
        assert (code, row["study"]) == (0, "other")
    assert client.study("other")["counts"]["COMPLETE"] == 1
    client.create({"name": "made-here", "search_space": {"x": {"type": "float", "low": 0, "high": 10}}})
    new_study(second, "made-here", 1.0)
    ended = hpo("import", second, "--server", server, "--study", "made-here")
    assert (ended.code, "was not imported" in ended.out) == (1, True)
    assert hpo("import", second, "--server", server, "--as", "two").code == 2


@pytest.mark.slow
def test_names_that_cannot_be_kept_get_readable_ones_and_never_anothers(
    tmp_path: Path, server: str, client: Client, hpo: Callable[..., Any]
) -> None:
    url = f"sqlite:///{tmp_path}/names.db"
    names = ["実験一", "Exp 1", "exp-1", "Étude №2", "x" * 100, "x" * 99, "a--b"]
    for value, name in enumerate(names):
        new_study(url, name, value)
    rows = {row["from"]: row["study"] for row in imported(hpo, server, url)[1]}
    assert len(set(rows.values())) == len(names)
    assert (rows["exp-1"], rows["a--b"], rows["実験一"]) == ("exp-1", "a--b", "study-1")
    assert rows["Exp 1"].startswith("exp-1-")
    assert rows["Étude №2"] == "etude-no2"
    assert rows["x" * 100].startswith("x" * 50)
    for value, name in enumerate(names):
        assert [trial["values"] for trial in client.trials(rows[name])] == [[value]]
    assert [row["taken"] for row in imported(hpo, server, url)[1]] == [0] * len(names)


@pytest.mark.slow
def test_a_study_keeps_its_name_when_another_one_comes_near_to_it_later(
    tmp_path: Path, server: str, client: Client, hpo: Callable[..., Any]
) -> None:
    url = f"sqlite:///{tmp_path}/later.db"
    new_study(url, "Later One", 1)
    assert imported(hpo, server, url)[1][0]["study"] == "later-one"
    new_study(url, "later-one", 2)
    rows = {row["from"]: (row["study"], row["taken"]) for row in imported(hpo, server, url)[1]}
    assert rows["Later One"] == ("later-one", 0)
    assert rows["later-one"][0].startswith("later-one-")
    assert rows["later-one"][1] == 1


def test_a_name_is_this_studys_alone() -> None:
    assert possible_names("good", {"good": 1}) == ["good", possible_names("good", {"good": 1})[1]]
    assert possible_names("Good", {"Good": 1})[0] == "good"
    (tagged,) = possible_names("Good", {"Good": 1, "good": 2})
    assert tagged.startswith("good-")
    (long,) = possible_names("x" * 100, {"x" * 100: 1, "x" * 99: 2})
    assert len(long) == 63


@pytest.mark.slow
def test_a_trial_outside_its_range_is_left_with_a_reason_and_an_empty_study_never(
    tmp_path: Path, server: str, client: Client, hpo: Callable[..., Any]
) -> None:
    url = f"sqlite:///{tmp_path}/outside.db"
    study = optuna.create_study(study_name="outside", storage=url)
    study.enqueue_trial({"x": 100})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.optimize(lambda trial: trial.suggest_float("x", 0, 10), n_trials=3)
        alone = optuna.create_study(study_name="outside-alone", storage=url)
        alone.enqueue_trial({"x": 100})
        alone.optimize(lambda trial: trial.suggest_float("x", 0, 10), n_trials=1)
    code, (row, refused) = imported(hpo, server, url)
    assert (code, row["taken"]) == (1, 2)
    assert row["left"] == ["trial 0: x: 100.0 lies outside [0, 10]"]
    assert "100.0 lies outside" in refused["refused"]
    assert "outside-alone" not in {study["name"] for study in client.studies()}


@pytest.mark.slow
def test_conditions_are_inferred_where_presence_follows_a_choice(
    tmp_path: Path, server: str, client: Client, hpo: Callable[..., Any]
) -> None:
    url = f"sqlite:///{tmp_path}/conditional.db"
    study = optuna.create_study(study_name="conditional", storage=url)

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("activation", ["relu", "tanh"])
        kind = trial.suggest_categorical("opt", ["sgd", "momentum", "adam"])
        if kind != "sgd":
            trial.suggest_float("beta", 0, 1)
        if kind == "adam" and trial.suggest_categorical("schedule", ["flat", "cosine"]) == "cosine":
            trial.suggest_int("warm", 1, 9)
        layers = trial.suggest_int("layers", 1, 3)
        for layer in range(layers):
            trial.suggest_int(f"units_{layer}", 8, 64)
        if trial.number == 7:
            raise optuna.TrialPruned
        return trial.number

    study.sampler = optuna.samplers.RandomSampler(seed=3)
    study.optimize(objective, n_trials=60)
    _, (row,) = imported(hpo, server, url)
    study_here = client.study("conditional")
    space = study_here["search_space"]
    assert {name: parameter["when"] for name, parameter in space.items() if parameter["when"]} == {
        "beta": {"opt": ["momentum", "adam"]},
        "schedule": {"opt": ["adam"]},
        "warm": {"schedule": ["cosine"]},
    }
    assert row["taken"] == 60
    assert [reason.split(":")[0] for reason in row["left"]] == ["when units_1, units_2 exist"]
    assert study_here["define_by_run"] is True, "nothing says when these exist, but what trials ask for"


@pytest.mark.slow
def test_attributes_metric_names_and_notes_come_along(
    tmp_path: Path, server: str, client: Client, hpo: Callable[..., Any]
) -> None:
    from optuna_dashboard import save_note

    url = f"sqlite:///{tmp_path}/noted.db"
    study = optuna.create_study(study_name="noted", storage=url, directions=["minimize", "maximize"])
    study.set_metric_names(["loss", "accuracy"])
    study.set_user_attr("team", {"name": "vision", "limit": math.nan})
    save_note(study, "what we look for")
    trial = study.ask(SPACE)
    save_note(trial, "this one was odd")
    study.tell(trial, [0.1, 0.9])
    assert imported(hpo, server, url)[0] == 0
    metadata = client.study("noted")["metadata"]
    assert metadata["user_attrs"] == {"team": {"name": "vision", "limit": "NaN"}}
    assert (metadata["metric_names"], metadata["note"]) == (["loss", "accuracy"], "what we look for")
    (read,) = client.trials("noted")
    assert (read["values"], read["metrics"]["imported"]["note"]) == ([0.1, 0.9], "this one was odd")


@pytest.mark.slow
def test_a_journal_file_and_plain_paths_are_taken(
    tmp_path: Path, server: str, client: Client, hpo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        journal = JournalStorage(JournalFileBackend("my.journal"))
        grow(optuna.create_study(study_name="from-journal", storage=journal), 1, 2)
    new_study("sqlite:///plain.db", "from-path", 1, 2, 3)
    assert imported(hpo, server, "my.journal")[1][0]["taken"] == 2
    for written in (f"{tmp_path}/my.journal", "journal://my.journal"):
        assert imported(hpo, server, written)[1][0]["there_before"] == 2
    assert imported(hpo, server, "plain.db")[1][0]["taken"] == 3
    for written in ("sqlite:///plain.db", f"sqlite:///{tmp_path}/plain.db"):
        assert imported(hpo, server, written)[1][0]["there_before"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.journal", "plain.db"]


@pytest.mark.slow
def test_a_postgresql_database_is_taken_by_the_url_people_write(
    postgres: Postgres, server: str, hpo: Callable[..., Any]
) -> None:
    postgres.execute("CREATE DATABASE of_optuna")
    new_study(postgres.url("of_optuna").replace("postgresql:", "postgresql+psycopg:"), "from-postgresql", 1, 2)
    assert imported(hpo, server, postgres.url("of_optuna"))[1][0]["taken"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no such file"),
        (b"", "it is empty"),
        (b"hello", "neither an SQLite database nor a journal"),
        ("sqlite", "lacks the table studies"),
        ("folder", "is no file"),
        ("old", "optuna storage upgrade --storage URL"),
    ],
)
def test_what_is_no_database_of_optunas_is_said_in_a_line_and_left_alone(
    tmp_path: Path, server: str, hpo: Callable[..., Any], content: Any, words: str
) -> None:
    path = tmp_path / "some.db"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "folder":
        path.mkdir()
    elif content == "sqlite":
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE t (x)")
        connection.close()
    elif content == "old":
        new_study(f"sqlite:///{path}", "old", 1)
        connection = sqlite3.connect(path)
        connection.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
        connection.commit()
        connection.close()
    for place in (str(path), f"sqlite:///{path}"):
        ended = hpo("import", place, "--server", server)
        assert (ended.code, ended.out) == (1, "")
        assert words in ended.err
        assert len(ended.err.splitlines()) == 1
    assert path.exists() == (content is not None)


@pytest.mark.slow
def test_a_copy_elsewhere_is_another_source(tmp_path: Path, server: str, hpo: Callable[..., Any]) -> None:
    new_study(f"sqlite:///{tmp_path}/original.db", "copied", 1)
    shutil.copy(tmp_path / "original.db", tmp_path / "copy.db")
    assert imported(hpo, server, f"{tmp_path}/original.db")[0] == 0
    assert imported(hpo, server, f"{tmp_path}/copy.db")[0] == 1


def test_a_call_holds_no_more_than_the_server_takes() -> None:
    bodies: list[dict[str, Any]] = [{"params": {"x": 0.5}, "state": "COMPLETE", "values": [n]} for n in range(2500)]
    bodies += [{"params": {"x": 0.5}, "state": "FAIL", "reports": [{"step": s, "value": 0.1} for s in range(9000)]}] * 3
    trials = [ForeignTrial(number, body) for number, body in enumerate(bodies)]
    divided = list(parts(trials))
    assert [trial for part in divided for trial in part] == trials
    assert max(map(len, divided)) <= 1000
    assert max(len(json.dumps([trial.body for trial in part])) for part in divided) < 2**20


@pytest.mark.slow
def test_an_import_beside_another_one_sends_nothing_twice(
    tmp_path: Path, server: str, client: Client, hpo: Callable[..., Any]
) -> None:
    url = f"sqlite:///{tmp_path}/beside.db"
    new_study(url, "beside", 1, 2)
    imported(hpo, server, url)
    storage = client.study("beside")["metadata"]["imported"]["storage"]
    late = Transfer(client, "beside", {"storage": storage, "study": "beside"})
    noted = late._noted()
    late._noted = lambda: noted  # type: ignore[method-assign]  # what it knew before the other one had begun
    body = {"params": {"x": 1.0}, "state": "COMPLETE", "values": [3.0]}
    Transfer(client, "beside", {"storage": storage, "study": "beside"}).send([ForeignTrial(2, body)])
    with pytest.raises(Exception, match="changed"):
        late.send([ForeignTrial(2, body)])
    assert client.study("beside")["counts"]["COMPLETE"] == 3


@pytest.mark.parametrize(("numbers", "text"), [(set(), ""), ({3}, "3"), ({0, 1, 2, 5, 7, 8}, "0-2,5,7-8")])
def test_numbers_are_written_as_ranges(numbers: set[int], text: str) -> None:
    assert as_text(numbers) == text
    assert from_text(text) == numbers
