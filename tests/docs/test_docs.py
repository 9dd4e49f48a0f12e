"""The pages: every link leads somewhere, every page is in the site, every study file and command shown is one."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main

import hpo_service.client
from hpo_service.cli import command_line
from hpo_service.cli.study_file import StudyFile
from hpo_service.domain.study import StudySpec
from hpo_service.settings import Settings
from hpo_service.tuning.pruners import PRUNERS, make_pruner
from hpo_service.tuning.samplers import SAMPLERS
from tests.docs import samplers_page, sdk_page, settings_page, study_file_page

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"
PAGES = [*DOCS.rglob("*.md"), PROJECT / "README.md", *PROJECT.glob("examples/*/README.md")]


def commands_of(command: Any) -> dict[str, Any]:
    """Those of a group; none of a command."""
    return getattr(command, "commands", {})


def name(file: Path) -> str:
    return str(file.relative_to(PROJECT))


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", PAGES, ids=name)
def test_every_link_leads_to_a_file_and_a_heading(file: Path) -> None:
    text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path) if path else file
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_stands_in_the_site_and_every_page_of_the_site_is_there() -> None:
    listed = set(
        re.findall(r"^ +- (?!project/|decisions/)(\S+\.md)$", (PROJECT / "mkdocs.yml").read_text(), re.MULTILINE)
    )
    there = {str(file.relative_to(DOCS)) for file in DOCS.rglob("*.md") if "decisions" not in file.parts}
    assert listed == there


@pytest.mark.parametrize(
    "writes", [study_file_page, samplers_page, settings_page, sdk_page], ids=lambda module: module.__name__
)
def test_a_reference_page_is_what_the_code_says(writes: Any) -> None:
    assert writes.PAGE.read_text(encoding="utf-8") == writes.page(), f"write it anew: python -m {writes.__name__}"


def test_the_reference_of_the_sdk_names_every_public_name_and_none_that_is_not_there() -> None:
    text = sdk_page.PAGE.read_text(encoding="utf-8")
    placed = [name for _, names in sdk_page.PARTS.values() for name in names]
    assert sorted([*placed, *sdk_page.ERRORS]) == sorted(hpo_service.client.__all__)
    for name in hpo_service.client.__all__:
        assert re.search(rf"(^### |^- `|^\| `){name}\b", text, re.MULTILINE), name


def test_every_sampler_pruner_option_and_setting_is_explained_and_nothing_else_is() -> None:
    text = samplers_page.PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"^## Sampler (\w+)$", text, re.MULTILINE)) == set(SAMPLERS)
    assert set(re.findall(r"^## Pruner (\w+)$", text, re.MULTILINE)) == set(PRUNERS)
    kinds: dict[str, Any] = {**SAMPLERS, **PRUNERS}
    options = [(name, option) for name, kind in kinds.items() for option in kind.options]
    known = {option for _, option in options} | {f"{name}.{option}" for name, option in options}
    assert set(samplers_page.MEANING) <= known
    assert set(settings_page.OF_THE_SERVER) == set(Settings.model_fields)


def test_the_defaults_that_the_page_has_of_the_patient_pruner_are_those_it_takes() -> None:
    def made(**given: Any) -> Any:
        pruner = {"name": "patient", "params": {"patience": 3, **given}}
        return vars(make_pruner(StudySpec.model_validate({"name": "x", "define_by_run": True, "pruner": pruner})))

    assert made() == made(**samplers_page.OF_PATIENT)
    assert made() != made(min_delta=1.0)


def test_the_reference_of_commands_has_every_command_and_no_other() -> None:
    named = re.findall(r"^\| `hpo (\S+)`", (DOCS / "reference" / "commands.md").read_text(), re.MULTILINE)
    assert set(named) == set(commands_of(typer.main.get_command(command_line())))


@pytest.mark.parametrize("file", PAGES, ids=name)
def test_every_study_file_shown_is_a_study(file: Path) -> None:
    for block in re.findall(r"```toml\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL):
        StudyFile(file, tomllib.loads(block), {}).spec()


@pytest.mark.parametrize("file", PAGES, ids=name)
def test_every_command_shown_is_there_with_its_options(file: Path) -> None:
    root = typer.main.get_command(command_line())
    for block in re.findall(r"```console\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL):
        for line in (line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ hpo ")):
            words = shlex.split(line.partition("  #")[0].partition(" -- ")[0])[1:]
            command: Any = root
            while known := commands_of(command):
                command = known[words.pop(0)]
            if command.name in ("worker", "agent"):
                continue  # listed here, and imported only where they are wanted
            options = {option for parameter in command.params for option in parameter.opts}
            assert {word.partition("=")[0] for word in words if word.startswith("-")} <= options, line
