"""What the page does, in a real browser: each verb, the key that it takes, and refusals in the service's words."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.page.conftest import SPACE, MakeScreen, Screen, Served

pytestmark = pytest.mark.slow

NETWORK = {"kind": "neural_network", "samples": 100, "epochs": 2}
NETWORK_SPACE = {"learning_rate": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True}}


@pytest.fixture
def study(served: Served) -> str:
    name = served.create("steered", limits={"trials": 10})
    served.finish(name, 0.25, 0.75, 0.5)
    return name


@pytest.fixture
def steering(screen: Screen, study: str) -> Screen:
    """The study's page, with an admin key typed in before."""
    screen.open_study(study)
    screen.has_key()
    return screen


# -- the key ----------------------------------------------------------------------------------------------


def test_a_verb_without_a_key_asks_for_one_once_and_enter_submits_it(
    screen: Screen, served: Served, study: str
) -> None:
    page = screen.open_study(study)
    screen.button("Pause").click()
    field = page.get_by_label("Key", exact=True)
    expect(field).to_be_focused()
    expect(field).to_have_attribute("type", "password")
    field.fill(served.admin)
    page.keyboard.press("Enter")
    expect(page.locator(".title-row")).to_contain_text("PAUSED")
    assert served.study(study)["state"] == "PAUSED"
    screen.button("Resume").click()  # not asked again
    expect(page.locator(".title-row")).to_contain_text("ACTIVE")
    page.reload()
    screen.button("Pause").click()
    expect(page.locator(".title-row")).to_contain_text("PAUSED")
    assert served.admin not in page.url
    assert page.evaluate("[document.cookie, localStorage.length]") == ["", 0]


def test_a_wrong_key_is_refused_in_words_and_asked_for_again(screen: Screen, served: Served, study: str) -> None:
    screen.expected = (401, 403)
    page = screen.open_study(study)
    screen.button("Stop").click()
    page.get_by_label("Key", exact=True).fill(served.admin[:-3] + "abc")
    screen.in_dialog("Stop").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("key")
    page.get_by_label("Key", exact=True).fill(served.read)
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("this key is for read")
    assert served.study(study)["state"] == "ACTIVE"
    page.get_by_label("Key", exact=True).fill(served.admin)
    page.keyboard.press("Enter")
    expect(page.locator(".title-row")).to_contain_text("STOPPED")


# -- verbs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verb", "state"), [("Stop", "STOPPED"), ("Cancel", "CANCELLED")])
def test_what_cannot_be_undone_is_asked_first(
    steering: Screen, served: Served, study: str, verb: str, state: str
) -> None:
    page = steering.page
    steering.button(verb).click()
    expect(page.get_by_role("dialog", name=f"{verb} {study}?")).to_contain_text("cannot be undone")
    assert steering.violations() == []
    steering.in_dialog("Back").click()
    assert served.study(study)["state"] == "ACTIVE"
    steering.button(verb).click()
    steering.in_dialog(verb).click()
    expect(page.locator(".title-row")).to_contain_text(state)
    assert served.study(study)["state"] == state


def test_a_refusal_is_shown_in_the_services_words(steering: Screen, served: Served, study: str) -> None:
    steering.expected = (409,)
    served.call("POST", f"/v1/studies/{study}:stop")
    page = steering.page
    expect(page.locator(".title-row")).to_contain_text("STOPPED")
    steering.button("Pause").click()
    expect(page.get_by_role("alert")).to_contain_text("a STOPPED study cannot pause; pause is for ACTIVE, PAUSED")
    steering.button("Test").click()
    steering.in_dialog("Test").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).not_to_be_empty()


def test_narrow_begins_a_round(steering: Screen, served: Served, study: str) -> None:
    steering.button("Narrow").click()
    steering.page.get_by_label("Share of the best trials to keep").fill("0.5")
    steering.in_dialog("Narrow").click()
    expect(steering.page.get_by_role("heading", name="Rounds")).to_be_visible()
    assert len(served.study(study)["rounds"]) == 2


def test_a_trial_is_enqueued_from_the_search_space(steering: Screen, served: Served, study: str) -> None:
    steering.expected = (422,)
    page = steering.page
    steering.button("Enqueue").click()
    page.get_by_label("learning_rate").fill("1")
    page.get_by_label("layers").fill("3")
    page.get_by_label("optimizer").select_option("sgd")
    assert steering.violations() == []
    steering.in_dialog("Enqueue").click()
    refusal = page.get_by_role("dialog").get_by_role("alert")
    expect(refusal).to_contain_text("/trials/0/params/learning_rate")
    expect(refusal).to_contain_text("lies outside")
    page.get_by_label("learning_rate").fill("3e-4")
    steering.in_dialog("Enqueue").click()
    expect(page.get_by_text("Trial 3 waits.")).to_be_visible()
    params = served.call("GET", f"/v1/studies/{study}/trials/3")["params"]
    assert params == {"learning_rate": 3e-4, "layers": 3, "optimizer": "sgd"}
    expect(page.get_by_role("region", name="Trials", exact=True)).to_contain_text("WAITING")


