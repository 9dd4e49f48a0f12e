"""The page at / and /studies/{study}: a frame of HTML without any data, and the files that fill it in the browser.

The files are the same for everybody, and served without a key; what they show, they read by the routes under /v1.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Iterable
from functools import lru_cache, partial
from importlib import resources
from importlib.resources.abc import Traversable

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response

from hpo_service.api.query_parameters import service_of, study_name
from hpo_service.domain.errors import HpoError, NotFound
from hpo_service.store.record import Record

router = APIRouter(include_in_schema=False)

FILES = "/page"  # its files are served without a key
_KINDS = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "txt": "text/plain"}

# Nothing inline, nothing from elsewhere, and nothing in another page's frame.
SECURITY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@router.get("/")
async def list_page(request: Request) -> Response:
    return _filled(request.app, "studies")


@router.get("/studies/{study:path}")
async def study_page(request: Request, study: str) -> Response:
    try:
        await service_of(request).reads.in_process(partial(_find, study_name(study)))
    except NotFound as error:
        if not is_page(request.url.path, request.scope["headers"]):
            raise
        return _filled(request.app, "nothing", 404, error.detail)
    return _filled(request.app, "study")


def _find(name: str, record: Record) -> None:
    record.study(name)


def is_page(path: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the call is for the page, by a client that accepts HTML."""
    accepted = b",".join(value for name, value in headers if name == b"accept")
    reads_html = not accepted or b"text/html" in accepted or b"*/*" in accepted
    return (path == "/" or path.startswith("/studies/")) and reads_html


def refused_page(app: FastAPI, error: HpoError, status: int) -> Response:
    """The page with an error; a browser shows it if its password prompt is cancelled. On 401 it asks for the key."""
    return _filled(app, "locked" if status == 401 else "nothing", status, error.detail)


@router.get(FILES + "/{name}")
async def page_file(request: Request, name: str) -> Response:
    kind = _KINDS.get(name.rpartition(".")[2])
    if kind is None:
        raise NotFound("the page has no such file")
    content, tag = _file(name)
    headers = {**SECURITY, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=kind)


def _filled(app: FastAPI, view: str, status: int = 200, message: str = "") -> Response:
    """The frame. view: studies, study, locked or nothing."""
    keys = "none" if app.state.authorizer is None else "needed"
    text = _file("frame.html")[0].decode().replace("{view}", view).replace("{keys}", keys)
    text = text.replace("{modules}", _modules())
    return Response(text.replace("{message}", html.escape(message)), status, SECURITY, "text/html")


@lru_cache(maxsize=1)
def _modules() -> str:
    """Preload links: a browser requests all modules at once, and not each after it has read the one that imports it."""
    names = sorted(entry.name for entry in _folder().iterdir() if entry.name.endswith(".js"))
    return "\n".join(f'<link rel="modulepreload" href="{FILES}/{name}">' for name in names if ".min." not in name)


def _folder() -> Traversable:
    return resources.files("hpo_service.api").joinpath("page")


@lru_cache(maxsize=64)
def _file(name: str) -> tuple[bytes, str]:
    """Content and ETag. Raise NotFound."""
    folder = _folder()
    if name not in {entry.name for entry in folder.iterdir() if entry.is_file()}:
        raise NotFound("the page has no such file")
    content = folder.joinpath(name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'
