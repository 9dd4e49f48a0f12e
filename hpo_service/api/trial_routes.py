"""Routes of trials for people: enqueue, import, list, read, stop."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Body, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from hpo_service.api.documents import AttemptsDocument, TrialDocument, TrialPage, TrialsDocument
from hpo_service.api.http import answer, in_pieces, page_end, read_page_token
from hpo_service.api.openapi import ok, responses
from hpo_service.api.query_parameters import NumberPath, PageSize, PageToken, StudyPath, router_of, service_of
from hpo_service.domain.measure import Measure
from hpo_service.domain.refusal import STRICT
from hpo_service.operations import trials
from hpo_service.operations.calls import Enqueue, Import
from hpo_service.reading.trial_pieces import Key

router = router_of("trials", "/v1")

_TRIALS = "/studies/{study:segment}/trials"
_TRIAL = _TRIALS + "/{number:number}"


@router.post(
    _TRIALS + ":enqueue",
    status_code=201,
    responses={
        **ok(TrialsDocument, "queued", 201),
        **responses(400, 404, 413, 422, conflicts=("study_state", "study_sealed")),
    },
)
async def enqueue(
    request: Request,
    study: StudyPath,
    body: Annotated[Enqueue, Body(examples=[{"trials": [{"params": {"learning_rate": 0.005}}]}])],
) -> Response:
    return answer(await trials.enqueue(service_of(request), study, body), 201)


@router.post(
    _TRIALS + ":import",
    status_code=201,
    responses={**ok(TrialsDocument, "recorded", 201), **responses(400, 404, 413, 422, conflicts=("study_sealed",))},
)
async def import_trials(
    request: Request,
    study: StudyPath,
    body: Annotated[
        Import,
        Body(examples=[{"trials": [{"params": {"learning_rate": 0.005}, "state": "COMPLETE", "values": [0.8]}]}]),
    ],
) -> Response:
    return answer(await trials.import_finished(service_of(request), study, body), 201)


@router.get(_TRIALS, responses={**ok(TrialPage, "a page of trials"), **responses(404, 422)})
async def list_trials(
    request: Request,
    study: StudyPath,
    state: Annotated[Literal["WAITING", "RUNNING", "COMPLETE", "PRUNED", "FAIL"] | None, Query()] = None,
    order_by: Annotated[Literal["number", "value"], Query()] = "number",
    page_size: PageSize = 50,
    page_token_: PageToken = None,
) -> Response:
    listing = f"trials {study} {state or ''} {order_by}"
    begun = read_page_token(listing, page_token_, _Key)
    after = None if begun is None else (begun.value, begun.number, begun.study)

    def ending(key: Key | None) -> bytes:
        return page_end(listing, None if key is None else _jsonable(*key))

    first, rest = await trials.page(service_of(request), study, state, order_by, after, page_size, ending)
    return in_pieces(b'{"items":[' + first, rest)


class _Key(BaseModel):
    """The last trial of a page: its value, which orders it, its number, and the id of its study."""

    model_config = STRICT
    value: Measure | None
    number: Annotated[int, Field(ge=0, lt=2**31)]
    study: Annotated[int, Field(ge=0, lt=2**63)]


def _jsonable(value: float | None, number: int, study: int) -> Any:
    return _Key(value=value, number=number, study=study).model_dump(mode="json")


@router.get(_TRIAL, responses={**ok(TrialDocument, "the trial"), **responses(404)})
async def read_trial(request: Request, study: StudyPath, number: NumberPath) -> Response:
    return in_pieces(*await trials.read(service_of(request), study, number))


@router.get(_TRIAL + "/attempts", responses={**ok(AttemptsDocument, "its attempts"), **responses(404)})
async def list_attempts(request: Request, study: StudyPath, number: NumberPath) -> Response:
    return answer(b'{"items":%s}' % await trials.attempts(service_of(request), study, number))


@router.post(
    _TRIAL + ":stop",
    responses={**ok(TrialDocument, "the trial"), **responses(404, conflicts=("trial_finished",))},
)
async def stop_trial(request: Request, study: StudyPath, number: NumberPath) -> Response:
    return answer(await trials.stop(service_of(request), study, number))
