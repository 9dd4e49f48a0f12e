"""Routes for screens: studies thinned and summarized, read in the reading process, so that looking is cheap."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import Query, Request
from pydantic import Field
from starlette.responses import Response

from hpo_service.api.documents import (
    CurvesDocument,
    FailuresDocument,
    HistoryDocument,
    OverviewPage,
    StudyWorkersDocument,
)
from hpo_service.api.http import answer, page, read_page_token
from hpo_service.api.openapi import ok, responses
from hpo_service.api.query_parameters import PageSize, PageToken, StudyPath, router_of, service_of, studies_of
from hpo_service.reading import summaries_of_studies as summaries

router = router_of("for a screen", "/v1/studies")

Points = Annotated[int, Query(ge=1, le=20_000, description="so many trials at most")]
CurvePoints = Annotated[int, Query(ge=2, le=2_000, description="about so many reports of each curve at most")]
Curves = Annotated[int, Query(ge=0, le=100)]


@router.get(":overview", responses={**ok(OverviewPage, "a line a study"), **responses(422)})
async def list_overview(request: Request, page_size: PageSize = 50, page_token_: PageToken = None) -> Response:
    """How each study stands: state, counts, best value and how it came about, workers, last activity, time left."""
    after = read_page_token("overview", page_token_, Annotated[int, Field(ge=0, le=2**62)])
    work = partial(summaries.overview, after=after or 0, size=page_size, only=studies_of(request))
    items, key = await service_of(request).read_all_in_process(work)
    return page(items, "overview", key)


@router.get("/{study:segment}/history", responses={**ok(HistoryDocument, "its trials, thinned"), **responses(404, 422)})
async def read_history(request: Request, study: StudyPath, points: Points = 2000) -> Response:
    """All trials where there are no more than `points`; else the steps of the best, what runs or waits, the best ones,
    and an even choice of the rest. `shown` of `trials` says how many; fewer, too, where they take more than 8 MiB."""
    return answer(await service_of(request).read_in_process(study, partial(summaries.history, points=points)))


@router.get("/{study:segment}/curves", responses={**ok(CurvesDocument, "curves, thinned"), **responses(404, 422)})
async def read_curves(
    request: Request, study: StudyPath, best: Curves = 10, running: Curves = 20, points: CurvePoints = 200
) -> Response:
    """What the best COMPLETE trials have reported, best first, and then what those report that run, newest first."""
    work = partial(summaries.curves, best=best, running=running, points=points)
    return answer(await service_of(request).read_in_process(study, work))


@router.get("/{study:segment}/failures", responses={**ok(FailuresDocument, "by reason"), **responses(404)})
async def read_failures(request: Request, study: StudyPath) -> Response:
    """Why trials have failed, most frequent first; reasons that differ in numbers only count as one."""
    return answer(await service_of(request).read_in_process(study, summaries.failures))


@router.get("/{study:segment}/workers", responses={**ok(StudyWorkersDocument, "its workers"), **responses(404)})
async def list_study_workers(request: Request, study: StudyPath) -> Response:
    """The workers that hold trials of the study, with their leases, or have been the last to hold one."""
    return answer(await service_of(request).read_in_process(study, summaries.workers))
