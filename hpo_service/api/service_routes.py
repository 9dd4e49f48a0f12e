"""Routes of the service itself: health, readiness, version, workers, metrics."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Request
from pydantic import AfterValidator
from starlette.responses import Response

from hpo_service import __version__
from hpo_service.api import metrics
from hpo_service.api.documents import HealthDocument, ReadinessDocument, VersionDocument, WorkerDocument, WorkerPage
from hpo_service.api.http import answer, page_token, read_page_token
from hpo_service.api.openapi import ok, responses
from hpo_service.api.problems import problem
from hpo_service.api.query_parameters import PageSize, PageToken, router_of, service_of, studies_of
from hpo_service.domain.errors import NotFound
from hpo_service.domain.study import Caller
from hpo_service.operations import known_workers

router = router_of("service")


def _worker_id(name: str) -> str:
    if not (1 <= len(name) <= 128 and name.isascii() and name.isprintable()):
        raise NotFound("no worker of that name was ever seen")
    return name


WorkerPath = Annotated[str, Path(description="the worker's id", examples=["gpu-3"]), AfterValidator(_worker_id)]


@router.get("/version", responses=ok(VersionDocument, "this version") | responses(without_key=True))
async def version() -> Response:
    return answer({"version": __version__, "api": "v1"})


@router.get("/healthz", responses=ok(HealthDocument, "alive") | responses(without_key=True))
async def healthz() -> Response:
    return answer({"status": "alive"})


@router.get("/readyz", responses={**responses(without_key=True), **ok(ReadinessDocument, "ready")})
async def readyz(request: Request) -> Response:
    faults = await request.app.state.readiness.faults()
    if faults:
        return problem(503, "unavailable", "; ".join(faults))
    return answer({"ready": True, "faults": []})


@router.get("/v1/workers", responses={**ok(WorkerPage, "a page of workers"), **responses(422)})
async def list_workers(request: Request, page_size: PageSize = 50, page_token_: PageToken = None) -> Response:
    after = read_page_token("workers", page_token_, Caller)
    items, key = await known_workers.page(service_of(request), after or "", page_size, studies_of(request))
    return answer({"items": items, "next_page_token": page_token("workers", key)})


@router.post(
    "/v1/workers/{worker_id:path}:drain", responses={**ok(WorkerDocument, "it gets no more trials"), **responses(404)}
)
async def drain_worker(request: Request, worker_id: WorkerPath) -> Response:
    return answer(await known_workers.drain(service_of(request), worker_id))


@router.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **responses()})
async def read_metrics(request: Request) -> Response:
    service = service_of(request)
    figures, reachable = await service.figures.latest()
    return Response(metrics.exposition(service, figures, reachable), media_type=metrics.MEDIA_TYPE)
