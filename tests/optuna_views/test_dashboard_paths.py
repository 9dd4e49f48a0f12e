"""Every address of the dashboard, with good values and bad ones: a page, or a refusal that says why. Never a 500."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from hpo_service.api.app import create_app
from hpo_service.reading.answering_reads import _encoded_error, decoded_error
from hpo_service.settings import Settings
from hpo_service.store.engine import database_url as parsed
from hpo_service.tuning.dashboard_app import DashboardFailed, answered, dashboard_app
from tests.api.conftest import Api, check_problem
from tests.patience import PATIENCE_SECONDS

SPACE: dict[str, Any] = {
    "x": {"type": "float", "low": 0.0, "high": 1.0},
    "kind": {"type": "categorical", "choices": ["a", "b", None, True, 1.5]},
    "width": {"type": "int", "low": 1, "high": 9, "when": {"kind": ["a"]}},
    "layers": {"type": "categorical", "choices": [[64], [64, 64], [[1], "b"]]},
}
IDS = ("0", "-1", "99", "abc", "1.5", str(2**63 - 1), str(2**63), "9" * 40, "9" * 5000, "٣", "%00", "%ff", "1%2F2", "")
PLOTS = (
    "contour",
    "slice",
    "parallel_coordinate",
    "rank",
    "edf",
    "timeline",
    "pareto_front",
    "hypervolume",
    "%00",
    "é",
)
AFTER = ("0", "3", "-1", "abc", "", "1.5", "1e3", "9" * 30, "9" * 5000, "%00", "%ff", "٣", "1&after=x", "0;after=x")
TRIAL_IDS = ("0", "0,1", "abc", "", ",", "99", "-1", "9" * 30, "9" * 5000, "%00", "0,x")
OTHERS = (
    *(
        "/dashboard",
        "/dashboard/",
        "/dashboard/studies/99/anything",
        "/dashboard%00",
        "/dashboard/%ff",
        "/dashboard/a%0ab",
    ),
    *("/api", "/api/", "/api/meta", "/api/studies", "/api/studies/", "/api/nothing", "/api/studies/1/note"),
    *("/static", "/static/bundle.js", "/static/nothing.js", "/static/%00", "/static/%2e%2e/_app.py", "/static/%ff"),
    *(f"/static/{'a' * 5000}", "/csv", "/csv/", "/favicon.ico", "/favicon.ico/x"),
    *("/artifacts", "/artifacts/1/ab", "/artifacts/1/1/ab", "/incompatible-rdb-schema"),
)
HEADERS = (
    {"Range": "bytes=5-1"},
    {"Range": "bytes=99999999999999999999-"},
    {"Range": "x"},
    {"If-Modified-Since": "yesterday"},
    {"If-None-Match": '"\xe9"'},
    {"Accept-Encoding": "gzip"},
    {"Cookie": "a=%ff; \xe9"},
    {"Content-Length": "0"},
    {"X-Forwarded-Host": "\xe9"},
)


@pytest.fixture
def api(client: TestClient, clock: Any) -> Api:
    """A record with studies of every kind that the dashboard may meet; their ids are 1 to 7."""
    own = Api(client, clock)
    fill(own, *([value] for value in (0.1, 0.5, "Infinity", "-Infinity", "NaN", 0.3, 0.4)))
    own.create(search_space=SPACE)
    fill(own, [0.1, 1.0], [0.5, 0.2], ["Infinity", 3], [0.3, "-Infinity"], directions=["maximize", "minimize"])
    fill(own, [0.3])
    fill(own, *[[0.3]] * 4)
    fill(own, *[["Infinity"]] * 3)
    own.client.delete(f"/v1/studies/{fill(own, [1.0], [2.0])}?force=true")
    return own


STUDIES = ("1", "2", "3", "4", "5", "6", "7")


def fill(api: Api, *values: list[Any], **fields: Any) -> str:
    """A study whose trials end so, with reports, and one that still runs."""
    name = api.create(search_space=SPACE, **fields)
    for told in values:
        (trial,) = api.ask(name)
        reports = [{"step": 1, "value": "NaN"}, {"step": 2, "value": "-Infinity"}, {"step": 3, "value": 0.5}]
        api.work(name, trial["number"], "report", reports=reports)
        api.work(name, trial["number"], "tell", state="COMPLETE", values=told, metrics={"loss": "NaN", "a": [None]})
    api.ask(name)
    return name


def get(api: Api, path: str, method: str = "GET", **headers: str) -> Any:
    sent = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    answer = api.client.request(method, path, headers=sent, follow_redirects=False)
    assert answer.status_code < 500, f"{method} {path[:100]}: {answer.status_code} {answer.text[:300]}"
    if answer.status_code >= 400 and method == "GET":
        check_problem(answer)
        assert answer.status_code in (400, 404)
        assert answer.json()["code"] in ("malformed_request", "not_found")
    elif answer.headers.get("content-type", "").startswith("application/json") and method == "GET":
        json.loads(answer.content, parse_constant=lambda word: pytest.fail(f"{path}: {word} is no JSON"))
    return answer


def addresses(app: Any) -> Iterator[str]:
    """Every GET route that the dashboard has, with every value; a new kind of value fails here."""
    values = {"study_id": (*STUDIES, *IDS), "plot_type": PLOTS, "filename": ("x",), "artifact_id": ("ab",)}
    for rule in [route.rule for route in app.routes if route.method == "GET" and route.rule != "/"]:
        if rule == "/dashboard<:re:(/.*)?>":
            continue
        for name in (names := re.findall(r"<([a-z_]+)(?::[^>]*)?>", rule)):
            assert name in {*values, "trial_id"}, f"the dashboard has a new route: {rule}"
        for study in values["study_id"] if "study_id" in names else ("",):
            some = {**values, "trial_id": ("0",), "study_id": (study,)}
            for plot in PLOTS if "plot_type" in names else ("",):
                yield re.sub(r"<([a-z_]+)(?::[^>]*)?>", lambda m: plot if m[1] == "plot_type" else some[m[1]][0], rule)  # noqa: B023
    for study in STUDIES:
        yield from (f"/api/studies/{study}?after={after}" for after in AFTER)
        yield from (f"/csv/{study}?trial_ids={ids}" for ids in TRIAL_IDS)
    yield from OTHERS


@pytest.mark.slow
def test_every_address_is_answered_or_refused_in_words_and_head_like_get(api: Api) -> None:
    statuses: dict[int, int] = {}
    for path in addresses(dashboard_app(api.client.app.state.service.database)):  # type: ignore[attr-defined]
        answer = get(api, path)
        assert get(api, path, "HEAD").status_code == answer.status_code, path
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
    assert statuses[200] > 50
    assert statuses[400] > 50
    assert statuses[404] > 150


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("headers", HEADERS, ids=lambda headers: next(iter(headers.items())))
def test_whatever_headers_come_along(api: Api, headers: dict[str, str]) -> None:
    for path in ("/dashboard", "/api/studies/1", "/static/bundle.js", "/favicon.ico", "/csv/1", "/api/nothing"):
        get(api, path, **headers)


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_refusal_says_what_was_wrong_where_the_page_looks_for_it(api: Api) -> None:
    assert "after: a whole number" in get(api, "/api/studies/1?after=abc").json()["detail"]
    gone = get(api, "/api/studies/7/plot/contour")
    assert (gone.status_code, gone.json()["reason"]) == (404, "there is no study with id 7")
    drawn = get(api, "/api/studies/1/plot/contour")
    if importlib.util.find_spec("plotly") is None:
        assert "plotly is not installed" in drawn.json()["detail"]
        assert drawn.status_code == 404
    else:
        assert drawn.status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_picture_that_there_cannot_be_of_a_study_is_not_found_and_says_why(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impossible(*_: Any, **__: Any) -> Any:
        raise ValueError("a front has two objectives")

    # Until it is imported, a stand-in has its name, which the import takes away and what was set there with it.
    importlib.import_module("optuna.visualization")
    monkeypatch.setattr("optuna.visualization.plot_pareto_front", impossible)
    refused = get(api, "/api/studies/1/plot/pareto_front")
    assert refused.status_code == 404
    assert "a front has two objectives" in refused.json()["detail"]


@pytest.mark.slow
def test_a_study_that_goes_while_it_is_read_is_not_found(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = [
        each["study_name"] for each in api.get("/api/studies").json()["study_summaries"] if each["study_id"] == 1
    ]
    import optuna_dashboard._app  # here, as the server does: it imports all of scikit-learn, where that is installed

    read = optuna_dashboard._app.get_trials

    def late(*arguments: Any) -> Any:
        api.client.delete(f"/v1/studies/{name}?force=true")
        return read(*arguments)

    monkeypatch.setattr(optuna_dashboard._app, "get_trials", late)
    refused = get(api, "/api/studies/1")
    assert (refused.status_code, refused.json()["detail"]) == (404, "there is no study with id 1")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_fault_of_the_dashboards_own_is_unavailable_and_told_once(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("out of order")

    monkeypatch.setattr("optuna_dashboard._app.get_studies", broken)
    answer = api.client.get("/api/studies")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    check_problem(answer)
    assert "out of order" not in answer.text
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "the dashboard failed" in line]
    assert "RuntimeError: out of order" in line


def test_a_fault_comes_through_the_reading_process_as_what_it_is_with_where_it_was() -> None:
    class Broken:
        url = parsed("sqlite:///nothing.db")

        def read(self, _work: Any) -> Any:
            raise RuntimeError("out of order")

    scope: dict[str, Any] = {"type": "http", "http_version": "1.1", "method": "GET", "scheme": "http"}
    scope |= {"path": "/api/studies", "query_string": b"", "root_path": "", "server": ("x", 1)}
    scope |= {"headers": [(b"accept-encoding", b"identity")]}
    try:
        next(answered(scope, None, "", Broken()))
    except DashboardFailed as error:
        came = decoded_error(_encoded_error(error))
    finally:
        dashboard_app.cache_clear()
    assert isinstance(came, DashboardFailed)
    assert "RuntimeError: out of order" in "".join(came.__notes__)


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_reading_process_answers_the_same(database_url: str) -> None:
    app = create_app(Settings(database_url=database_url), with_reaper=False, with_keys=False, with_reading_process=True)
    with TestClient(app, raise_server_exceptions=False) as client:
        own = Api(client, time.time)
        fill(own, [0.1], [0.5])
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not app.state.service.reading.is_up and time.monotonic() < deadline:
            time.sleep(0.05)
        paths = ["/api/studies/1?after=abc", f"/csv/{2**63}", "/api/studies/9/plot/rank", "/api/studies/1", "/api/x"]
        statuses = [get(own, path).status_code for path in paths]
    assert statuses == [400, 404, 404, 200, 404]
