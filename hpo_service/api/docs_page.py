"""/docs: the API's description to read and try out, with Swagger UI served from here and nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import APIRouter, Request
from starlette.responses import FileResponse, JSONResponse, Response

from hpo_service.domain.errors import NotFound

router = APIRouter(include_in_schema=False)

_ASSETS = Path(fastapi_offline.__file__).with_name("static")
_KINDS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon.png": "image/png"}

# Swagger UI writes styles into its elements; scripts come from files only, and nothing from other hosts.
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>hpo-service: the API</title>
<link rel="icon" href="/docs/favicon.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<noscript>This page needs JavaScript; the description itself is at /v1/openapi.json.</noscript>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""

# validatorUrl: otherwise the page would have a service on the internet validate the description.
_START = """SwaggerUIBundle({
    url: "/docs/openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    docExpansion: "list",
    validatorUrl: null,
    presets: [SwaggerUIBundle.presets.apis],
    layout: "BaseLayout"
});
"""


@router.get("/docs")
async def page() -> Response:
    return Response(_PAGE, headers=SECURITY, media_type="text/html")


@router.get("/docs/openapi.json")
async def description(request: Request) -> Response:
    """The same as /v1/openapi.json, at a path for which browsers send the password of this page along."""
    document: dict[str, Any] = request.app.openapi()
    return JSONResponse(document, headers=SECURITY)


@router.get("/docs/start.js")
async def start() -> Response:
    return Response(_START, headers=SECURITY, media_type="text/javascript")


@router.get("/docs/{name}")
async def asset(name: str) -> Response:
    if name not in _KINDS:
        raise NotFound("there is no such file of this page")
    headers = {**SECURITY, "Cache-Control": "private, max-age=86400"}
    return FileResponse(_ASSETS / name, media_type=_KINDS[name], headers=headers)
