"""Lays out what the site is built from: `python -m tests.docs.site_source FOLDER` (`make docs`).

docs/ as it is, and beside it, under project/, whatever its pages link to elsewhere: other pages, and files as pages
that show them. A link to a folder leads to its README, one to the decisions to a list of them.
"""

from __future__ import annotations

import re
import shutil
import sys
from os.path import relpath
from pathlib import Path

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"
DECISIONS = DOCS / "decisions"

FENCED = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]+)?\)")


def lay_out(folder: Path) -> None:
    """Write everything into the folder, which is emptied first. Raise ValueError for a link that leads nowhere."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DOCS, folder, ignore=shutil.ignore_patterns("*.md"))
    (folder / "decisions" / "index.md").write_text(_list_of_decisions(), encoding="utf-8")
    wanted = sorted(DOCS.rglob("*.md"))
    seen = set(wanted)
    while wanted:
        file = wanted.pop()
        text, linked = _page(file)
        place = folder / _place(file)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
        wanted += linked - seen
        seen |= linked


def _page(file: Path) -> tuple[str, set[Path]]:
    """The page of a file, its links leading to places in the site; and the files that these want to be there."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".md":
        return f"# {file.name}\n\n```{file.suffix[1:]}\n{text}```\n", set()
    linked: set[Path] = set()

    def rewritten(link: re.Match[str]) -> str:
        target = _target(file, link[1])
        if target.suffix == ".md" or not target.is_relative_to(DOCS):
            linked.add(target)
        way = relpath("decisions/index.md" if target == DECISIONS else _place(target), _place(file).parent)
        return f"]({way}{link[2] or ''})"

    parts = FENCED.split(text)
    parts[::2] = [LINK.sub(rewritten, part) for part in parts[::2]]
    return "".join(parts), linked


def _target(file: Path, link: str) -> Path:
    target = (file.parent / link).resolve()
    if target.is_dir() and target != DECISIONS:
        target /= "README.md"
    if not target.exists():
        raise ValueError(f"{file.relative_to(PROJECT)} links to {link}, which is not there")
    return target


def _place(file: Path) -> Path:
    """In the site; the page that shows a file has its name and .md."""
    if file.is_relative_to(DOCS):
        return file.relative_to(DOCS)
    place = "project" / file.relative_to(PROJECT)
    return place if file.suffix == ".md" else place.with_name(f"{file.name}.md")


def _list_of_decisions() -> str:
    lines = ["# Decisions", "", "What was decided, why, and what follows from it.", ""]
    for file in sorted(DECISIONS.glob("*.md")):
        title = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"- [{title.replace('. ', ': ', 1)}]({file.name})")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    lay_out(Path(sys.argv[1]))
