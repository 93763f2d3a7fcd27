"""The stops "Where it looks" and "Guess" of the tour through the tab Inside, in a real browser, by keys alone."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

from ui.inside.stops import STOPS

PATIENCE = 120_000
PAINTED = "(canvas) => canvas.hidden ? '' : canvas.toDataURL()"


def address(name: str) -> str:
    """The address of a stop."""
    return f"?inside={1 + [stop.name for stop in STOPS].index(name)}"


def at(page: Page, name: str) -> Locator:
    """The stop in view, with the focus on its heading."""
    stop = page.locator(f'#inside-tour .stop[data-stop="{name}"]')
    expect(stop).to_be_visible(timeout=PATIENCE)
    stop.locator("h2").focus()
    return stop


@pytest.fixture
def looks(visit: Callable[..., Page]) -> Locator:
    stop = at(visit(address("looks")), "looks")
    expect(stop.get_by_role("radio")).to_have_count(6)
    return stop


@pytest.fixture
def guess(visit: Callable[..., Page]) -> Locator:
    return at(visit(address("guess")), "guess")


def test_each_word_lights_its_place_as_strongly_as_the_glow_says(looks: Locator):
    keyboard, heat = looks.page.keyboard, looks.locator("canvas").first
    expect(looks.locator(".empty")).to_have_text(["a", "on", "a"])
    keyboard.press("Tab")
    expect(looks.get_by_role("radio", checked=True)).to_be_focused()
    expect(looks.locator(":checked + span")).to_have_text("rocket")
    seen = [heat.evaluate(PAINTED)]
    for word in ("on", "a", "blue", "background"):
        keyboard.press("ArrowRight")
        expect(looks.locator("figcaption").first).to_contain_text(f"“{word}”")
        seen.append(heat.evaluate(PAINTED))
    keyboard.press("Tab")
    keyboard.press("Home")
    expect(looks.get_by_role("slider")).to_have_value("0")
    seen.append(heat.evaluate(PAINTED))
    assert len(set(seen)) == len(seen)


def test_a_pinned_word_stays_beside_the_next(looks: Locator):
    keyboard, figures = looks.page.keyboard, looks.locator("figure:visible")
    expect(figures).to_have_count(1)
    for key in ("Tab", "Tab", "Tab", "Enter"):  # the words, the glow, the pin
        keyboard.press(key)
    for key in ("Shift+Tab", "Shift+Tab", "ArrowRight", "ArrowRight", "ArrowRight"):
        keyboard.press(key)
    expect(figures).to_have_count(2)
    expect(figures.locator("figcaption")).to_have_text([re.compile("“rocket”"), re.compile("“blue”")])
    left, right = (canvas.evaluate(PAINTED) for canvas in looks.locator("canvas").all())
    assert left != right


def test_a_word_that_is_not_there_is_looked_for(looks: Locator):
    looks.get_by_label("A word to look for").press_sequentially("fire")
    looks.page.keyboard.press("Enter")
    expect(looks.locator(".asked :checked + span")).to_have_text("fire", timeout=PATIENCE)
    expect(looks.locator("figcaption").first).to_contain_text("“fire”")
    expect(looks).to_have_attribute("aria-busy", "false", timeout=PATIENCE)


def test_a_word_is_crossed_out_and_put_back_by_the_delete_key(looks: Locator):
    keyboard, pictures = looks.page.keyboard, looks.locator("figure:visible img")
    keyboard.press("Tab")
    for _ in range(3):
        keyboard.press("ArrowRight")
    keyboard.press("Delete")
    expect(looks.locator(".crossed")).to_have_text("blue")
    expect(looks).to_have_attribute("aria-busy", "false", timeout=PATIENCE)
    expect(pictures).to_have_count(2)
    left, right = (picture.get_attribute("src") for picture in pictures.all())
    assert left != right
    keyboard.press("Delete")
    expect(pictures).to_have_count(1)
    expect(looks.locator(".crossed")).to_have_count(0)


def test_a_riddle_clears_up_and_the_guess_in_any_language_counts(guess: Locator):
    keyboard, picture, verdict = guess.page.keyboard, guess.locator("img"), guess.locator(".verdict")
    expect(guess.locator("figcaption")).to_contain_text("step 1 of 17")
    first = picture.get_attribute("src")
    keyboard.press("Space")
    expect(guess.locator("figcaption")).to_contain_text("step 2 of 17")
    assert picture.get_attribute("src") != first
    expect(guess.locator(".rival li")).to_have_count(5)
    keyboard.press("Tab")
    keyboard.type("a hamburger")
    keyboard.press("Enter")
    expect(verdict).to_contain_text("Not “a hamburger”")
    keyboard.type("die Eule!")
    keyboard.press("Enter")
    expect(verdict).to_contain_text("Yes, an owl! 14 points for you, at step 2. CLIP:")
    expect(guess.locator(".score")).to_contain_text("You 14")


def test_what_clip_is_sure_of_is_covered_until_the_answer_is_known(guess: Locator):
    for _ in range(16):
        guess.page.keyboard.press("Space")
    expect(guess.locator(".rival li").first).to_contain_text("sure of something")
    guess.page.keyboard.press("Space")  # "Tell me"
    expect(guess.locator(".verdict")).to_contain_text("It is an owl.")
    expect(guess.locator(".rival li").first).to_contain_text("an owl")


def test_a_link_leads_to_its_riddle(visit: Callable[..., Page]):
    stop = at(visit(f"{address('guess')}&riddle=3"), "guess")
    expect(stop.locator("figcaption")).to_contain_text("riddle 3 of", timeout=PATIENCE)
    expect(stop.locator(".link")).to_have_attribute("href", f"{address('guess')}&riddle=3")


@pytest.mark.parametrize("number", ["-1", "999", "1.5", "none"])
def test_a_link_to_a_riddle_that_is_not_there_leads_to_the_first(visit: Callable[..., Page], number: str):
    stop = at(visit(f"{address('guess')}&riddle={number}"), "guess")
    expect(stop.locator("figcaption")).to_contain_text("riddle 1 of", timeout=PATIENCE)
    expect(stop.page.locator("#inside-tour .status")).to_be_empty()


def test_the_end_card_has_the_run_all_formulas_and_a_sheet_to_print(visit: Callable[..., Page]):
    page = visit(address("guess"))
    page.context.add_init_script("window.print = () => (parent.printed = document.body.innerText)")
    page.reload()
    stop = at(page, "guess")
    stop.get_by_role("button", name="The end").press("Enter")
    expect(stop.locator(".formulas li")).to_have_count(len(STOPS))
    expect(stop).to_have_attribute("aria-busy", "false", timeout=PATIENCE)
    expect(stop.locator("img")).to_have_attribute("src", re.compile("^data:image/webp"))
    stop.get_by_role("button", name="Print").press("Enter")
    page.wait_for_function("window.printed")
    assert page.evaluate("printed").count("?") >= 10
    stop.get_by_role("button", name="Another riddle").press("Enter")
    expect(stop.locator("figcaption")).to_contain_text("step 1 of", timeout=PATIENCE)
