"""What the page shows, in a real browser: the list, studies of each kind, live values, other people's texts."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import MakeScreen, Screen, Served

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=alert(1)>"
ODD = [HOSTILE, "\u202egnp.exe", "x" * 500, "\x1b[31mred", "</script><script>alert(1)</script>", "${7*7}", "emoji 🎉"]


def trials_of(page: Page) -> Any:
    return page.get_by_role("region", name="Trials", exact=True)


# -- the list ---------------------------------------------------------------------------------------------


def test_the_list_shows_how_each_study_stands(screen: Screen, served: Served) -> None:
    name = served.create("listed", limits={"trials": 8})
    served.finish(name, 0.25, 0.75, 0.5)
    served.ask(name)
    page = screen.open()
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))
    for words in ("ACTIVE", "3 of 8 · 1 running", "0.750"):
        expect(row).to_contain_text(words)
    expect(row.locator("svg.sparkline")).to_have_count(1)
    served.finish(name, 0.875)
    expect(row).to_contain_text("0.875")  # without a reload
    row.get_by_role("link").click()
    expect(page.get_by_role("heading", name=name)).to_be_visible()


def test_the_newest_activity_is_first_and_the_list_is_filtered(screen: Screen, served: Served) -> None:
    older, newer = served.create("apples"), served.create("pears")
    served.finish(older, 0.5)
    served.call("POST", f"/v1/studies/{newer}:pause")
    page = screen.open()
    links = page.get_by_role("rowheader").get_by_role("link")
    expect(links.first).to_have_text(older)
    page.get_by_label("Filter by name").fill("pears")
    expect(links).to_have_text([newer])
    page.get_by_label("Filter by name").fill("")
    page.get_by_label("Filter by state").select_option("PAUSED")
    expect(links).to_contain_text([newer])
    expect(page.get_by_role("link", name=older, exact=True)).to_have_count(0)


# -- a study ----------------------------------------------------------------------------------------------


def of_each_state(served: Served, state: str) -> str:
    name = served.create(state.lower(), limits={"trials": 3})
    served.finish(name, 0.5, 0.25)
    for verb in {"PAUSED": ["pause"], "STOPPED": ["stop"], "CANCELLED": ["cancel"], "COMPLETED": []}.get(state, []):
        served.call("POST", f"/v1/studies/{name}:{verb}")
    if state in ("STOPPING", "ACTIVE"):
        served.ask(name)
    if state == "STOPPING":
        served.call("POST", f"/v1/studies/{name}:stop")
    if state == "COMPLETED":
        served.finish(name, 0.75)
    assert served.study(name)["state"] == state
    return name


@pytest.mark.parametrize("state", ["ACTIVE", "PAUSED", "STOPPING", "STOPPED", "COMPLETED", "CANCELLED"])
def test_a_study_of_each_state_is_shown_and_open_to_everybody(screen: Screen, served: Served, state: str) -> None:
    name = of_each_state(served, state)
    page = screen.open_study(name)
    expect(page.locator(".title-row")).to_contain_text(state)
    expect(page.get_by_text("Best value")).to_be_visible()
    expect(trials_of(page).get_by_role("row")).to_have_count(
        len(served.call("GET", f"/v1/studies/{name}/trials")["items"]) + 1
    )
    page.get_by_role("heading", name="Importances").wait_for()
    assert screen.violations() == []


def test_a_study_without_trials_is_shown(screen: Screen, served: Served) -> None:
    page = screen.open_study(served.create("empty"))
    expect(page.get_by_text("No trial is complete yet; to maximize.")).to_be_visible()
    assert screen.violations() == []


def test_a_running_trial_shows_its_last_report_as_it_comes(screen: Screen, served: Served) -> None:
    name = served.create("live", limits={"trials": 5})
    number = served.ask(name)["number"]
    page = screen.open_study(name)
    row = trials_of(page).get_by_role("row").filter(has_text="RUNNING")
    for step, value in ((0, 0.31415), (1, 0.71828), (2, 2.5e-5)):
        served.report(name, number, (step, value))
        expect(row).to_contain_text(f"{value:.2e}".replace("e-0", "e-") if value < 1e-3 else str(value))
        expect(row).to_contain_text(f"(step {step})")
    served.tell(name, number, 0.57722)
    expect(trials_of(page)).to_contain_text("0.57722")
    expect(page.locator(".fact-card").first).to_contain_text("0.57722")
    expect(page.get_by_text("1 of 5", exact=True)).to_be_visible()
    second = served.ask(name)["number"]
    expect(trials_of(page).get_by_role("row").filter(has_text="RUNNING")).to_contain_text(str(second))


def test_rounds_are_shown_with_their_ranges(screen: Screen, served: Served) -> None:
    name = served.create("rounds", narrowing={"rounds": 2, "trials_per_round": 6})
    served.finish(name, *(0.1 * n for n in range(8)))
    page = screen.open_study(name)
    expect(page.get_by_role("img", name=re.compile("^Range of"))).to_have_count(3)
    page.get_by_text("The ranges as a table").click()
    after = served.study(name)["rounds"][1]["search_space"]["layers"]
    row = page.get_by_role("region", name="Ranges of rounds").get_by_role("row").filter(has_text="layers").last
    expect(row).to_contain_text(f"{after['low']}.00")
    assert screen.violations() == []


def test_several_directions_show_their_front(screen: Screen, served: Served) -> None:
    name = served.create("front", directions=["maximize", "minimize"])
    for values in ((0.5, 3.0), (0.75, 5.0), (0.25, 9.0)):
        served.tell(name, served.ask(name)["number"], *values)
    page = screen.open_study(name)
    expect(page.get_by_text("2 trials", exact=True)).to_be_visible()
    page.get_by_text("The front as a table").click()
    expect(page.get_by_role("region", name="The front").get_by_role("row")).to_have_count(3)
    page.get_by_label("Which value").select_option(label="value 1 (minimize)")
    assert screen.violations() == []


def test_failures_are_grouped_and_their_trials_open(screen: Screen, served: Served) -> None:
    name = served.create("failing", limits={"failures": 3})
    for size in (1, 2, 3):
        served.tell(name, served.ask(name)["number"], state="FAIL", reason=f"out of memory: {size} GiB")
    page = screen.open_study(name)
    group = page.get_by_role("region", name="Failures", exact=True).get_by_role("row").filter(has_text="out of memory")
    expect(group).to_contain_text("3")
    expect(page.locator(".state-reason")).to_contain_text("3")
    group.get_by_role("button", name="2", exact=True).click()
    dialog = page.get_by_role("dialog", name="Trial 2")
    expect(dialog).to_contain_text("out of memory: 3 GiB")
    expect(dialog).to_contain_text("told")
    assert screen.violations() == []
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def test_workers_are_shown_with_their_leases(screen: Screen, served: Served) -> None:
    name = served.create("worked")
    served.ask(name, "gpu-7")
    page = screen.open_study(name)
    row = page.get_by_role("region", name="Workers").get_by_role("row").filter(has_text="gpu-7")
    expect(row).to_contain_text("Trial 0, attempt 1; lease until")
    served.tell(name, 0, 0.5)
    expect(row).to_contain_text("none")


def test_the_table_is_sorted_and_filtered(screen: Screen, served: Served) -> None:
    name = served.create("sorted")
    served.finish(name, 0.25, 0.75, 0.5)
    served.tell(name, served.ask(name)["number"], state="FAIL", reason="odd")
    page = screen.open_study(name)
    numbers = trials_of(page).get_by_role("rowheader")
    expect(numbers).to_have_text(["3", "2", "1", "0"])
    trials_of(page).get_by_role("button", name="Value").click()
    expect(numbers).to_have_text(["1", "2", "0", "3"])
    trials_of(page).get_by_role("button", name="Value").click()
    expect(numbers).to_have_text(["0", "2", "1", "3"])
    page.get_by_label("Filter trials").fill("value>0.3")
    expect(numbers).to_have_text(["2", "1"])
    page.get_by_label("Filter trials").fill("value>0.3 loss<0.3")
    expect(numbers).to_have_text(["1"])
    page.get_by_label("Filter trials").fill("")
    page.get_by_role("region", name="Trials", exact=True).locator("..").get_by_label("Filter by state").select_option(
        "FAIL"
    )
    expect(numbers).to_have_text(["3"])


def test_a_brush_keeps_the_trials_that_pass_there(screen: Screen, served: Served) -> None:
    name = served.create("brushed", search_space={"x": {"type": "float", "low": 0.0, "high": 1.0}})
    served.finish(name, 0.1, 0.5, 0.9)
    page = screen.open_study(name)
    plot = page.get_by_role("img", name=re.compile("^Parallel"))
    box = plot.bounding_box()
    assert box is not None
    x = box["x"] + box["width"] - 44  # the last axis, of the value
    page.mouse.move(x, box["y"] + 26)
    page.mouse.down()
    page.mouse.move(x, box["y"] + 80, steps=4)
    page.mouse.up()
    expect(page.get_by_text("1 of 3 trials").first).to_be_visible()
    expect(trials_of(page).get_by_role("rowheader")).to_have_text(["2"])
    page.get_by_role("button", name="Show all again").click()
    expect(trials_of(page).get_by_role("rowheader")).to_have_count(3)


# -- other people's texts ---------------------------------------------------------------------------------


def test_what_people_named_is_text_and_breaks_nothing(make_screen: MakeScreen, served: Served) -> None:
    space: dict[str, Any] = {
        name: {"type": "float", "low": 0.0, "high": 1.0}
        for name in (text[:200] for text in ODD if text.isprintable() or "gnp" in text)
    }
    space["choice"] = {"type": "categorical", "choices": ODD}
    name = served.create("odd", search_space=space, metadata={"note": HOSTILE, **dict.fromkeys(ODD, HOSTILE)})
    for text in ODD:
        number = served.ask(name, HOSTILE)["number"]
        served.report(name, number, (0, 0.5))
        served.tell(name, number, 0.5, metrics={text: 0.5})
    served.tell(name, served.ask(name, HOSTILE)["number"], state="FAIL", reason="\n".join(ODD))
    for width in (1366, 360):
        screen = make_screen(viewport={"width": width, "height": 768})
        page = screen.open_study(name)
        page.on("dialog", lambda dialog: pytest.fail(f"a script has run: {dialog.message}"))
        expect(trials_of(page)).to_contain_text(HOSTILE)
        expect(page.get_by_role("region", name="Failures", exact=True)).to_contain_text("onerror")
        assert page.locator("img:not([role])").count() == 0
        assert screen.is_as_wide_as_the_window()
        trials_of(page).get_by_role("rowheader").first.get_by_role("button").click()
        expect(page.get_by_role("dialog")).to_contain_text("gnp.exe")
        assert screen.is_as_wide_as_the_window()
        assert screen.violations() == []


# -- by day and night, wide and narrow --------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(served: Served) -> str:
    name = served.create("full", narrowing={"rounds": 3, "trials_per_round": 10})
    served.finish(name, *itertools.islice(itertools.cycle((0.3, 0.9, 0.6, 0.7)), 22))
    served.tell(name, served.ask(name)["number"], state="FAIL", reason="odd")
    served.report(name, served.ask(name)["number"], (0, 0.4), (1, 0.5))
    return name


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1366, 360])
def test_it_is_whole_and_readable_by_day_and_night(make_screen: MakeScreen, full: str, scheme: Any, width: int) -> None:
    screen = make_screen(viewport={"width": width, "height": 740}, color_scheme=scheme)
    page = screen.open()
    page.get_by_role("link", name=full, exact=True).wait_for()
    assert screen.is_as_wide_as_the_window()
    assert screen.violations() == []
    screen.open_study(full)
    page.get_by_role("heading", name="Importances").wait_for()
    assert screen.is_as_wide_as_the_window()
    assert screen.violations() == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) is (scheme == "dark")


def test_it_is_used_by_keyboard_alone(screen: Screen, full: str) -> None:
    page = screen.open_study(full)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.get_by_role("button", name="Edit", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name=f"Edit {full}")).to_be_visible()
    expect(page.get_by_label("trials", exact=True)).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Edit", exact=True)).to_be_focused()


# -- whoever has no key, another, or one for some studies --------------------------------------------------


def test_without_the_browsers_password_the_page_asks_for_the_key(make_screen: MakeScreen, served: Served) -> None:
    name = served.create("locked")
    screen = make_screen(served.read[:-1] + "!")  # for a browser the same as a question that is waved away
    screen.expected = (401,)
    page = screen.open()
    expect(page.get_by_role("heading", name="A key is needed")).to_be_visible()
    assert screen.violations() == []
    screen.button("Enter key").click()
    page.get_by_label("Key", exact=True).fill(served.admin[:-1] + "!")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="key")).to_be_visible()
    page.get_by_label("Key", exact=True).fill(served.read)
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()
    page.get_by_role("link", name=name, exact=True).click()
    page.get_by_text("live", exact=True).wait_for()
    page.get_by_role("button", name="Forget key").click()
    expect(page.get_by_role("heading", name="A key is needed")).to_be_visible()


def test_a_wrong_password_shows_nothing(make_screen: MakeScreen, served: Served) -> None:
    screen = make_screen(served.read[:-1] + "!")
    screen.expected = (401,)
    page = screen.open(f"/studies/{served.create('secret')}")
    expect(page.get_by_role("heading", name="A key is needed")).to_be_visible()
    expect(page.locator("main")).not_to_contain_text("secret")


def test_a_key_bound_to_studies_sees_those(make_screen: MakeScreen, served: Served) -> None:
    other = served.create("others")
    served.create(name="of-the-bound-key")
    screen = make_screen(served.bound)
    page = screen.open()
    expect(page.get_by_role("rowheader").get_by_role("link")).to_have_text(["of-the-bound-key"])
    screen.open_study("of-the-bound-key")
    screen.expected = (404,)
    screen.open(f"/studies/{other}")
    expect(page.get_by_text(f"there is no study '{other}'")).to_be_visible()


def test_a_study_that_is_not_there_says_so(screen: Screen) -> None:
    screen.expected = (404,)
    page = screen.open("/studies/never-was")
    expect(page.get_by_text("there is no study 'never-was'")).to_be_visible()


# -- events -----------------------------------------------------------------------------------------------


def hide(page: Page, hidden: bool) -> None:
    page.evaluate(
        "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
        " document.dispatchEvent(new Event('visibilitychange')); }",
        hidden,
    )


def test_nothing_is_read_for_a_page_that_nobody_sees(screen: Screen, served: Served) -> None:
    name = served.create("hidden")
    number = served.ask(name)["number"]
    page = screen.open_study(name)
    page.wait_for_timeout(2500)
    hide(page, True)
    calls: list[str] = []
    page.on("request", lambda request: calls.append(request.url))
    served.report(name, number, (0, 0.625))
    page.wait_for_timeout(2500)
    assert calls == []
    hide(page, False)
    expect(trials_of(page)).to_contain_text("0.625 (step 0)")


def test_a_cut_connection_is_shown_and_made_up_for(screen: Screen, served: Served) -> None:
    """The server is killed and started again: the page says so, goes on, and shows what came meanwhile."""
    name = served.create("cut")
    number = served.ask(name)["number"]
    page = screen.open_study(name)
    served.kill()
    expect(page.get_by_text("connection lost, trying again")).to_be_visible()
    served.start()
    served.report(name, number, (3, 0.8125))
    page.get_by_text("live", exact=True).wait_for()
    expect(trials_of(page)).to_contain_text("0.8125 (step 3)")
    screen.errors = [
        error for error in screen.errors if "ERR_CONNECTION" not in error and "ERR_INCOMPLETE" not in error
    ]


def test_a_tab_keeps_so_many_trials_and_no_more(screen: Screen) -> None:
    """An hour of events, in a moment."""
    page = screen.open()
    kept = page.evaluate(
        """async () => {
            const { TrialStore } = await import("/page/trial_store.js");
            const store = new TrialStore({ directions: ["maximize"] });
            for (let number = 0; number < 30000; number++) {
                const reports = [{ step: 0, value: 1, metrics: {} }, { step: 1, value: 2, metrics: {} }];
                const value = number === 11111 ? 5000 : number % 997;
                store.take({ number, state: "COMPLETE", params: {}, values: [value], reports, metrics: null });
            }
            return [store.rows.size, store.curves.size, store.rows.has(11111), store.total];
        }"""
    )
    assert kept[0] <= 5000
    assert kept[1] <= 200
    assert kept[2:] == [True, 30000]


def test_numbers_read_as_people_write_them(screen: Screen) -> None:
    page = screen.open()
    values = [0.975131452, 0.5, 0.05, 7, 42, 123.456, 3.1e-5, 1234567, 0, -0.73, 0.123456, 1e-300, "NaN", "-Infinity"]
    texts = page.evaluate(
        "async (all) => { const f = await import('/page/format.js'); return all.map(f.number); }", values
    )
    assert texts == [
        *("0.97513", "0.500", "0.0500", "7.00", "42.0", "123.46", "3.10e-5", "1.2346e6", "0.00", "-0.730"),
        *("0.12346", "1.00e-300", "NaN", "−∞"),
    ]
