"""Turns responses of the server into JSON, or into the error that a refusal stands for and whether to retry."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime

from pydantic_core import from_json

from hpo_service.client.connection_pool import HttpResponse
from hpo_service.client.retries import Failure
from hpo_service.domain import errors
from hpo_service.domain.errors import Fault, HpoError, Invalid, Unavailable
from hpo_service.domain.json_types import Json

LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half a surrogate pair, which UTF-8 cannot encode


class Refused(HpoError):
    """A refusal that has no class of its own; `code` is the contract's."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class UnexpectedAnswer(HpoError):
    code = "unexpected_answer"


class Unreachable(HpoError):
    code = "unreachable"


class BrokenOff(HpoError):
    code = "broken_off"


_ERRORS: Mapping[str, type[HpoError]] = {
    error.code: error
    for error in (
        errors.NotFound,
        errors.StudyExists,
        errors.StudyStateConflict,
        errors.StudySealed,
        errors.LeaseLost,
        errors.TrialFinished,
        errors.ResultConflict,
        errors.PreconditionFailed,
        errors.Unavailable,
        errors.Unauthenticated,
        errors.Forbidden,
        errors.RateLimited,
    )
}


def failure_of(status: int, headers: Mapping[str, str], content: bytes) -> Failure:
    """The Failure for a response that is not 2xx, and whether to retry the call. headers: by lower-case name."""
    problem = _problem(content)
    retry = status in (408, 429, 502, 503, 504) or (status == 409 and problem.get("retryable") is True)
    error = _error(status, problem)
    _name_request(error, headers.get("x-request-id"))
    return Failure(error, retry=retry, retry_after=_seconds(headers.get("retry-after")) if retry else 0.0)


def _name_request(error: HpoError, request_id: str | None) -> None:
    """Add the request id to the message, so that users can quote it: the server's log has a line with that id."""
    if request_id:
        error.request_id = request_id
        error.args = (f"{error} (request {request_id})",)


def _error(status: int, problem: Json) -> HpoError:
    code = problem.get("code")
    detail = str(problem.get("detail") or problem.get("title") or f"the server answered {status}")
    if not isinstance(code, str):
        unready = status in (502, 503, 504)
        return Unavailable(detail) if unready else UnexpectedAnswer(f"{detail}; is this the right server?")
    if code == Invalid.code:
        faults = [Fault(fault["pointer"], fault["detail"]) for fault in problem.get("errors") or []]
        return Invalid(faults or [Fault("", detail)])
    return _ERRORS[code](detail) if code in _ERRORS else Refused(code, detail)


def error_of(result: Json) -> HpoError:
    """The error that a refused call of a batch stands for: result is {status, body}."""
    return _error(result["status"], result["body"])


def _problem(content: bytes) -> Json:
    with suppress(ValueError):
        problem = from_json(content)
        if isinstance(problem, dict):
            return problem
    return {}


def read_json(answer: HttpResponse) -> Json:
    cause: ValueError | None = None
    try:
        read = from_json(answer.data)
        if isinstance(read, dict):
            return read
    except ValueError as error:
        cause = error
    raise UnexpectedAnswer("the answer is not a JSON object; is this the right server?") from cause


def _seconds(retry_after: str | None) -> float:
    """Retry-After in seconds: a number, or a date (RFC 9110, section 10.2.3)."""
    if retry_after is None:
        return 0.0
    with suppress(ValueError):
        return max(0.0, float(retry_after))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return 0.0


def root_reason(error: BaseException) -> str:
    """The innermost cause, such as "Connection refused", without what the HTTP library wraps around it."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error.strerror if isinstance(error, OSError) and error.strerror else in_one_line(error)


def in_one_line(error: BaseException) -> str:
    try:
        said = " ".join(str(error).split())
    except Exception:  # str() of a foreign exception may raise
        said = ""
    return f"{type(error).__name__}: {said}"[:500] if said else type(error).__name__
