"""The OpenAPI document: every status of every route, with examples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from hpo_service.api.documents import Problem
from hpo_service.api.problems import MEDIA_TYPE, problem_body
from hpo_service.domain.errors import Fault

_EXAMPLES: dict[int, list[tuple[str, str]]] = {
    400: [("malformed_json", "the body is not JSON: expected value at line 1 column 9")],
    401: [("unauthenticated", "this call needs a key: send Authorization: Bearer hpo_…")],
    403: [("forbidden", "this key is for read, and POST here needs one for admin")],
    404: [("not_found", "there is no study 'mnist'")],
    405: [("method_not_allowed", "this path does not take this method, but GET")],
    409: [("conflict", "")],
    412: [("precondition_failed", 'the study has changed: its ETag is now "1-3", not "1-2"')],
    413: [("too_large", "the body is larger than 1048576 bytes; send it in parts")],
    416: [("invalid_range", "the artifact has 512 bytes, and bytes=600-700 is none of them")],
    422: [("invalid", "/search_space/learning_rate/high: high (0.001) is below low (0.1)")],
    429: [("rate_limited", "this key has made too many calls; try again later")],
    503: [("unavailable", "the database cannot take the call now: database or disk is full")],
}

CONFLICTS = {
    "study_exists": "another study is named 'mnist'; choose another name, or delete it first",
    "study_state": "a COMPLETED study cannot pause; pause is for ACTIVE, PAUSED",
    "study_sealed": "the test set of this study has been opened; nothing can be added to it",
    "lease_lost": "attempt 1 does not hold the trial; the last one given out is 2",
    "trial_finished": "the trial has finished as COMPLETE",
    "result_conflict": "the trial has finished as COMPLETE, with another result or attempt",
}


# What AuthMiddleware answers (hpo_service/api/auth.py), and the headers that go with some statuses.
_BY_AUTH = (401, 403, 429)
_HEADERS = {
    401: ("WWW-Authenticate", {"type": "string"}, "Bearer; on pages for browsers Basic too, the key as password"),
    429: ("Retry-After", {"type": "integer"}, "seconds"),
    503: ("Retry-After", {"type": "integer"}, "seconds"),
}


def responses(
    *statuses: int, conflicts: tuple[str, ...] = (), without_key: bool = False
) -> dict[int | str, dict[str, Any]]:
    """A route's error responses, with those that any route may answer. without_key: the route needs no key."""
    described: dict[int | str, dict[str, Any]] = {}
    anywhere = (405, 503) if without_key else (405, 503, *_BY_AUTH)
    for status in sorted({*statuses, *anywhere, *((409,) if conflicts else ())}):
        pairs = [(code, CONFLICTS[code]) for code in conflicts] if status == 409 else _EXAMPLES[status]
        described[status] = {
            "description": problem_body(status, "", "")["title"],
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "examples": {code: {"value": _example(status, code, detail)} for code, detail in pairs},
                }
            },
        }
        if status in _HEADERS:
            name, schema, text = _HEADERS[status]
            described[status]["headers"] = {name: {"schema": schema, "description": text}}
    return described


def _example(status: int, code: str, detail: str) -> dict[str, Any]:
    faults = [Fault(*detail.split(": ", 1))] if status == 422 else []
    return problem_body(status, code, detail, faults)


def ok(
    model: type[BaseModel] | None, description: str, status: int = 200, headers: dict[str, str] | None = None
) -> dict[int | str, dict[str, Any]]:
    described: dict[str, Any] = {"description": description}
    if model is not None:
        described["model"] = model
    if headers:
        described["headers"] = {
            name: {"schema": {"type": "string"}, "description": text} for name, text in headers.items()
        }
    return {status: described}


def complete(app: FastAPI) -> None:
    """Put the Problem schema among the components, to which all error answers refer, and say which calls need a key."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        document = plain()
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        for name, definition in schema.pop("$defs", {}).items():
            document["components"]["schemas"].setdefault(name, definition)
        document["components"]["schemas"]["Problem"] = schema
        _drop_what_is_never_sent(document)
        _describe_keys(document)
        return document

    app.openapi = described  # type: ignore[method-assign]


def _describe_keys(document: dict[str, Any]) -> None:
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "a key that hpo token create has made"}
    }
    document["security"] = [{"key": []}]
    for operations in document["paths"].values():
        for operation in operations.values():
            if "401" not in operation["responses"]:
                operation["security"] = []


def _drop_what_is_never_sent(document: dict[str, Any]) -> None:
    """The framework describes a 422 of its own for every route with a parameter; ours are Problems."""
    for operations in document["paths"].values():
        for operation in operations.values():
            refusal = operation["responses"].get("422", {})
            if "application/json" in refusal.get("content", {}):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
