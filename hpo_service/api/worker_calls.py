"""The calls that workers make, each in one place: its path, its body, what it does, and what it answers.

The routes, the fast path, `auth` and the OpenAPI document are derived from the tables ON_STUDY and ACROSS_STUDIES. The
calls that a batch may contain are in `operations/calls.py`, under the same verbs.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from fastapi import Body, Request
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.responses import Response

from hpo_service.api.documents import (
    AskDocument,
    BatchDocument,
    KeptDocument,
    SuggestDocument,
    ToldDocument,
    TrialDocument,
)
from hpo_service.api.http import answer
from hpo_service.api.openapi import ok, responses
from hpo_service.api.problems import body_of, status_of
from hpo_service.api.query_parameters import STUDY_NAME, NumberPath, StudyPath, router_of, service_of, studies_of
from hpo_service.domain.errors import HpoError
from hpo_service.operations import asking, sealed_test_calls, workers
from hpo_service.operations.calls import Ask, Batch, Heartbeat, Release, Reports, Suggest, Tell, TestResult
from hpo_service.operations.service import Service
from hpo_service.operations.study_call import CallerLeft, StudyCall

_STUDY = "/v1/studies/{study:segment}"
_TRIAL = _STUDY + "/trials/{number:number}"
_TEST = _STUDY + "/test"


@dataclass(frozen=True)
class OnStudy:
    """A call on one study. name: of its route.

    begin: takes the study's name, the trial's number (0 where there is none) and the body.
    """

    name: str
    path: str
    body: type[BaseModel]
    begin: Callable[[Service, str, int, Any], StudyCall]
    document: type[BaseModel] | None
    says: str
    conflicts: tuple[str, ...] = ()
    examples: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class AcrossStudies:
    """A call that may concern several studies. answer: takes the body and the studies of the caller's key, None for all
    of them; it returns a status and JSON.
    """

    name: str
    path: str
    body: type[BaseModel]
    answer: Callable[[Service, Any, Collection[str] | None, CallerLeft], Awaitable[tuple[int, bytes]]]
    responses: Mapping[int | str, dict[str, Any]]
    examples: tuple[Mapping[str, Any], ...] = ()


async def _ask_any(
    service: Service, body: Ask, only: Collection[str] | None, caller_left: CallerLeft
) -> tuple[int, bytes]:
    return 200, to_json(await asking.ask_any(service, body, caller_left, only))


async def _batch(service: Service, body: Batch, only: Collection[str] | None, _: CallerLeft) -> tuple[int, bytes]:
    results = await workers.batch(service, body, only)
    status = 207 if any(isinstance(result, HpoError) for result in results) else 200
    return status, b'{"results":[%s]}' % b",".join(map(_result, results))


def _result(result: bytes | HpoError) -> bytes:
    if isinstance(result, HpoError):
        return to_json({"status": status_of(result), "body": body_of(result)})
    return b'{"status":200,"body":%s}' % result


_NEXT = {"worker_id": "gpu-3", "request_id": "01936f2e-7a1c-7c3e-9f37-2f6d3b1c9a56"}
_ASK = {
    "worker_id": "gpu-3",
    "request_id": "01936f2e-7a1c-7c3e-9f37-2f6d3b1c9a55",
    "count": 1,
    "wait_seconds": 20,
    "objectives": ["neural_network"],
}
_TOLD = {"attempt": 1, "state": "COMPLETE", "values": [0.83]}
_REPORT = {"attempt": 1, "reports": [{"step": 3, "value": 0.8, "metrics": {"train_loss": 0.4}}]}
_FOUND = "trials, or none for now"

_LOST = ("lease_lost", "trial_finished")
_TOLD_OTHERWISE = ("lease_lost", "result_conflict")


def _on_trial(
    verb: str, body: type[BaseModel], document: type[BaseModel], says: str, conflicts: tuple[str, ...], *examples: Any
) -> OnStudy:
    def begin(service: Service, study: str, number: int, body: Any) -> StudyCall:
        return workers.on_trial(service, verb, study, number, body)

    return OnStudy(verb, f"{_TRIAL}:{verb}", body, begin, document, says, conflicts, examples)


def _on_test(
    verb: str, body: type[BaseModel], document: type[BaseModel] | None, says: str, conflicts: tuple[str, ...] = ()
) -> OnStudy:
    def begin(service: Service, study: str, _: int, body: Any) -> StudyCall:
        return sealed_test_calls.on_test(service, verb, study, body)

    return OnStudy(f"{verb}_test", f"{_TEST}:{verb}", body, begin, document, says, conflicts)


def _ask_study(service: Service, study: str, _: int, body: Any) -> StudyCall:
    return asking.ask_study(service, study, body)


_SUGGEST = {"attempt": 1, "parameters": {"lr": {"type": "float", "low": 1e-5, "high": 0.1, "log": True}}}
_VALUES = "the values of these parameters, which are the trial's from now on"
_NEXT_TOLD = "the trial, and what was asked for next"

ON_STUDY = (
    OnStudy("ask_study", _STUDY + "/trials:ask", Ask, _ask_study, AskDocument, _FOUND, ("study_state",), (_ASK,)),
    _on_trial("report", Reports, KeptDocument, "kept, with the pruning decision", _LOST, _REPORT),
    _on_trial("heartbeat", Heartbeat, KeptDocument, "the lease is kept", _LOST, {"attempt": 1}),
    _on_trial("suggest", Suggest, SuggestDocument, _VALUES, _LOST, _SUGGEST),
    _on_trial("tell", Tell, ToldDocument, _NEXT_TOLD, _TOLD_OTHERWISE, _TOLD, {**_TOLD, "next": _NEXT}),
    _on_trial("release", Release, TrialDocument, "the trial", (), {"attempt": 1, "reason": "preempted"}),
    _on_test("heartbeat", Heartbeat, KeptDocument, "the lease is kept", _LOST),
    _on_test("tell", TestResult, None, "the test as it reads", _TOLD_OTHERWISE),
    _on_test("release", Release, None, "the test as it reads"),
)

ACROSS_STUDIES = (
    AcrossStudies(
        "ask_any",
        "/v1/trials:ask",
        Ask,
        _ask_any,
        {**ok(AskDocument, _FOUND), **responses(400, 413, 422)},
        (_ASK,),
    ),
    AcrossStudies(
        "batch",
        "/v1/trials:batch",
        Batch,
        _batch,
        {
            **ok(BatchDocument, "all calls succeeded"),
            **ok(BatchDocument, "some call was refused", 207),
            **responses(400, 413, 422),
        },
        ({"calls": [{"study": "mnist", "number": 7, "call": "heartbeat", "attempt": 1}]},),
    ),
)


# -- the call at a path -----------------------------------------------------------------------------------


class Found(NamedTuple):
    """The call that a path names. study: None across studies; number: of the trial, 0 without one."""

    call: OnStudy | AcrossStudies
    study: str | None
    number: int


def find(path: bytes) -> Found | None:
    """The call at a path whose names and numbers are well formed, or None."""
    match = _PATHS.fullmatch(path)
    if match is None:
        return _ACROSS.get(path)
    study, number, on_trial, otherwise = match.groups()
    if number is None:
        return Found(_BY_END[otherwise], study.decode(), 0)
    return Found(_BY_END[on_trial], study.decode(), int(number))


def is_worker_call(path: str) -> bool:
    """Whether it is the path of one of these calls, even with an invalid name or number."""
    return _ANY_PATH.fullmatch(path) is not None


def _end(path: str) -> bytes:
    """The end of a call's path, which identifies it among the calls on a study."""
    return path.removeprefix(_TRIAL).removeprefix(_STUDY + "/").encode()


