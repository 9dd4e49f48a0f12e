"""The site is built without a warning, each link and picture in it is there, and it loads nothing from elsewhere."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from tests.chromium import HOW_TO_GET_IT, chromium
from tests.docs.site_source import DECISIONS, PROJECT, lay_out
from tests.patience import PATIENCE_SECONDS

# Looked at in a browser: a table, pictures, code that is coloured, letters of another script, a file as a page.
LOOKED_AT = ("index", "article", "article.ko", "reference/study-file", "project/examples/own_training/curl_alone.sh")


def build(folder: Path, config: str) -> subprocess.CompletedProcess[str]:
    (folder / "mkdocs.yml").write_text(config, encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    lay_out(folder / "build" / "site-source")
    done = build(folder, (PROJECT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "site"


class Addresses(HTMLParser):
    """Those that a page leads to, and those that it loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.leads_to: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        if tag == "a" and "href" in given:
            self.leads_to.append(given["href"])
        if tag in ("img", "script", "iframe", "source") and "src" in given:
            self.loads.append(given["src"])
        if tag == "link" and "href" in given:
            self.loads.append(given["href"])


@pytest.mark.slow
def test_every_page_of_the_list_and_every_decision_is_in_the_site(site: Path) -> None:
    def pages(nav: object) -> list[str]:
        if isinstance(nav, str):
            return [nav]
        return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages(part)]  # type: ignore[attr-defined]

    listed = pages(yaml.safe_load((PROJECT / "mkdocs.yml").read_text())["nav"])
    decisions = [f"decisions/{file.name}" for file in DECISIONS.glob("*.md")]
    for page in [*listed, *decisions]:
        assert (site / page.replace("README.md", "index.md")).with_suffix(".html").exists(), page


@pytest.mark.slow
def test_every_link_of_the_site_leads_to_a_place_in_it_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    read = {page: Addresses(page) for page in site.rglob("*.html") if page.name != "404.html"}
    assert len(read) > 60
    for page, addresses in read.items():
        for address in addresses.loads:
            assert not urlsplit(address).netloc, f"{page}: {address}"
        for address in (*addresses.loads, *addresses.leads_to):
            parts = urlsplit(address)
            if parts.netloc or parts.scheme:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{page}: {address}"
            if parts.fragment and target in read:
                assert unquote(parts.fragment) in read[target].ids, f"{page}: {address}"


@pytest.mark.slow
def test_a_link_that_leads_nowhere_ends_the_build(tmp_path: Path) -> None:
    pages = tmp_path / "build" / "site-source"
    pages.mkdir(parents=True)
    config = "site_name: broken\ndocs_dir: build/site-source\nsite_dir: build/site\n"
    (pages / "index.md").write_text("# A page\n")
    assert build(tmp_path, config).returncode == 0
    (pages / "index.md").write_text("# A page\n\n[nowhere](nowhere.md)\n")
    assert build(tmp_path, config).returncode != 0


@pytest.mark.slow
def test_in_a_browser_pictures_are_there_and_no_other_host_is_asked(site: Path) -> None:
    from playwright.sync_api import sync_playwright

    program = chromium()
    if program is None:
        pytest.skip(HOW_TO_GET_IT)
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--headless", "--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        for name in LOOKED_AT:
            page.goto((site / f"{name}.html").as_uri())
            page.wait_for_load_state("load")
            assert page.locator("h1").inner_text()
            broken = "Array.from(document.images).filter(image => image.complete && !image.naturalWidth).length"
            assert page.evaluate(broken) == 0
            for width in (1280, 400):
                page.set_viewport_size({"width": width, "height": 900})
                fits = "document.documentElement.scrollWidth <= window.innerWidth"
                assert page.evaluate(fits), f"{name} is too wide for {width} pixels"
        browser.close()
    assert any(address.endswith(".png") for address in asked)
    assert [address for address in asked if not address.startswith(("file:", "data:", "blob:"))] == []
