"""Errors as application/problem+json (RFC 9457): one table from the domain's errors to status codes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from hpo_service.domain import errors, json_pointer, other_words
from hpo_service.domain.errors import Fault, HpoError, Invalid, RateLimited

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 1

STATUS: Mapping[type[HpoError], int] = {
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.Invalid: 422,
    errors.MalformedRequest: 400,
    errors.MalformedJson: 400,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.PreconditionFailed: 412,
    errors.TooLarge: 413,
    errors.InvalidRange: 416,
    errors.RateLimited: 429,
    errors.Unavailable: 503,
}

CODES: Mapping[int, str] = {
    400: "malformed_json",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    500: "internal",
}


def problem(
    status: int,
    code: str,
    detail: str,
    faults: Sequence[Fault] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = problem_body(status, code, detail, faults)
    all_headers = dict(headers or {})
    if status == 503:
        all_headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return Response(to_json(body), status, all_headers, MEDIA_TYPE)


def problem_body(status: int, code: str, detail: str, faults: Sequence[Fault] = ()) -> dict[str, Any]:
    body: dict[str, Any] = {
        "type": f"urn:hpo:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "retryable": status in (408, 429, 503),
    }
    if status == 422:
        body["errors"] = [{"pointer": fault.pointer, "detail": fault.detail} for fault in faults]
    return body


def status_of(error: HpoError) -> int:
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return 500


def problem_of(error: HpoError) -> Response:
    faults = error.faults if isinstance(error, Invalid) else ()
    headers = {"Retry-After": str(error.retry_after_seconds)} if isinstance(error, RateLimited) else None
    return problem(status_of(error), error.code, error.detail, faults, headers)


def body_of(error: HpoError) -> dict[str, Any]:
    faults = error.faults if isinstance(error, Invalid) else ()
    return problem_body(status_of(error), error.code, error.detail, faults)


def install(app: FastAPI) -> None:
    app.add_exception_handler(HpoError, _on_domain_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)


async def _on_domain_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HpoError)
    return problem_of(error)


async def _on_validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem_of(refused_body(error.errors(), error.body))


def refused_body(found: Sequence[Any], body: Any) -> Invalid:
    """The error for an invalid body: its detail names the first five faults, `faults` has all. found: pydantic's."""
    faults = faults_of(found, body)
    error = Invalid(faults)
    error.detail = Invalid(faults[:5]).detail
    return error


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    code = CODES.get(error.status_code, "error")
    detail = str(error.detail)
    if error.status_code == 404:
        detail = "there is nothing at this path; GET /v1/openapi.json lists the routes"
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request))
        detail = f"this path does not take {request.method}, but {headers['Allow']}"
    return problem(error.status_code, code, detail, headers=headers)


def _methods(request: Request) -> list[str]:
    """The methods of all routes at this path."""
    found: set[str] = set()
    for route in request.app.routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return sorted(found)


def faults_of(found: Sequence[Any], body: Any) -> list[Fault]:
    """pydantic's errors as faults: JSON pointers into the body, each with the rule and the refused value."""
    faults: dict[Fault, None] = {}
    for fault in found:
        where, *place = fault["loc"]
        if where == "body" and body is None and not place:
            faults[Fault("", "the call needs a JSON body, sent as application/json")] = None
        elif where == "body" and isinstance(body, bytes):
            faults[Fault("", "the body was not sent as JSON; use the header Content-Type: application/json")] = None
        elif where == "body":
            faults[Fault(pointer(place, body) + _below(fault), _rule(fault))] = None
        else:
            faults[Fault(pointer(place, None), _rule(fault))] = None
    return list(faults)


def pointer(place: Sequence[str | int], body: Any) -> str:
    """The JSON pointer (RFC 6901) of pydantic's `loc`, without marks of its own, such as a union's tag."""
    parts: list[str | int] = []
    for index, part in enumerate(place):
        try:
            body = body[part]
        except (KeyError, IndexError, TypeError):
            if index < len(place) - 1 or not _may_be_missing(str(part), body):
                continue
        parts.append(part)
    return json_pointer.pointer(*parts)


def _may_be_missing(part: str, body: Any) -> bool:
    """Whether the last part of a `loc` is a member that the body lacks, rather than a mark of pydantic."""
    if not (body is None or isinstance(body, dict)):
        return False
    return part not in ("float", "int", "str", "bool", "categorical") and "[" not in part


# The discriminators of unions, and their values.
_KINDS = {"type": "float, int or categorical", "call": "report, heartbeat, tell or release"}


def _below(fault: Any) -> str:
    """The pointer from the object that pydantic names to a union's wrong or missing discriminator; else empty."""
    if fault["type"] not in ("union_tag_not_found", "union_tag_invalid"):
        return ""
    return "/" + str(fault["ctx"]["discriminator"]).strip("'")


def _rule_of_kind(fault: Any) -> str:
    name, given = _below(fault).removeprefix("/"), fault.get("input")
    rule = f"{name} is one of {_KINDS.get(name, 'a few')}"
    if fault["type"] == "union_tag_invalid":
        rule = f"{rule}, not {fault['ctx']['tag']!r}"
    said = other_words.in_our_words(given) if name == "type" else None
    return rule if said is None else f"{rule}; write {json.dumps(said)}"


def _rule(fault: Any) -> str:
    """The rule in words, with the refused value where that helps."""
    kind, message = fault["type"], str(fault["msg"])
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _rule_of_kind(fault)
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return "unknown field"
    if kind in ("rule", "json_invalid"):
        return message
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        message = "should be a JSON object"
    value = repr(fault.get("input"))
    return f"{message}, not {value if len(value) <= 80 else value[:77] + '...'}"