def _either(calls: Collection[OnStudy]) -> str:
    return "|".join(re.escape(_end(call.path).decode()) for call in calls)


_ACROSS = {call.path.encode(): Found(call, None, 0) for call in ACROSS_STUDIES}
_BY_END = {_end(call.path): call for call in ON_STUDY}
_ON_TRIAL = [call for call in ON_STUDY if call.path.startswith(_TRIAL)]
_OTHERS = [call for call in ON_STUDY if call not in _ON_TRIAL]
_PATHS = re.compile(
    rf"/v1/studies/({STUDY_NAME})/(?:trials/([0-9]{{1,9}})({_either(_ON_TRIAL)})|({_either(_OTHERS)}))".encode()
)

_ANY_PATH = re.compile(
    "|".join(
        re.escape(call.path).replace(r"\{study:segment\}", "[^/:]+").replace(r"\{number:number\}", "[0-9]+")
        for call in (*ON_STUDY, *ACROSS_STUDIES)
    )
)


# -- their routes -----------------------------------------------------------------------------------------

router = router_of("trials")


def _add_on_study(call: OnStudy) -> None:
    async def endpoint(request: Request, body: Any, study: str, number: int = 0) -> Response:
        begun = call.begin(service_of(request), study, number, body)
        return answer(await begun.answer(service_of(request), request.is_disconnected))

    path = {"study": StudyPath, "number": NumberPath} if "{number" in call.path else {"study": StudyPath}
    described = {**ok(call.document, call.says), **responses(400, 404, 413, 422, conflicts=call.conflicts)}
    _add(call, endpoint, path, described)


def _add_across_studies(call: AcrossStudies) -> None:
    async def endpoint(request: Request, body: Any) -> Response:
        status, content = await call.answer(service_of(request), body, studies_of(request), request.is_disconnected)
        return answer(content, status)

    _add(call, endpoint, {}, call.responses)


def _add(
    call: OnStudy | AcrossStudies,
    endpoint: Callable[..., Awaitable[Response]],
    path: Mapping[str, Any],
    described: Mapping[int | str, dict[str, Any]],
) -> None:
    body: Any = Annotated[call.body, Body(examples=[dict(example) for example in call.examples] or None)]
    kinds = {"request": Request, **path, "body": body}
    by_name = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, by_name, annotation=kind) for name, kind in kinds.items()]
    endpoint.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what the framework reads
    router.add_api_route(call.path, endpoint, methods=["POST"], name=call.name, responses=dict(described))


for _call in ON_STUDY:
    _add_on_study(_call)
for _across in ACROSS_STUDIES:
    _add_across_studies(_across)
