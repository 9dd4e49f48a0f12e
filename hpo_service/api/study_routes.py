"""Routes of studies: create, read, change, narrow, test, importances, export, events."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Body, Header, Query, Request
from pydantic import Field
from starlette.responses import Response

from hpo_service.api.documents import AdviceDocument, ImportancesDocument, RoundDocument, StudyDocument, StudyPage
from hpo_service.api.http import TOML, StudyFileRoute, answer, page, read_page_token
from hpo_service.api.openapi import ok, responses
from hpo_service.api.query_parameters import PageSize, PageToken, StudyPath, router_of, service_of, studies_of
from hpo_service.api.streams import Stream
from hpo_service.domain.errors import Forbidden
from hpo_service.domain.study import StudySpec
from hpo_service.operations import confirming, events, export, sealed_test_calls, studies, trials
from hpo_service.operations.calls import ConfirmRequest, NarrowByHand, Patch, TestRequest

PARQUET = "application/vnd.apache.parquet"
_MEDIA_TYPES = {"csv": "text/csv; charset=utf-8", "jsonl": "application/jsonl", "parquet": PARQUET}

router = router_of("studies", "/v1/studies")

_STUDY_EXAMPLE = {
    "name": "mnist",
    "directions": ["maximize"],
    "search_space": {
        "learning_rate": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
        "weight_decay": {"type": "float", "low": 1e-8, "high": 1e-4, "log": True},
    },
    "sampler": {"name": "random", "seed": 1, "params": {}},
    "limits": {"trials": 100},
    "objective": {"kind": "neural_network", "dataset": "mnist", "samples": 500, "epochs": 50},
}
_TOML_EXAMPLE = """name = "mnist"

