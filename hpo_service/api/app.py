"""The FastAPI application: the service, its routes and middleware, and the background tasks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI

from hpo_service import __version__, log_format
from hpo_service.api import (
    artifact_routes,
    docs_page,
    metrics,
    openapi,
    page_routes,
    problems,
    request_log,
    service_routes,
    study_routes,
    summary_routes,
    trial_routes,
    worker_calls,
)
from hpo_service.api.auth import AuthMiddleware, Authorizer
from hpo_service.api.dashboard import Dashboard
from hpo_service.api.http import BodyLimit
from hpo_service.api.page_guard import PageGuard
from hpo_service.api.readiness import Readiness
from hpo_service.api.response_headers import ResponseHeaders
from hpo_service.objects.object_store import open_store
from hpo_service.operations.artifacts import ArtifactBounds, Artifacts
from hpo_service.operations.clearing_away import clear_away
from hpo_service.operations.drawing_process import DrawingProcess
from hpo_service.operations.keyring import Keyring
from hpo_service.operations.reaper import begin, reap
from hpo_service.operations.service import Service
from hpo_service.reading.reading_process import ReadingProcess
from hpo_service.settings import Settings
from hpo_service.store import KeyTable
from hpo_service.store.engine import Clock

DESCRIPTION = """Studies sample hyperparameters, workers ask for trials and tell results, everything is recorded in SQL.

Errors are application/problem+json; `code` says which, `errors` where. Every call may be repeated.
"""


def create_app(
    settings: Settings,
    clock: Clock | None = None,
    *,
    with_reaper: bool = True,
    with_keys: bool = True,
    with_reading_process: bool = False,
) -> FastAPI:
    """The app opens the database when it starts and closes it when it stops.

    clock: seconds since 1970 for tests; by default the database's own. with_keys: whether callers need an API key.
    with_reading_process: whether reads and slow draws run in separate processes, by the database's own clock.
    """

    log_format.configure()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        reading = ReadingProcess(settings.database_url) if with_reading_process else None
        drawing = DrawingProcess(settings.database_url) if with_reading_process else None
        service = await asyncio.to_thread(Service, settings.database_url, clock, reading, drawing)
        app.state.service = service
        app.state.artifacts = _artifacts(service, settings)
        app.state.readiness = Readiness(service.database.faults)
        app.state.keyring = Keyring(KeyTable(settings.database_url, clock), settings.private_key_hash)
        if with_reaper:
            await begin(service)
        background = [asyncio.create_task(metrics.watch_the_event_loop())]
        if with_reaper:
            background += [asyncio.create_task(loop(service)) for loop in (reap, clear_away)]
            background.append(asyncio.create_task(app.state.artifacts.sweep_on()))
        background += [asyncio.create_task(process.keep()) for process in (reading, drawing) if process is not None]
        try:
            yield
        finally:
            for task in background:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            app.state.artifacts.close()
            app.state.keyring.close()
            await asyncio.to_thread(service.close)

    app = FastAPI(
        telemetry={"tracing": False, "metrics": False, "logs": False},  # the request log makes the spans
        title="hpo-service",
        version=__version__,
        description=DESCRIPTION,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    routers = (
        *(study_routes.router, summary_routes.router, worker_calls.router, trial_routes.router),
        *(artifact_routes.router, service_routes.router, docs_page.router, page_routes.router),
    )
    # Apps share the routers' route objects: include_router would have each app build all of them again at first calls.
    for router in routers:
        app.router.routes.extend(router.routes)
    problems.install(app)
    openapi.complete(app)
    app.add_middleware(Dashboard, service=lambda: app.state.service)
    app.add_middleware(BodyLimit)
    app.state.authorizer = Authorizer(lambda: app.state.keyring, settings.rate_limit) if with_keys else None
    if with_keys:
        app.add_middleware(AuthMiddleware, authorizer=app.state.authorizer)
    else:
        app.add_middleware(PageGuard)
    app.state.access_log = settings.access_log
    app.add_middleware(request_log.RequestLog, access_log=settings.access_log)  # around all that may fail
    app.add_middleware(ResponseHeaders)
    return app


def _artifacts(service: Service, settings: Settings) -> Artifacts:
    """Artifacts where the settings say, by default beside SQLite's file. Raise ValueError for an unusable place."""
    file, place = service.database.file, settings.artifacts
    if place is None and file is not None:
        place = f"{file.path}.artifacts"
    bounds = ArtifactBounds(settings.artifact_bytes, settings.artifact_total_bytes)
    return Artifacts(service, None if place is None else open_store(place), bounds)
