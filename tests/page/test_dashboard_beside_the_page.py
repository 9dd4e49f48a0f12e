"""optuna-dashboard offers nothing that it would refuse, and shows a key that is bound to studies only those."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.page.conftest import MakeScreen, Screen, Served

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study_id(served: Served) -> int:
    name = served.create("seen")
    served.finish(name, 0.5)
    found = {study["study_name"]: study["study_id"] for study in served.call("GET", "/api/studies")["study_summaries"]}
    return int(found[name])


def test_what_would_be_refused_is_not_offered(screen: Screen, served: Served, study_id: int) -> None:
    page = screen.page
    page.goto(f"{served.url}/dashboard")
    page.get_by_role("button", name="Reload").wait_for()
    for button in (
        page.get_by_role("button", name="Create"),
        page.get_by_label("rename study"),
        page.get_by_label("delete study"),
    ):
        expect(button.first).to_be_hidden()
    for view in ("trials", "note"):
        page.goto(f"{served.url}/dashboard/studies/{study_id}/{view}")
        editing = page.locator("button:has([data-testid=EditIcon])")
        editing.first.wait_for(state="attached")
        expect(editing.first).to_be_hidden()


def test_a_key_that_is_bound_to_studies_sees_only_those(make_screen: MakeScreen, served: Served, study_id: int) -> None:
    served.create(name="of-the-bound-key")
    screen = make_screen(served.bound)
    screen.expected = (404,)
    page = screen.page
    page.goto(f"{served.url}/dashboard")
    expect(page.get_by_text("of-the-bound-key")).to_be_visible()
    expect(page.get_by_text("seen-")).to_have_count(0)
    of_study = f"/api/studies/{study_id}"
    for path in (of_study, f"{of_study}/param_importances", f"{of_study}/plot/slice", f"/csv/{study_id}"):
        assert page.evaluate("path => fetch(path).then((answer) => answer.status)", path) == 404
