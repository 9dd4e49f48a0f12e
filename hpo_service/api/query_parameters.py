"""What several routes share: their router, path and page parameters, access to the service."""

from __future__ import annotations

import re
from operator import attrgetter
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from pydantic import AfterValidator

from hpo_service.api.http import StrictRoute
from hpo_service.domain.errors import NotFound
from hpo_service.operations.service import Service

KEY_STUDIES = "hpo_studies"  # in a call's ASGI scope: the studies that its key is bound to
STUDY_NAME = "[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_NAME = re.compile(STUDY_NAME)


def study_name(name: str) -> str:
    # No study has an invalid name: 404 without asking the database.
    if not _NAME.fullmatch(name):
        raise NotFound("there is no study of that name; names are of a-z, 0-9, _ and -")
    return name


def _trial_number(number: int) -> int:
    if number >= 2**31:
        raise NotFound(f"there is no trial {number}")
    return number


StudyPath = Annotated[str, Path(description="the study's name", examples=["mnist"]), AfterValidator(study_name)]
NumberPath = Annotated[int, Path(description="the trial's number", examples=[7]), AfterValidator(_trial_number)]
PageSize = Annotated[int, Query(ge=1, le=1000)]
PageToken = Annotated[str | None, Query(alias="page_token", max_length=2000)]


def router_of(tag: str, prefix: str = "") -> APIRouter:
    """A router whose operations are named after their functions in the OpenAPI document."""
    named = attrgetter("name")
    return APIRouter(prefix=prefix, tags=[tag], route_class=StrictRoute, generate_unique_id_function=named)


def service_of(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def studies_of(request: Request) -> frozenset[str] | None:
    """The studies that the caller's key is bound to; None: all of them."""
    studies: frozenset[str] | None = request.scope.get(KEY_STUDIES)
    return studies