def test_a_limit_is_raised_and_metadata_is_edited(steering: Screen, served: Served, study: str) -> None:
    page = steering.page
    served.call("PATCH", f"/v1/studies/{study}", {"limits": {"trials": 3}})
    expect(page.locator(".title-row")).to_contain_text("COMPLETED")
    steering.button("Edit").click()
    page.get_by_label("trials", exact=True).fill("7")
    page.get_by_label("Metadata, as JSON").fill('{"note": "<b>longer</b>"')
    steering.in_dialog("Save").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("metadata is not JSON")
    page.get_by_label("Metadata, as JSON").fill('{"note": "<b>longer</b>"}')
    steering.in_dialog("Save").click()
    expect(page.locator(".title-row")).to_contain_text("ACTIVE")
    read = served.study(study)
    assert (read["limits"]["trials"], read["metadata"]) == (7, {"note": "<b>longer</b>"})
    assert read["limits"]["attempts"] == 3


def test_a_trial_is_stopped(steering: Screen, served: Served, study: str) -> None:
    page = steering.page
    number = served.ask(study)["number"]
    page.get_by_role("region", name="Trials", exact=True).get_by_role("button", name=str(number), exact=True).click()
    steering.in_dialog("Stop trial").click()
    page.get_by_role("dialog", name=f"Stop trial {number}?").get_by_role("button", name="Stop trial").click()
    expect(page.get_by_text(f"Trial {number} was told to stop.")).to_be_visible()
    kept = served.call("POST", f"/v1/studies/{study}/trials/{number}:heartbeat", {"attempt": 1})
    assert (kept["should_stop"], kept["reason"]) == (True, "stopped")


def middle_of(element: Any) -> tuple[float, float]:
    box = element.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_an_open_trial_is_live_and_can_be_tried_again(steering: Screen, served: Served, study: str) -> None:
    page = steering.page
    number = served.ask(study)["number"]
    page.get_by_role("region", name="Trials", exact=True).get_by_role("button", name=str(number), exact=True).click()
    served.report(study, number, (0, 0.4375))
    expect(page.get_by_role("dialog")).to_contain_text("0.4375 at step 0")
    again = steering.in_dialog("Enqueue again")
    again.focus()
    page.mouse.move(*middle_of(again))
    page.mouse.down()
    served.report(study, number, (1, 0.5625))
    expect(page.get_by_role("dialog")).to_contain_text("0.5625 at step 1")
    expect(again).to_be_focused()  # what reports paint anew takes the button from nobody
    page.mouse.up()
    steering.in_dialog("Enqueue").click()
    expect(page.get_by_text(f"Trial {number + 1} waits.")).to_be_visible()
    given = [served.call("GET", f"/v1/studies/{study}/trials/{n}")["params"] for n in (number, number + 1)]
    assert given[0] == given[1]


def test_the_keyboard_stays_at_a_button_when_the_one_before_it_goes(
    steering: Screen, served: Served, study: str
) -> None:
    page = steering.page
    number = served.ask(study)["number"]
    page.get_by_role("region", name="Trials", exact=True).get_by_role("button", name=str(number), exact=True).click()
    again = steering.in_dialog("Enqueue again")
    again.focus()
    served.tell(study, number, 0.5)
    expect(steering.in_dialog("Stop trial")).to_have_count(0)
    expect(again).to_be_focused()


def test_a_worker_is_drained(steering: Screen, served: Served, study: str) -> None:
    page = steering.page
    served.ask(study, "gpu-to-go")
    steering.button("Drain gpu-to-go").click()
    steering.in_dialog("Drain").click()
    expect(page.get_by_role("region", name="Workers").get_by_role("row").filter(has_text="gpu-to-go")).to_contain_text(
        "draining"
    )
    body = {"worker_id": "gpu-to-go", "request_id": "later"}
    assert served.call("POST", f"/v1/studies/{study}/trials:ask", body)["drain"] is True


