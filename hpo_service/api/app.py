"""The application: the service, its routes, and the reaper beside them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI

from hpo_service import __version__, log_format
from hpo_service.api import docs_page, metrics, openapi, problems, service_routes, study_routes, trial_routes
from hpo_service.api.dashboard import Dashboard
from hpo_service.api.door import Admission, Door
from hpo_service.api.hot_routes import HotRoutes
from hpo_service.api.http import BodyLimit
from hpo_service.operations.keyring import Keyring
from hpo_service.operations.reaper import reap
from hpo_service.operations.service import Service
from hpo_service.settings import Settings
from hpo_service.store import KeyTable
from hpo_service.store.engine import Clock

DESCRIPTION = """Studies sample hyperparameters, workers ask for trials and tell results, everything is recorded in SQL.

Errors are application/problem+json; `code` says which, `errors` where. Every call may be repeated.
"""


def create_app(
    settings: Settings, clock: Clock | None = None, *, with_reaper: bool = True, with_keys: bool = True
) -> FastAPI:
    """The app opens the database when it starts and closes it when it stops.

    clock: seconds since 1970 for tests; by default the database's own. with_keys: whether callers must show one.
    """

    log_format.configure()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = await asyncio.to_thread(Service, settings.database_url, clock)
        app.state.service = service
        app.state.keyring = Keyring(KeyTable(settings.database_url, clock), settings.private_key_hash)
        reaper = asyncio.create_task(reap(service)) if with_reaper else None
        try:
            yield
        finally:
            if reaper is not None:
                reaper.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await reaper
            app.state.keyring.close()
            await asyncio.to_thread(service.close)

    app = FastAPI(
        title="hpo-service",
        version=__version__,
        description=DESCRIPTION,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    routers = (study_routes.router, trial_routes.router, service_routes.router, docs_page.router)
    for router in routers:
        app.include_router(router)
    app.state.routes = [route for router in routers for route in router.routes] + app.routes
    problems.install(app)
    openapi.complete(app)
    app.add_middleware(Dashboard, wsgi=lambda: _dashboard(app))
    app.add_middleware(BodyLimit)
    app.add_middleware(HotRoutes, application=app)
    app.state.admission = Admission(lambda: app.state.keyring, settings.rate_limit) if with_keys else None
    if with_keys:
        app.add_middleware(Door, admission=app.state.admission)
    app.add_middleware(metrics.Measured)
    return app


def _dashboard(app: FastAPI) -> Any:
    from hpo_service.tuning.dashboard import dashboard_app

    return dashboard_app(app.state.service.database)
