"""/docs comes from this server alone: a page on a machine without the internet is a whole page."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hpo_service.api.docs_page import SECURITY

FILES = ("", "/start.js", "/swagger-ui-bundle.js", "/swagger-ui.css", "/favicon.png", "/openapi.json")


def test_the_page_names_files_of_this_server_only_and_all_are_there(api: Any) -> None:
    page = api.get("/docs").text
    named = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(named) == 4
    for path in named:
        assert path.startswith("/docs/")
        assert api.get(path).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES)
def test_a_browser_is_told_to_fetch_nothing_from_elsewhere(api: Any, path: str) -> None:
    answer = api.get(f"/docs{path}")
    assert {name: answer.headers[name] for name in SECURITY} == SECURITY
    policy = answer.headers["content-security-policy"]
    assert not re.search(r"https?:|\*|unsafe-eval|script-src [^;]*unsafe", policy)


def test_the_page_shows_the_description_that_the_api_publishes(api: Any) -> None:
    assert api.get("/docs/openapi.json").json() == api.get("/v1/openapi.json").json()
    assert "/docs/openapi.json" in api.get("/docs/start.js").text


@pytest.mark.parametrize("name", ["redoc.standalone.js", "..%2f__init__.py", "%2e%2e", "__init__.py", "x", "%00"])
def test_other_files_are_not_served(api: Any, name: str) -> None:
    assert api.get(f"/docs/{name}").status_code == 404


def test_there_is_no_page_that_loads_from_a_cdn(api: Any) -> None:
    for path in ("/redoc", "/docs/oauth2-redirect", "/docs/"):
        assert api.get(path).status_code == 404
