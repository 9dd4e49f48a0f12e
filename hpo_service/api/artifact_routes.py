"""Routes of artifacts: PUT streams any bytes in, GET streams them out, all or a range."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Header, Path, Query, Request
from pydantic import StringConstraints
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from hpo_service.api.documents import ArtifactDocument, ArtifactsDocument
from hpo_service.api.http import answer
from hpo_service.api.openapi import ok, responses
from hpo_service.api.problems import problem
from hpo_service.api.query_parameters import NumberPath, StudyPath, router_of
from hpo_service.api.streams import Stream
from hpo_service.domain.artifact import ARTIFACT_NAME, Artifact
from hpo_service.domain.errors import InvalidRange
from hpo_service.operations.artifacts import Artifacts, Owner

router = router_of("artifacts", "/v1/studies/{study:segment}")

BYTES = "application/octet-stream"
_ANY_BYTES: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")

NamePath = Annotated[str, Path(examples=["checkpoint.pt"]), StringConstraints(pattern=ARTIFACT_NAME)]
Attempt = Annotated[int, Query(ge=0, le=2**31 - 1, description="that holds the lease")]
RangeHeader = Annotated[str | None, Header(alias="Range", max_length=100, description="one range of bytes")]


def artifacts_of(request: Request) -> Artifacts:
    artifacts = request.app.state.artifacts
    assert isinstance(artifacts, Artifacts)
    return artifacts


async def _put(request: Request, owner: Owner, name: str, attempt: int) -> Response:
    announced = request.headers.get("content-length", "")
    size = int(announced) if announced.isdigit() else None
    try:
        return answer(await artifacts_of(request).put(owner, name, attempt, size, request.stream()))
    except ClientDisconnect:
        return problem(400, "malformed_request", "the upload broke off")


async def _get(request: Request, owner: Owner, name: str, wanted: str | None) -> Response:
    opened = await artifacts_of(request).open(owner, name, _part(wanted))
    artifact = opened.artifact
    headers = {
        "Content-Length": str(opened.end - opened.start),
        "Content-Disposition": f'attachment; filename="{artifact.name}"',
        "ETag": f'"{artifact.sha256}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
    }
    is_part = opened.end - opened.start < artifact.size
    if is_part:
        headers["Content-Range"] = f"bytes {opened.start}-{opened.end - 1}/{artifact.size}"
    return Stream(opened.pieces, 206 if is_part else 200, headers, BYTES)


def _part(wanted: str | None) -> Callable[[Artifact], tuple[int, int]]:
    """Parse a Range header: (start, end) by artifact. All but a single range of bytes is ignored (RFC 9110, 14.2)."""
    found = None if wanted is None else _RANGE.fullmatch(wanted.replace(" ", ""))
    first, last = ("", "") if found is None else found.groups()

    def part(artifact: Artifact) -> tuple[int, int]:
        size = artifact.size
        if not first and not last:
            return 0, size
        start = int(first) if first else max(0, size - int(last))
        end = min(size, int(last) + 1) if first and last else size
        if start >= end:
            raise InvalidRange(f"the artifact has {size} bytes, and {wanted} is none of them")
        return start, end

    return part


_PUT: dict[str, Any] = {
    "responses": {
        **ok(ArtifactDocument, "kept"),
        **responses(400, 404, 413, 422, conflicts=("lease_lost", "trial_finished")),
    },
    "openapi_extra": {"requestBody": {"required": True, "content": {BYTES: _ANY_BYTES}}},
}
_LIST: dict[str, Any] = {"responses": {**ok(ArtifactsDocument, "by name"), **responses(404)}}
_GET: dict[str, Any] = {
    "responses": {
        200: {"description": "the bytes", "content": {BYTES: _ANY_BYTES}},
        206: {"description": "the range of them", "content": {BYTES: _ANY_BYTES}},
        **responses(404, 416, 422),
    }
}
_OF_TRIAL = "/trials/{number:number}/artifacts"
_OF_TEST = "/test/artifacts"


@router.put(_OF_TRIAL + "/{name}", **_PUT)
async def put_artifact(
    request: Request, study: StudyPath, number: NumberPath, name: NamePath, attempt: Attempt
) -> Response:
    return await _put(request, Owner(study, number), name, attempt)


@router.get(_OF_TRIAL, **_LIST)
async def list_artifacts(request: Request, study: StudyPath, number: NumberPath) -> Response:
    return answer({"items": await artifacts_of(request).listed(Owner(study, number))})


@router.get(_OF_TRIAL + "/{name}", **_GET)
async def read_artifact(
    request: Request, study: StudyPath, number: NumberPath, name: NamePath, range_: RangeHeader = None
) -> Response:
    return await _get(request, Owner(study, number), name, range_)


@router.put(_OF_TEST + "/{name}", **_PUT)
async def put_test_artifact(request: Request, study: StudyPath, name: NamePath, attempt: Attempt) -> Response:
    return await _put(request, Owner(study), name, attempt)


@router.get(_OF_TEST, **_LIST)
async def list_test_artifacts(request: Request, study: StudyPath) -> Response:
    return answer({"items": await artifacts_of(request).listed(Owner(study))})


@router.get(_OF_TEST + "/{name}", **_GET)
async def read_test_artifact(
    request: Request, study: StudyPath, name: NamePath, range_: RangeHeader = None
) -> Response:
    return await _get(request, Owner(study), name, range_)
