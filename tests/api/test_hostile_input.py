"""Whatever is sent, one of the documented answers comes back, and the next call is served."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

JSON = {"content-type": "application/json"}
ROUTES = (
    ("POST", "/v1/studies"),
    ("PATCH", "/v1/studies/{study}"),
    ("POST", "/v1/studies/{study}:narrow"),
    ("POST", "/v1/studies/{study}:test"),
    ("POST", "/v1/studies/{study}/test:heartbeat"),
    ("POST", "/v1/studies/{study}/test:tell"),
    ("POST", "/v1/studies/{study}/test:release"),
    ("POST", "/v1/trials:ask"),
    ("POST", "/v1/trials:batch"),
    ("POST", "/v1/studies/{study}/trials:ask"),
    ("POST", "/v1/studies/{study}/trials:enqueue"),
    ("POST", "/v1/studies/{study}/trials:import"),
    ("POST", "/v1/studies/{study}/trials/0:report"),
    ("POST", "/v1/studies/{study}/trials/0:heartbeat"),
    ("POST", "/v1/studies/{study}/trials/0:tell"),
    ("POST", "/v1/studies/{study}/trials/0:release"),
)


@pytest.fixture(scope="module")
def study(_sqlite_api: Any) -> str:
    name: str = _sqlite_api.create()
    _sqlite_api.ask(name)
    return name


MALFORMED = (
    b"{",
    b"nul",
    b'{"a": NaN}',
    b'{"a": Infinity}',
    b'{"a": -Infinity}',
    b'{"a": "\\ud800"}',
    b'{"a": "\xff"}',
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b"9" * 5000,
    b'{"a": ' + b"9" * 5000 + b"}",
    b"[" * 40_000,
    b'{"a":' * 40_000,
    b"{'a': 1}",
    b"{} {}",
    b'{"a": 01}',
    b"\x00",
    b" ",
)


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: repr(body[:16]))
def test_what_is_not_json_is_400_on_every_route(api: Any, study: str, body: bytes) -> None:
    for method, path in ROUTES:
        answer = api.call(method, path.format(study=study), content=body, headers=JSON)
        assert (answer.status_code, api.code(answer)) == (400, "malformed_json"), path


STRANGE = (
    b"[]",
    b"0",
    b'"x"',
    b"true",
    b'{"": 1}',
    b'{"a": 1e400}',
    b'{"__proto__": {}}',
    b'{"attempt": 1e400}',
    b'{"attempt": ' + b"9" * 4000 + b"}",
    b'{"attempt": null, "reports": null, "values": null, "state": null, "trials": null, "calls": null}',
    b'{"attempt": [], "reports": {}, "values": {}, "state": [], "trials": {}, "calls": {}, "keep": {}}',
    b'{"calls": [[], {}, 5, null, {"call": {}}], "trials": [[], 5, null, {}], "reports": [[], 5, null]}',
    b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}",
)


@pytest.mark.parametrize("body", STRANGE, ids=lambda body: repr(body[:24]))
def test_json_of_another_shape_is_refused_on_every_route(api: Any, study: str, body: bytes) -> None:
    for method, path in ROUTES:
        answer = api.call(method, path.format(study=study), content=body, headers=JSON)
        assert answer.status_code in (400, 422), path


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", None])
def test_a_body_of_another_type_is_refused(api: Any, study: str, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    for method, path in ROUTES:
        if path.endswith((":narrow", ":test")):
            continue
        answer = api.call(method, path.format(study=study), content=b'{"attempt": 1}', headers=headers)
        assert answer.status_code in (400, 415, 422), path


def test_no_body_is_refused_where_one_is_needed(api: Any, study: str) -> None:
    for method, path in ROUTES:
        if path.endswith((":narrow", ":test")):
            continue
        answer = api.call(method, path.format(study=study), headers=JSON)
        assert answer.status_code == 422, path


def chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // 1024):
        yield b" " * 1024


def test_a_body_above_a_mebibyte_is_413_announced_or_not(api: Any, study: str) -> None:
    for method, path in ROUTES:
        where = path.format(study=study)
        announced = api.call(method, where, content=b" " * (2**20 + 1), headers=JSON)
        streamed = api.call(method, where, content=chunks(2**20 + 2048), headers=JSON)
        for answer in (announced, streamed):
            assert (answer.status_code, api.code(answer)) == (413, "too_large"), path
    within = api.call("POST", "/v1/studies", content=b"{}".ljust(2**20), headers=JSON)
    assert within.status_code == 422


@pytest.mark.parametrize("length", ["-1", "abc", "1" * 30, "\u00b2"])
def test_a_length_that_lies_is_answered(api: Any, length: str) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", length.encode())]
    answer = api.client.request("POST", "/v1/studies", content=b"{}", headers=headers)
    assert answer.status_code in (400, 413, 422)


NAMES = (
    "%00",
    "a%00b",
    "%ff",
    "%C3%A9",
    "é",
    "a" * 300,
    "A",
    "-",
    "..",
    "a.b",
    "%20",
    "a%0A",
    "%F0%9F%99%82",
    "a%2Fb",
    "'",
    "*",
)
NUMBERS = (
    "99999999999999999999",
    "2147483648",
    "9" * 300,
    "-1",
    "1.5",
    "1e3",
    "0x1",
    "%00",
    "٣",
    "+1",
    "",
    "null",
    "00",
)


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_a_name_is_404_on_every_route(either: Any, name: str) -> None:
    for method, path in ROUTES:
        if "{study}" in path:
            body = b'{"attempt": 1, "worker_id": "w"}'
            answer = either.call(method, path.format(study=name), content=body, headers=JSON)
            assert answer.status_code in (404, 405, 422), path
    for path in ("", "/trials", "/trials/0", "/trials/0/attempts", "/importances", "/trials:export", "/events"):
        assert either.get(f"/v1/studies/{name}{path}").status_code in (404, 405), path
    for verb in ("pause", "resume", "stop", "cancel"):
        assert either.post(f"/v1/studies/{name}:{verb}").status_code == 404


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_no_trials_number_is_404(either: Any, number: str) -> None:
    name = either.create()
    base = f"/v1/studies/{name}/trials/{number}"
    expected = (404, 405) if number == "" else (404,)
    assert either.get(base).status_code in (*expected, 200 if number == "" else 404)
    assert either.get(f"{base}/attempts").status_code == 404
    for verb, body in (
        ("report", {"reports": []}),
        ("heartbeat", {}),
        ("tell", {"state": "FAIL"}),
        ("release", {}),
        ("stop", None),
    ):
        answer = either.post(f"{base}:{verb}", None if body is None else {"attempt": 1, **body})
        assert answer.status_code == 404


@pytest.mark.parametrize("value", ["\u0000", "a\u0000", "\ufffe", "🙂", "a" * 5000, "--", "%", "' OR 1=1"])
def test_any_query_is_answered(either: Any, value: str) -> None:
    name = either.create()
    for path, query in (
        ("/v1/studies", "state"),
        ("/v1/studies", "page_size"),
        ("/v1/studies", "page_token"),
        ("/v1/workers", "page_token"),
        (f"/v1/studies/{name}/trials", "state"),
        (f"/v1/studies/{name}/trials", "order_by"),
        (f"/v1/studies/{name}/trials", "page_token"),
        (f"/v1/studies/{name}/trials:export", "format"),
    ):
        assert either.get(path, params={query: value}).status_code == 422, (path, query)
    assert either.call("DELETE", f"/v1/studies/{name}", params={"force": value}).status_code == 422


@pytest.mark.parametrize("tag", ["", "x", '"', '"a"', "W/", ",", "*,*", "\u00ff", '"' * 5000])
def test_any_tag_is_answered(api: Any, study: str, tag: str) -> None:
    answer = api.client.patch(
        f"/v1/studies/{study}", json={"metadata": {}}, headers=[(b"if-match", tag.encode("latin-1"))]
    )
    assert answer.status_code == 412


@pytest.mark.parametrize("last", ["", "x", "-1", "1.5", "1e3", "9" * 30, "\u00b2"])
def test_any_last_event_id_is_answered(api: Any, study: str, last: str) -> None:
    answer = api.client.get(f"/v1/studies/{study}/events", headers=[(b"last-event-id", last.encode("latin-1"))])
    assert answer.status_code == 422


@pytest.mark.slow
def test_json_nested_as_deep_as_it_is_taken_can_be_read_back_everywhere(either: Any) -> None:
    deep = b"[" * 190 + b"]" * 190
    name = either.create()
    either.ask(name)
    answer = either.call("PATCH", f"/v1/studies/{name}", content=b'{"metadata": {"a": %s}}' % deep, headers=JSON)
    assert answer.status_code in (200, 400, 422)
    report = b'{"attempt": 1, "reports": [{"step": 1, "value": 1, "metrics": {"a": %s}}]}' % deep
    assert either.post(f"/v1/studies/{name}/trials/0:report", content=report, headers=JSON).status_code in (
        200,
        400,
        422,
    )
    either.study(name)
    assert either.get(f"/v1/studies/{name}/trials").status_code == 200
    assert either.get("/v1/studies?page_size=1000").status_code == 200
    call = {"study": name, "number": 0, "call": "tell", "attempt": 1, "state": "COMPLETE", "values": [1]}
    assert either.post("/v1/trials:batch", {"calls": [call]}).status_code == 200


def test_a_thousand_metrics_in_one_report_come_back(api: Any) -> None:
    name = api.create()
    api.ask(name)
    metrics = {f"m{n}": n for n in range(1000)}
    assert api.work(name, 0, "report", reports=[{"step": 1, "value": 1, "metrics": metrics}]).status_code == 200
    assert api.trial(name, 0)["reports"][0]["metrics"] == metrics


def test_a_number_beyond_a_double_is_refused_wherever_json_may_be_free(api: Any) -> None:
    space = b'"search_space": {"x": {"type": "float", "low": 0, "high": 1}}'
    for field in (b'"metadata": {"x": 1e400}', b'"objective": {"kind": "k", "x": [-1e400]}'):
        body = b'{"name": "inf", %s, %s}' % (space, field)
        assert api.post("/v1/studies", content=body, headers=JSON).status_code in (400, 422)