def test_the_sealed_test_is_asked_for_and_shown(screen: Screen, served: Served) -> None:
    name = served.create("sealed", search_space=NETWORK_SPACE, objective=NETWORK, limits={"trials": 1})
    served.finish(name, 0.5)
    page = screen.open_study(name)
    screen.has_key()
    screen.button("Test").click()
    screen.in_dialog("Test").click()
    expect(page.get_by_text("It waits for a worker.")).to_be_visible()
    ask = {"worker_id": "w", "request_id": "the-test", "objectives": ["neural_network"]}
    (job,) = (job for job in served.call("POST", "/v1/trials:ask", ask)["trials"] if job["study"] == name)
    told = {"attempt": job["attempt"], "state": "COMPLETE", "test_accuracy": 0.89, "validation_accuracy": 0.91}
    member = {"seed": 1, "test_accuracy": 0.89, "validation_accuracy": 0.91}
    served.call("POST", f"/v1/studies/{name}/test:tell", {**told, "members": [member], "dataset_sha256": "0" * 64})
    expect(page.get_by_text("89.0 %")).to_be_visible()
    assert screen.violations() == []


# -- studies in and out -----------------------------------------------------------------------------------

TOML = """
name = "{}"
[search_space]
x = {{ type = "float", low = 0, high = 1 }}
"""


@pytest.mark.parametrize("kind", ["toml", "json"])
def test_a_study_is_made_from_a_pasted_file(screen: Screen, served: Served, kind: str) -> None:
    screen.expected = (400, 422)
    page = screen.open()
    screen.has_key()
    name = f"pasted-{kind}"
    text = TOML.format(name)
    if kind == "json":
        text = json.dumps(tomllib.loads(text))
    screen.button("New study").click()
    area = page.get_by_label("Study file", exact=True)
    area.fill(text.replace("high", "hihg"))
    assert screen.violations() == []
    screen.in_dialog("Create").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("/search_space/x/hihg")
    area.fill(text[:-8])
    screen.in_dialog("Create").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text(f"not {kind.upper()}")
    area.fill(text)
    screen.in_dialog("Create").click()
    page.get_by_role("heading", name=name).wait_for()
    assert served.study(name)["search_space"]["x"]["high"] == 1.0


def test_the_best_configuration_is_taken_home_as_a_study_file(screen: Screen, served: Served) -> None:
    name = served.create(
        "home", metadata={"note": 'say "hi"\\'}, sampler={"name": "tpe", "params": {"n_startup_trials": 3}}
    )
    served.finish(name, 0.25, 0.75)
    best = served.study(name)["best"]
    page = screen.open_study(name)
    screen.button("Study file").click()
    area = page.get_by_role("dialog").get_by_label("Study file", exact=True)
    fixed = tomllib.loads(area.input_value())
    served.call("POST", "/v1/studies", fixed)
    given = served.ask(fixed["name"])["params"]
    assert given == best["params"]
    page.get_by_label("The whole study as it was made").check()
    whole = tomllib.loads(area.input_value())
    assert (
        served.call("POST", "/v1/studies", {**whole, "name": f"{name}-again"})["search_space"]
        == served.study(name)["search_space"]
    )
    assert whole["metadata"] == {"note": 'say "hi"\\'}
    assert whole["sampler"]["params"] == {"n_startup_trials": 3}


ODD: list[dict[str, Any]] = [
    {"name": "x", "metadata": {"ключ": '\x7f\x1b\n\t"\\', "a.b": [1, 2.5, True, {"c": "d"}], "": -1e-300}},
    {"name": "x", "search_space": {"a b": {"type": "categorical", "choices": ["", 'q"', 1, 0.5, False, [1, [2]]]}}},
    {"name": "x", "limits": {"seconds": 1e21, "trials": 3, "target": -1e-7}},
]


@pytest.mark.parametrize("body", ODD)
def test_what_is_written_as_toml_reads_back_the_same(screen: Screen, body: dict[str, Any]) -> None:
    page = screen.open()
    code = "async (body) => (await import('/page/study_files.js')).toml(body)"
    assert tomllib.loads(page.evaluate(code, body)) == body


def test_a_file_of_a_study_with_null_among_its_choices_is_json(screen: Screen, served: Served) -> None:
    space = {**SPACE, "schedule": {"type": "categorical", "choices": [None, "cosine"]}}
    name = served.create("nulls", search_space=space)
    page = screen.open_study(name)
    screen.button("Study file").click()
    text = page.get_by_role("dialog").get_by_label("Study file", exact=True).input_value()
    assert json.loads(text)["search_space"]["schedule"]["choices"] == [None, "cosine"]


def test_trials_are_saved_as_a_file(make_screen: MakeScreen, served: Served, study: str) -> None:
    screen = make_screen(accept_downloads=True)
    page = screen.open_study(study)
    with page.expect_download() as saving:
        screen.button("CSV").click()
    assert saving.value.suggested_filename == f"{study}.csv"
    with open(saving.value.path(), encoding="utf-8") as file:
        assert len(file.readlines()) == 4
