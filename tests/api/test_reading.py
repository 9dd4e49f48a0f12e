"""What people and tools read: best and front, exports, importances, events, health, the OpenAPI document."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import pyarrow.parquet
import pytest
import sqlalchemy as sa

from hpo_service.reading import readings

SPACE: dict[str, Any] = {
    "x": {"type": "float", "low": 0.0, "high": 1.0},
    "c": {"type": "categorical", "choices": ["=1+1", "+1", "@a", "-5", "a,b", 'q"', True, None, 7]},
    "m": {"type": "float", "low": 0.0, "high": 1.0, "when": {"c": ["a,b"]}},
}


def imported(api: Any, name: str, *values: Any) -> None:
    api.imported(name, *[{"params": {"x": 0.5}, "state": "COMPLETE", "values": list(value)} for value in values])


@pytest.mark.parametrize(("direction", "best"), [("maximize", 2), ("minimize", 1)])
def test_the_best_is_the_first_of_the_best(either: Any, direction: str, best: int) -> None:
    name = either.create(directions=[direction])
    imported(either, name, (0.5,), (0.1,), (0.9,), (0.9,), (0.1,))
    study = either.study(name)
    assert "front" not in study
    assert study["best"] == {
        "number": best,
        "params": {"x": 0.5},
        "values": [0.9 if best == 2 else 0.1],
        "attempt": 0,
    }


def test_infinity_is_a_value_and_a_pruned_trial_is_never_the_best(api: Any) -> None:
    name = api.create()
    api.imported(name, {"params": {"x": 0.5}, "state": "PRUNED", "values": [0.99]})
    assert api.study(name)["best"] is None
    imported(api, name, ("-Infinity",))
    assert api.study(name)["best"]["values"] == ["-Infinity"]
    imported(api, name, ("Infinity",), (1e308,))
    assert (api.study(name)["best"]["number"], api.study(name)["best"]["values"]) == (2, ["Infinity"])


def test_several_directions_read_as_the_front(either: Any) -> None:
    name = either.create(directions=["maximize", "minimize"], sampler={"name": "nsgaii", "seed": 1})
    assert either.study(name)["front"] == []
    points = [
        (0.5, 0.5),
        (0.9, 0.9),
        (0.1, 0.1),
        (0.4, 0.6),
        (0.5, 0.5),
        ("Infinity", 1.0),
        (0.9, 0.8),
        (0.0, "Infinity"),
    ]
    imported(either, name, *points)
    study = either.study(name)
    assert "best" not in study
    assert [trial["number"] for trial in study["front"]] == [0, 2, 4, 5, 6]
    (given,) = either.ask(name)
    assert either.code(either.work(name, given["number"], "tell", state="COMPLETE", values=[0.5])) == "invalid"
    told = either.work(name, given["number"], "tell", state="COMPLETE", values=[0.5, "NaN"]).json()
    assert (told["state"], told["reason"], told["values"]) == ("FAIL", "nan", None)


def test_a_pruned_trial_of_several_directions_has_no_value_of_its_last_report(api: Any) -> None:
    name = api.create(directions=["maximize", "minimize"])
    api.ask(name)
    api.work(name, 0, "report", reports=[{"step": 1, "value": 0.5}])
    assert api.work(name, 0, "tell", state="PRUNED").json()["values"] is None


REST = ["attempt", "worker_id", "round", "seed", "started_at", "finished_at", "reason", "replicate_of"]


def exported(api: Any) -> str:
    name: str = api.create(search_space=SPACE)
    for choice in SPACE["c"]["choices"]:
        api.enqueue(name, {"x": 0.25, "c": choice})
    given = api.ask(name, count=9, worker_id="=cmd()")
    api.tell(name, 0, 0.5)
    api.tell(name, 1, "Infinity")
    api.tell(name, 2, -0.25)
    api.work(name, 3, "tell", state="FAIL", reason="=HYPERLINK()\nnext")
    api.work(name, 4, "tell", state="PRUNED")
    assert len(given) == 9
    return name


def test_an_export_as_csv_quotes_what_a_spreadsheet_would_run(either: Any) -> None:
    name = exported(either)
    answer = either.get(f"/v1/studies/{name}/trials:export?format=csv")
    assert answer.headers["content-type"].startswith("text/csv")
    header, *rows = csv.reader(io.StringIO(answer.text, newline=""))
    assert header == ["number", "state", "value", "params_x", "params_c", "params_m", *REST]
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["number"] for row in cells] == [str(n) for n in range(9)]
    assert [row["value"] for row in cells[:5]] == ["0.5", "Infinity", "-0.25", "", ""]
    assert [row["params_c"] for row in cells][:6] == ["'=1+1", "+1", "'@a", "-5", "a,b", 'q"']
    assert all(row["worker_id"] == "'=cmd()" for row in cells)
    assert cells[3]["reason"] == "'=HYPERLINK()\nnext"
    assert cells[4]["params_m"] != ""
    assert cells[5]["params_m"] == ""


def test_an_export_as_jsonl_has_the_same_keys(either: Any) -> None:
    name = exported(either)
    answer = either.get(f"/v1/studies/{name}/trials:export?format=jsonl")
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert len(rows) == 9
    assert list(rows[0]) == ["number", "state", "value", "params_x", "params_c", "params_m", *REST]
    assert [row["params_c"] for row in rows] == SPACE["c"]["choices"]
    assert [row["value"] for row in rows[:3]] == [0.5, "Infinity", -0.25]
    trial = either.trial(name, 0)
    assert {key: rows[0][key] for key in REST} == {key: trial[key] for key in REST}


def table(answer: Any) -> Any:
    assert answer.headers["content-type"] == "application/vnd.apache.parquet"
    return pyarrow.parquet.read_table(io.BytesIO(answer.content))


def test_an_export_as_parquet_has_the_same_columns_each_of_one_type(either: Any) -> None:
    name = exported(either)
    found = table(either.get(f"/v1/studies/{name}/trials:export?format=parquet"))
    assert found.column_names == ["number", "state", "value", "params_x", "params_c", "params_m", *REST]
    kinds = {field.name: str(field.type) for field in found.schema}
    assert (kinds["number"], kinds["value"], kinds["params_x"], kinds["params_c"]) == (
        "int64",
        "double",
        "double",
        "string",  # its choices are of several types: JSON
    )
    assert kinds["started_at"] == "timestamp[us, tz=UTC]"
    rows = found.to_pylist()
    assert [row["value"] for row in rows[:5]] == [0.5, math.inf, -0.25, None, None]
    assert [json.loads(row["params_c"]) for row in rows] == SPACE["c"]["choices"]
    assert rows[3]["reason"] == "=HYPERLINK()\nnext"
    assert rows[0]["worker_id"] == "=cmd()"


@pytest.mark.slow
def test_parquet_takes_several_pages_and_choices_of_one_type(api: Any) -> None:
    space = {"n": {"type": "int", "low": 1, "high": 9}, "c": {"type": "categorical", "choices": ["relu", "tanh"]}}
    name = api.create(search_space=space, directions=["maximize", "minimize"])
    past = {"params": {"n": 3, "c": "tanh"}, "state": "COMPLETE", "values": [1, 2.5]}
    for _ in range(3):
        api.client.post(f"/v1/studies/{name}/trials:import", json={"trials": [past] * 700})
    found = table(api.get(f"/v1/studies/{name}/trials:export?format=parquet"))
    assert found.column("number").to_pylist() == list(range(2100))
    assert found.slice(2099).select(["value_0", "value_1", "params_n", "params_c"]).to_pylist() == [
        {"value_0": 1.0, "value_1": 2.5, "params_n": 3, "params_c": "tanh"}
    ]


def test_an_export_of_several_directions_has_a_column_for_each(api: Any) -> None:
    name = api.create(directions=["maximize", "minimize"])
    imported(api, name, (0.5, 0.25))
    (row,) = csv.DictReader(io.StringIO(api.get(f"/v1/studies/{name}/trials:export").text))
    assert (row["value_0"], row["value_1"]) == ("0.5", "0.25")
    assert "value" not in row


def test_an_export_of_nothing_and_of_an_unknown_form(api: Any) -> None:
    name = api.create()
    assert len(api.get(f"/v1/studies/{name}/trials:export?format=csv").text.splitlines()) == 1
    assert api.get(f"/v1/studies/{name}/trials:export?format=jsonl").text == ""
    assert api.pointers(api.get(f"/v1/studies/{name}/trials:export?format=xml")) == ["/format"]
    assert table(api.get(f"/v1/studies/{name}/trials:export?format=parquet")).num_rows == 0


@pytest.mark.slow
def test_an_export_of_more_trials_than_a_page_holds_each_once(api: Any) -> None:
    name = api.create()
    for _ in range(3):
        imported(api, name, *[(0.5,)] * 700)
    rows = [json.loads(line) for line in api.get(f"/v1/studies/{name}/trials:export?format=jsonl").text.splitlines()]
    assert [row["number"] for row in rows] == list(range(2100))


def test_importances_sum_to_one_and_need_two_complete_trials(api: Any) -> None:
    space = {name: {"type": "float", "low": 0, "high": 1} for name in ("a", "b")}
    name = api.create(search_space=space)
    path = f"/v1/studies/{name}/importances"
    for count in range(2):
        answer = api.get(path)
        assert (answer.status_code, api.code(answer)) == (409, "study_state"), count
        api.finish(name, 0.5)
    assert sum(api.get(path).json()["importances"].values()) == pytest.approx(1)
    for given in api.ask(name, count=60):
        api.tell(name, given["number"], given["params"]["a"])
    shares = api.get(path).json()["importances"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["a"] > 0.8 > shares["b"]


@pytest.mark.slow
def test_of_a_large_study_an_even_choice_of_trials_is_judged(api: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(readings, "MOST_JUDGED", 60)
    name = api.create(search_space={name: {"type": "float", "low": 0, "high": 1} for name in ("a", "b")})
    for given in api.ask(name, count=60) + api.ask(name, count=60):  # of each second one `a` decides, else `b`
        api.tell(name, given["number"], given["params"]["ab"[given["number"] % 2]])
    shares = api.get(f"/v1/studies/{name}/importances").json()["importances"]
    assert shares["a"] > 0.8 > shares["b"]


@pytest.mark.parametrize("values", [("Infinity", "Infinity"), ("-Infinity", 0.5), (0.5, 0.5), (1e308, -1e308)])
def test_importances_of_strange_values_are_shares_all_the_same(api: Any, values: Any) -> None:
    name = api.create(search_space=SPACE)
    api.imported(
        name,
        *[
            {"params": {"x": x, "c": 7}, "state": "COMPLETE", "values": [value]}
            for x, value in zip((0.5, 0.7), values, strict=True)
        ],
    )
    shares = api.get(f"/v1/studies/{name}/importances").json()["importances"]
    assert shares == {name: 1.0 if name == "x" else None for name in SPACE}


def test_health_asks_no_database_and_readiness_does(own: Any) -> None:
    assert own.get("/healthz").status_code == 200
    ready = own.get("/readyz")
    assert ready.status_code == 200
    version = own.get("/version").json()
    assert set(version) == {"version", "api"}


def test_what_is_not_ready_says_so_as_a_problem(client: Any, database_url: str) -> None:
    engine = sa.create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM hpo_alembic_version")
    engine.dispose()
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert client.get("/healthz").status_code == 200
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["code"], answer.json()["retryable"]) == ("unavailable", True)


def test_metrics_are_prometheus_text_with_our_prefix_and_without_names(api: Any) -> None:
    name = api.create()
    api.ask(name, worker_id="secret-worker")
    answer = api.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = [line for line in answer.text.splitlines() if line and not line.startswith("#")]
    assert samples
    assert all(line.startswith("hpo_") for line in samples)
    assert name not in answer.text
    assert "secret-worker" not in answer.text


def test_the_document_describes_every_route_of_the_contract(api: Any) -> None:
    document = api.get("/v1/openapi.json").json()
    trial = "/v1/studies/{study}/trials/{number}"
    routes = {
        "/v1/studies": {"get", "post"},
        "/v1/studies/{study}": {"get", "patch", "delete"},
        **{
            f"/v1/studies/{{study}}{path}": {"post"}
            for path in (
                *(f":{verb}" for verb in ("pause", "resume", "stop", "cancel", "narrow", "confirm", "test")),
                *(f"/test:{verb}" for verb in ("heartbeat", "tell", "release")),
                *(f"/trials:{verb}" for verb in ("ask", "enqueue", "import")),
            )
        },
        **{f"/v1/studies/{{study}}/{path}": {"get"} for path in ("events", "trials:export", "importances", "trials")},
        **{f"{trial}:{verb}": {"post"} for verb in ("report", "heartbeat", "tell", "release", "stop")},
        trial: {"get"},
        f"{trial}/attempts": {"get"},
        "/v1/trials:ask": {"post"},
        "/v1/trials:batch": {"post"},
        "/v1/workers": {"get"},
        "/v1/workers/{worker_id}:drain": {"post"},
        "/version": {"get"},
        "/healthz": {"get"},
        "/readyz": {"get"},
        "/metrics": {"get"},
    }
    described = {path: set(methods) for path, methods in document["paths"].items()}
    assert {path: methods for path, methods in routes.items() if described.get(path) != methods} == {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["responses"], (path, method)
            for status, response in operation["responses"].items():
                if status.startswith(("4", "5")):
                    assert "application/problem+json" in response["content"], (path, method, status)


def test_nothing_is_found_and_not_allowed_as_problems(api: Any) -> None:
    name = api.create()
    for path in (
        "/v1",
        "/v1/",
        "/v2/studies",
        "/v1/studies/",
        f"/v1/studies/{name}/",
        f"/v1/studies/{name}:dance",
    ):
        assert api.get(path).status_code in (404, 405), path
    for method, path in (
        ("PUT", "/v1/studies"),
        ("DELETE", "/v1/studies"),
        ("POST", f"/v1/studies/{name}"),
        ("GET", f"/v1/studies/{name}:pause"),
        ("GET", "/v1/trials:ask"),
        ("POST", "/healthz"),
        ("POST", "/metrics"),
        ("OPTIONS", "/v1/studies"),
    ):
        answer = api.call(method, path)
        assert (answer.status_code, api.code(answer)) == (405, "method_not_allowed"), (method, path)
        assert answer.headers["allow"]


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/v1/studies", {"GET", "POST"}), ("/v1/studies/mnist", {"GET", "PATCH", "DELETE"})],
)
def test_what_is_allowed_is_said_in_full(api: Any, path: str, methods: set[str]) -> None:
    allowed = {method.strip() for method in api.call("PUT", path).headers["allow"].split(",")}
    assert allowed >= methods
