"""Stock Optuna opens the live database and sees what the API says, and cannot write."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import FrozenTrial
from sqlalchemy.engine import make_url

from hpo_service.store import optuna_views
from hpo_service.store.engine import database_url as engine_url
from hpo_service.store.engine import writing_engine
from hpo_service.store.tables import reports, rounds, studies, trials

SPACE: dict[str, Any] = {
    "lr": {"type": "float", "low": 1e-6, "high": 0.01, "log": True, "step": None, "when": None},
    "units": {"type": "int", "low": 1, "high": 9, "log": False, "step": 2, "when": None},
    "kind": {"type": "categorical", "choices": [True, 1, "1", None, 0.5, 'é"\\'], "when": None},
    "momentum": {"type": "float", "low": 0.5, "high": 0.99, "log": False, "step": None, "when": {"kind": [1]}},
}
# The second round has expanded a side, narrowed another, and dropped choices.
EXPANDED = {
    "lr": {**SPACE["lr"], "low": 1.0000000000000001e-07, "high": 0.001},
    "units": {**SPACE["units"], "low": 3, "high": 11},
    "kind": {**SPACE["kind"], "choices": ["1"]},
}
STARTED, FINISHED = 1_800_000_000.123456, 1_800_000_031.5


LISTS = [[64], [64, 64.0], ["é", 1e-05, None, True, [2]], [True], [1], "é", 1e-05, None]


def test_lists_are_read_as_their_json_and_every_choice_is_found(client: Any, database_url: str) -> None:
    space = {"c": {"type": "categorical", "choices": LISTS}, "ordered": {"type": "categorical", "choices": [1, 2]}}
    space["ordered"]["ordered"] = True  # type: ignore[assignment]
    client.post("/v1/studies", json={"name": "lists", "search_space": space})
    trials = [{"params": {"c": choice, "ordered": 2.0}, "state": "COMPLETE", "values": [1]} for choice in LISTS]
    assert client.post("/v1/studies/lists/trials:import", json={"trials": trials}).status_code == 201
    study = optuna.load_study(study_name="lists", storage=stock(database_url))
    seen = [trial.params["c"] for trial in study.trials]
    assert [json.loads(one) if isinstance(one, str) and one[0] == "[" else one for one in seen] == LISTS
    assert [trial.distributions["c"].to_internal_repr(one) for trial, one in zip(study.trials, seen, strict=True)] == [
        *range(8)
    ]
    assert len({trial.distributions["c"] for trial in study.trials}) == 1, "they can be hashed"
    assert {trial.params["ordered"] for trial in study.trials} == {2}


def test_the_space_of_a_study_that_is_defined_by_run_is_the_one_that_it_has_grown_to(
    client: Any, database_url: str
) -> None:
    body = {"name": "grown", "search_space": {}, "define_by_run": True, "sampler": {"name": "random", "seed": 1}}
    assert client.post("/v1/studies", json=body).status_code == 201
    for number, names in enumerate((("lr",), ("lr", "kind"), ("units",))):
        client.post("/v1/studies/grown/trials:ask", json={"worker_id": "w", "request_id": str(number)})
        call = f"/v1/studies/grown/trials/{number}"
        parameters = {name: {key: said for key, said in SPACE[name].items() if key != "when"} for name in names}
        suggested = client.post(f"{call}:suggest", json={"attempt": 1, "parameters": parameters})
        assert suggested.status_code == 200, suggested.text
        told = {"attempt": 1, "state": "COMPLETE", "values": [number], "metrics": {"seconds": 1.5, "of": list(names)}}
        assert client.post(f"{call}:tell", json=told).status_code == 200
    client.post("/v1/studies/grown/trials:enqueue", json={"trials": [{"params": {"nobody knows it": 3}}]})
    trials = optuna.load_study(study_name="grown", storage=stock(database_url)).trials
    assert [list(trial.params) for trial in trials] == [["lr"], ["lr", "kind"], ["units"], []]
    assert trials[0].distributions["lr"] == optuna.distributions.FloatDistribution(1e-6, 0.01, log=True)
    assert trials[2].distributions["units"] == optuna.distributions.IntDistribution(1, 9, step=2)
    assert [trial.user_attrs for trial in trials[:2]] == [
        {"seconds": 1.5, "of": ["lr"]},
        {"seconds": 1.5, "of": ["lr", "kind"]},
    ]
    api = [client.get(f"/v1/studies/grown/trials/{number}").json()["params"] for number in range(3)]
    assert api[0] == trials[0].params


@pytest.fixture
def viewed(database_url: str) -> str:
    """A database with a study whose trials have every state, kind of value and kind of param."""
    engine = writing_engine(engine_url(database_url))
    with engine.begin() as connection:
        study = connection.execute(
            sa.insert(studies).returning(studies.c.id), study_row("mnist", ["maximize"])
        ).scalar_one()
        other = connection.execute(
            sa.insert(studies).returning(studies.c.id), study_row("two", ["minimize", "maximize"])
        ).scalar_one()
        for number, space in enumerate((SPACE, EXPANDED)):
            connection.execute(sa.insert(rounds), round_row(study, number, space))
        connection.execute(sa.insert(rounds), round_row(other, 0, SPACE))
        for trial in TRIALS:
            values = trial["values"]
            first = values[0] if values and not isinstance(values[0], str) else None
            key = connection.execute(
                sa.insert(trials).returning(trials.c.id),
                {**trial_row(study), **{k: v for k, v in trial.items() if k != "reports"}, "value": first},
            ).scalar_one()
            for step, value in trial.get("reports", {}).items():
                connection.execute(sa.insert(reports), {"trial_id": key, "step": step, "value": value})
        connection.execute(
            sa.insert(trials), {**trial_row(other), "number": 0, "state": "COMPLETE", "params": {}, "values": [1, -2.5]}
        )
    engine.dispose()
    return database_url


def study_row(name: str, directions: list[str]) -> dict[str, Any]:
    spec = {"name": name, "directions": directions, "search_space": SPACE}
    attrs = {"s": 'q"\\é', "real": 0.30000000000000004, "deep": {"a": [1, None]}, "nan": {"$json": "NaN"}}
    return {
        "name": name,
        "spec": spec,
        "created_with": "{}",
        "state": "ACTIVE",
        "created_at": 0.0,
        "lease_seconds": 60.0,
        "user_attrs": attrs,
        "system_attrs": {"flag": True, 'odd "key"': False, "n": None, "k": 7},
    }


def round_row(study: int, number: int, space: dict[str, Any]) -> dict[str, Any]:
    empty: list[Any] = []
    counts = {"trials": 0, "finished": 0, "revision": 0}
    return {"study_id": study, "round": number, "search_space": space, "from_trials": empty, "changes": empty} | counts


def trial_row(study: int) -> dict[str, Any]:
    row: dict[str, Any] = {"study_id": study, "seed": 1, "attempt": 1, "lapsed": 0, "revision": 1}
    row |= {"user_attrs": {"worker": "w"}, "system_attrs": {}, "values": None, "lease_expires_at": 9.0}
    return row | {"started_at": STARTED, "finished_at": FINISHED}


TRIALS: list[dict[str, Any]] = [
    {
        "number": 0,
        "state": "COMPLETE",
        "params": {"lr": 1.2345678901234567e-05, "units": 3, "kind": 1, "momentum": 0.8999999999999999},
        "values": [0.1],
        "reports": {0: 0.25, 1: None, 2: math.inf, 3: -math.inf},
    },
    {"number": 1, "state": "COMPLETE", "params": {"kind": True, "units": 11}, "values": ["Infinity"]},
    {"number": 2, "state": "COMPLETE", "params": {"kind": "1", "lr": 2e-7}, "values": ["-Infinity"]},
    {"number": 3, "state": "PRUNED", "params": {"kind": None}, "values": [-5.0], "reports": {4: -5.0}},
    {"number": 4, "state": "PRUNED", "params": {"kind": 0.5}, "values": None},
    {"number": 5, "state": "FAIL", "params": {"kind": 'é"\\'}, "values": None, "started_at": None},
    {"number": 6, "state": "RUNNING", "params": {"kind": 1.0}, "values": None, "finished_at": None},
    {"number": 7, "state": "WAITING", "params": {"lr": 1e-6}, "values": None, "started_at": None, "finished_at": None},
]


def stock(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


def read(url: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name="mnist", storage=stock(url)).get_trials()


def test_load_study_sees_the_same_trials(viewed: str) -> None:
    for told, seen in zip(TRIALS, read(viewed), strict=True):
        assert (seen.number, seen.state.name) == (told["number"], told["state"])
        assert list(seen.params.items()) == list(told["params"].items())
        assert all(type(seen.params[name]) is not bool or told["params"][name] is True for name in seen.params)
        values = {"Infinity": math.inf, "-Infinity": -math.inf}
        assert seen.values == (told["values"] and [values.get(value, value) for value in told["values"]])
        reported = {step: math.nan if value is None else value for step, value in told.get("reports", {}).items()}
        assert str(seen.intermediate_values) == str(reported)


def test_times_are_utc_to_the_microsecond(viewed: str) -> None:
    complete, failed, waiting = (read(viewed)[number] for number in (0, 5, 7))
    assert complete.datetime_start is not None
    assert complete.datetime_start.astimezone(UTC) == datetime(2027, 1, 15, 8, 0, 0, 123456, tzinfo=UTC)
    assert complete.datetime_complete is not None
    assert complete.datetime_complete.timestamp() == FINISHED
    assert failed.datetime_start == failed.datetime_complete, "it never started"
    assert waiting.datetime_start is None


def test_a_param_has_one_distribution_whatever_the_rounds(viewed: str) -> None:
    found: dict[str, set[Any]] = {}
    for trial in read(viewed):
        for name, distribution in trial.distributions.items():
            found.setdefault(name, set()).add(distribution)
            assert distribution._contains(distribution.to_internal_repr(trial.params[name]))
    assert found == {
        "lr": {optuna.distributions.FloatDistribution(1.0000000000000001e-07, 0.01, log=True)},
        "units": {optuna.distributions.IntDistribution(1, 11, step=2)},
        "kind": {optuna.distributions.CategoricalDistribution(SPACE["kind"]["choices"])},
        "momentum": {optuna.distributions.FloatDistribution(0.5, 0.99)},
    }


def test_attributes_and_directions_are_the_same(viewed: str) -> None:
    study = optuna.load_study(study_name="two", storage=stock(viewed))
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert study.trials[0].values == [1.0, -2.5]
    assert study.trials[0].user_attrs == {"worker": "w"}
    attrs = study.user_attrs
    assert math.isnan(attrs.pop("nan"))
    assert attrs == {"s": 'q"\\é', "real": 0.30000000000000004, "deep": {"a": [1, None]}}
    system = study._storage.get_study_system_attrs(study._study_id)
    assert list(system.items()) == [("flag", True), ('odd "key"', False), ("n", None), ("k", 7)]
    assert optuna.get_all_study_names(stock(viewed)) == ["mnist", "two"]


@pytest.mark.slow
def test_the_best_trial_is_found_by_their_query(viewed: str) -> None:
    study = optuna.load_study(study_name="mnist", storage=stock(viewed))
    assert (study.best_trial.number, study.best_value) == (1, math.inf)


def test_importances_work_on_the_live_database(viewed: str) -> None:
    study = optuna.load_study(study_name="mnist", storage=stock(viewed))
    assert set(optuna.importance.get_param_importances(study)) == {"lr", "units", "kind", "momentum"}


@pytest.mark.slow
def test_every_write_is_refused(viewed: str) -> None:
    before = [repr(trial) for trial in read(viewed)]
    study = optuna.load_study(study_name="mnist", storage=stock(viewed))
    storage = study._storage
    running = next(trial._trial_id for trial in study.trials if trial.state.name == "RUNNING")
    for write in (
        study.ask,
        lambda: study.set_user_attr("x", 1),
        lambda: study.enqueue_trial({"lr": 1e-5}),
        lambda: optuna.create_study(study_name="new", storage=stock(viewed)),
        lambda: optuna.delete_study(study_name="mnist", storage=stock(viewed)),
        lambda: storage.set_trial_state_values(running, optuna.trial.TrialState.FAIL),
        lambda: storage.set_trial_intermediate_value(running, 0, 1.0),
        lambda: storage.set_trial_param(running, "x", 0.5, optuna.distributions.FloatDistribution(0, 1)),
        lambda: storage.set_trial_system_attr(running, "x", 1),
    ):
        with pytest.raises(optuna.exceptions.StorageInternalError):
            write()
    assert [repr(trial) for trial in read(viewed)] == before


def test_whoever_writes_through_optuna_is_told_that_the_database_is_for_reading(viewed: str) -> None:
    with pytest.raises(optuna.exceptions.StorageInternalError) as refused:
        optuna.create_study(study_name="new", storage=stock(viewed))
    assert "this database is read-only for Optuna" in str(refused.value.__cause__)
    assert "through its API" in str(refused.value.__cause__)


@pytest.mark.slow
def test_each_view_refuses_each_kind_of_statement(viewed: str) -> None:
    engine = sa.create_engine(stock(viewed))
    for name in optuna_views.NAMES:
        column = sa.inspect(engine).get_columns(name)[0]["name"]
        statements = [f"INSERT INTO {name} ({column}) VALUES (NULL)"]
        with engine.connect() as connection:
            if connection.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar_one():
                statements += [f"UPDATE {name} SET {column} = {column}", f"DELETE FROM {name}"]
        for statement in statements:
            with pytest.raises(sa.exc.DBAPIError, match="view"), engine.begin() as connection:
                connection.exec_driver_sql(statement)
    engine.dispose()


def test_a_role_that_may_only_read_the_views_opens_them(viewed: str) -> None:
    if viewed.startswith("sqlite"):
        pytest.skip("SQLite has no roles")
    engine = sa.create_engine(stock(viewed), isolation_level="AUTOCOMMIT")
    role = f"reader_{make_url(viewed).database}"
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN")
        for statement in optuna_views.grant_statements(role):
            connection.exec_driver_sql(statement)
    engine.dispose()
    as_reader = make_url(viewed).set(username=role).render_as_string()
    assert len(read(as_reader)) == len(TRIALS)
    reader = sa.create_engine(stock(as_reader))
    with pytest.raises(sa.exc.ProgrammingError, match="permission denied"), reader.connect() as connection:
        connection.exec_driver_sql("SELECT * FROM hpo_studies")
    reader.dispose()


def test_the_views_can_be_dropped_and_made_again(viewed: str) -> None:
    engine = writing_engine(engine_url(viewed))
    with engine.begin() as connection:
        for statement in optuna_views.drop_statements(engine.dialect.name):
            connection.exec_driver_sql(statement)
        assert "studies" not in sa.inspect(connection).get_view_names()
        for statement in optuna_views.create_statements(engine.dialect.name):
            connection.exec_driver_sql(statement.replace("%", "%%") if engine.dialect.name != "sqlite" else statement)
    engine.dispose()
    assert len(read(viewed)) == len(TRIALS)


def test_they_have_the_columns_of_optunas_own_tables(viewed: str, tmp_path: Any) -> None:
    optuna.create_study(storage=f"sqlite:///{tmp_path}/own.db")
    own, ours = sa.create_engine(f"sqlite:///{tmp_path}/own.db"), sa.create_engine(stock(viewed))
    assert set(sa.inspect(own).get_table_names()) == set(optuna_views.NAMES)
    for name in optuna_views.NAMES:
        expected = {column["name"] for column in sa.inspect(own).get_columns(name)}
        assert {column["name"] for column in sa.inspect(ours).get_columns(name)} == expected
        with own.connect() as one, ours.connect() as other:
            if name in ("version_info", "alembic_version"):
                query = f"SELECT * FROM {name}"
                assert one.exec_driver_sql(query).all() == other.exec_driver_sql(query).all()