[search_space]
learning_rate = { type = "float", low = 1e-6, high = 1e-2, log = true }
"""
_TAGGED = {"ETag": "changes with limits, metadata and state"}


async def create_study(request: Request, spec: Annotated[StudySpec, Body(examples=[_STUDY_EXAMPLE])]) -> Response:
    bound = studies_of(request)
    if bound is not None and spec.name not in bound:
        raise Forbidden(f"this key is bound to other studies than {spec.name!r}, and cannot create it")
    study, tag, new = await studies.create(service_of(request), spec)
    headers = {"ETag": tag, "Location": f"/v1/studies/{spec.name}"}
    return answer(study, 201 if new else 200, headers)


router.add_api_route(
    "",
    create_study,
    methods=["POST"],
    status_code=201,
    responses={
        **ok(StudyDocument, "created", 201, {**_TAGGED, "Location": "the study's path"}),
        **ok(StudyDocument, "the same study was created before", 200, _TAGGED),
        **responses(400, 413, 422, conflicts=("study_exists",)),
    },
    openapi_extra={"requestBody": {"content": {TOML: {"schema": {"type": "string"}, "example": _TOML_EXAMPLE}}}},
    route_class_override=StudyFileRoute,
)


@router.get("", responses={**ok(StudyPage, "a page of studies"), **responses(422)})
async def list_studies(
    request: Request,
    state: Annotated[
        Literal["ACTIVE", "PAUSED", "STOPPING", "STOPPED", "COMPLETED", "CANCELLED"] | None, Query()
    ] = None,
    page_size: PageSize = 50,
    page_token_: PageToken = None,
) -> Response:
    listing = f"studies {state or ''}"
    after = read_page_token(listing, page_token_, Annotated[int, Field(ge=0, le=2**62)])
    items, key = await studies.page(service_of(request), state, after or 0, page_size, studies_of(request))
    return page(items, listing, key)


@router.get("/{study:segment}", responses={**ok(StudyDocument, "the study", headers=_TAGGED), **responses(404)})
async def read_study(request: Request, study: StudyPath) -> Response:
    body, tag = await studies.read(service_of(request), study)
    return answer(body, headers={"ETag": tag})


@router.patch(
    "/{study:segment}",
    responses={
        **ok(StudyDocument, "the changed study", headers=_TAGGED),
        **responses(400, 404, 412, 413, 422, conflicts=("study_sealed",)),
    },
)
async def patch_study(
    request: Request,
    study: StudyPath,
    body: Annotated[Patch, Body(examples=[{"limits": {"trials": 200}, "metadata": {"note": "more"}}])],
    if_match: Annotated[str | None, Header(description="an ETag; a stale one is 412")] = None,
) -> Response:
    changed, tag = await studies.patch(service_of(request), study, body, if_match)
    return answer(changed, headers={"ETag": tag})


@router.delete(
    "/{study:segment}",
    status_code=204,
    responses={**ok(None, "deleted", 204), **responses(404, 422, conflicts=("study_state",))},
)
async def delete_study(
    request: Request, study: StudyPath, force: Annotated[bool, Query(description="though trials are RUNNING")] = False
) -> Response:
    await studies.delete(service_of(request), study, force)
    return Response(status_code=204)


def _verb(verb: str, description: str, conflicts: tuple[str, ...]) -> None:
    @router.post(
        "/{study:segment}:" + verb,
        name=f"{verb}_study",
        operation_id=f"{verb}_study",
        summary=f"{verb.capitalize()} a study",
        responses={**ok(StudyDocument, description, headers=_TAGGED), **responses(404, conflicts=conflicts)},
    )
    async def act(request: Request, study: StudyPath) -> Response:
        body, tag = await studies.act(service_of(request), study, verb)
        return answer(body, headers={"ETag": tag})


_verb("pause", "gives out nothing until resumed; running trials go on", ("study_state",))
_verb("resume", "gives out again", ("study_state",))
_verb("stop", "running trials finish, nothing is given out", ("study_state",))
_verb("cancel", "running trials are told to stop", ("study_sealed",))


@router.post(
    "/{study:segment}:narrow",
    status_code=201,
    responses={
        **ok(RoundDocument, "the round that begins", 201),
        **responses(400, 404, 413, 422, conflicts=("study_state", "study_sealed")),
    },
)
async def narrow_study(
    request: Request, study: StudyPath, body: Annotated[NarrowByHand | None, Body(examples=[{"keep": 0.2}])] = None
) -> Response:
    begun = await studies.narrow_by_hand(service_of(request), study, body or NarrowByHand())
    return answer(begun, 201)


@router.post(
    "/{study:segment}:confirm",
    status_code=202,
    responses={
        **ok(StudyDocument, "its best trials are trained again", 202, _TAGGED),
        **ok(StudyDocument, "this was asked for before", 200, _TAGGED),
        **responses(400, 404, 413, 422, conflicts=("study_state", "study_sealed")),
    },
)
async def confirm_study(
    request: Request,
    study: StudyPath,
    body: Annotated[ConfirmRequest | None, Body(examples=[{"top": 5, "seeds": 5}])] = None,
) -> Response:
    changed, tag, new = await confirming.confirm(service_of(request), study, body or ConfirmRequest())
    return answer(changed, 202 if new else 200, {"ETag": tag})


@router.post(
    "/{study:segment}:test",
    status_code=202,
    responses={
        **ok(StudyDocument, "sealed; one worker gets the test", 202, _TAGGED),
        **ok(StudyDocument, "this test was asked for before", 200, _TAGGED),
        **responses(400, 404, 413, 422, conflicts=("study_state", "study_sealed")),
    },
)
async def seal_study(
    request: Request, study: StudyPath, body: Annotated[TestRequest | None, Body(examples=[{"ensemble": 1}])] = None
) -> Response:
    changed, tag, new = await sealed_test_calls.ask_for_test(service_of(request), study, body or TestRequest())
    return answer(changed, 202 if new else 200, {"ETag": tag})


@router.get(
    "/{study:segment}/importances",
    responses={
        **ok(ImportancesDocument, "shares that sum to 1; null for what never varied"),
        **responses(404, conflicts=("study_state",)),
    },
)
async def read_importances(request: Request, study: StudyPath) -> Response:
    return answer(await trials.importances(service_of(request), study))


@router.get(
    "/{study:segment}/advice",
    responses={**ok(AdviceDocument, "most important first; none where there is nothing to say"), **responses(404)},
)
async def read_advice(request: Request, study: StudyPath) -> Response:
    return answer(await trials.advice(service_of(request), study))


@router.get(
    "/{study:segment}/trials:export",
    responses={
        200: {
            "description": "all trials, streamed",
            "content": {
                "text/csv": {"schema": {"type": "string"}},
                "application/jsonl": {"schema": {}},
                PARQUET: {"schema": {"type": "string", "format": "binary"}},
            },
        },
        **responses(404, 422),
    },
)
async def export_trials(
    request: Request, study: StudyPath, format: Annotated[Literal["csv", "jsonl", "parquet"], Query()] = "csv"
) -> Response:
    pieces = await export.pieces(service_of(request), study, format)
    headers = {"Content-Disposition": f'attachment; filename="{study}.{format}"'}
    return Stream(pieces, media_type=_MEDIA_TYPES[format], headers=headers)


@router.get(
    "/{study:segment}/events",
    responses={
        200: {
            "description": "server-sent events: trial, study, round",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **responses(404, 422),
    },
)
async def read_events(
    request: Request,
    study: StudyPath,
    last_event_id: Annotated[int | None, Header(ge=0, le=2**62, description="0: from the start")] = None,
) -> Response:
    stream = await events.follow(service_of(request), study, last_event_id)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return Stream(stream, media_type="text/event-stream", headers=headers)
