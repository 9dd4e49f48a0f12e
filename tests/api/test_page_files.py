"""The page: whole without anything from elsewhere, small, and open only as far as it shows nothing."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from hpo_service.api import page_routes
from hpo_service.api.page_routes import SECURITY

FOLDER = Path(page_routes.__file__).with_name("page")
FILES = sorted(file.name for file in FOLDER.iterdir())
SERVED = [name for name in FILES if name != "frame.html"]
LARGEST = 200_000  # bytes together
# dist/uPlot.iife.min.js and LICENSE of the npm package uplot 1.6.32
FOREIGN = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uplot-license.txt": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}


def test_all_files_together_are_small() -> None:
    assert sum((FOLDER / name).stat().st_size for name in FILES) < LARGEST


@pytest.mark.parametrize("name", FOREIGN)
def test_what_others_wrote_is_what_they_have_published(name: str) -> None:
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == FOREIGN[name]


def test_a_browser_may_fetch_nothing_from_elsewhere_and_run_nothing_inline(api: Any) -> None:
    study = api.create()
    for path in ("/", f"/studies/{study}", "/studies/never-was", *(f"/page/{name}" for name in SERVED)):
        answer = api.client.get(path)
        assert {name: answer.headers[name] for name in SECURITY} == SECURITY, path
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_the_frame_names_files_of_this_server_only_and_has_nothing_inline(api: Any) -> None:
    frame = api.get("/").text
    named = re.findall(r'(?:src|href)="([^"#]+)"', frame)
    assert len(named) >= 5
    for path in named:
        assert path.startswith("/")
        assert path in ("/", "/docs", "/dashboard") or api.get(path).status_code == 200
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", frame)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js") and name not in FOREIGN])
def test_nothing_that_people_named_becomes_markup(name: str) -> None:
    code = (FOLDER / name).read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", code)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", code)


@pytest.mark.parametrize("name", SERVED)
def test_a_file_is_sent_again_only_when_it_has_changed(api: Any, name: str) -> None:
    first = api.get(f"/page/{name}")
    assert first.status_code == 200
    again = api.get(f"/page/{name}", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["..%2fapp.py", "%2e%2e", "app.py", "x", "%00", "page.css/", "frame.html"])
def test_other_files_are_not_served(api: Any, name: str) -> None:
    assert api.get(f"/page/{name}").status_code == 404


@pytest.mark.parametrize("name", ["never-was", "Never", "a%20b", "%3Cscript%3Ealert(1)%3C%2Fscript%3E", "x:pause"])
def test_a_study_that_is_not_there_is_404_as_a_page_and_as_a_problem(api: Any, name: str) -> None:
    page = api.client.get(f"/studies/{name}", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "<script>alert" not in page.text
    assert "there is no study" in page.text
    assert api.code(api.get(f"/studies/{name}", headers={"Accept": "application/json"})) == "not_found"


def test_without_keys_the_page_asks_for_none(api: Any) -> None:
    assert 'data-keys="none"' in api.get("/").text
