"""The stops of the tour in a real browser, by keys alone: moving the one thing of each changes what is seen."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

from ui.inside.stops import STOPS

NAMES = [stop.name for stop in STOPS]
PAINTED = "(canvas) => canvas.hidden ? '' : canvas.toDataURL()"


def opened(visit: Callable[..., Page], name: str, query: str = "") -> Locator:
    """The stop of that name, at its address, with the focus on its heading."""
    page = visit(f"?inside={1 + NAMES.index(name)}{query}")
    stop = page.locator(f'#inside-tour [data-stop="{name}"]:visible')
    stop.get_by_role("heading", level=2).focus()
    return stop


def reach(wanted: Locator, key: str = "Tab") -> None:
    """Press Tab until something has the focus."""
    for _ in range(20):
        if wanted.evaluate("one => one === document.activeElement"):
            return
        wanted.page.keyboard.press(key)
    raise AssertionError(f"{key} does not lead to {wanted}")


def source(stop: Locator, picture: str) -> str:
    """The source of an img element, once it has one."""
    image = stop.locator(picture)
    image.and_(stop.page.locator("[src]")).wait_for()
    return image.get_attribute("src") or ""


def pictures(images: Locator) -> list[str]:
    """The sources of all eight images, once they are there."""
    expect(images.and_(images.page.locator("[src]:not([data-stale])"))).to_have_count(8)
    return [image.get_attribute("src") or "" for image in images.all()]


@pytest.fixture
def looks(visit: Callable[..., Page]) -> Locator:
    stop = opened(visit, "looks")
    expect(stop.get_by_role("radio")).to_have_count(6)
    return stop


@pytest.fixture
def guess(visit: Callable[..., Page]) -> Locator:
    return opened(visit, "guess")


def test_more_noise_hides_the_picture_from_the_eye_before_the_network_loses_it(visit: Callable[..., Page]):
    stop = opened(visit, "sees")
    before = [source(stop, picture) for picture in (".noisy", ".with", ".without")]
    stop.page.keyboard.press("Tab")
    for _ in range(3):
        stop.page.keyboard.press("ArrowRight")
    after = [source(stop, picture) for picture in (".noisy", ".with", ".without")]
    assert not set(before) & set(after)
    stop.page.keyboard.press("Space")
    expect(stop.locator(".you")).to_have_text("87 %")
    expect(stop.locator(".network")).to_contain_text("%")


def test_other_noise_has_another_guess_and_other_words_too(visit: Callable[..., Page]):
    stop = opened(visit, "first")
    noise, guess = source(stop, ".noise"), source(stop, ".guess")
    stop.page.keyboard.press("Space")
    expect(stop.locator(".noise")).not_to_have_attribute("src", noise)
    expect(stop.locator(".guess")).not_to_have_attribute("src", guess)
    stop.page.keyboard.press("Tab")
    expect(stop.get_by_role("textbox")).to_be_focused()
    stop.page.keyboard.press("Tab")
    stop.page.keyboard.press("Space")  # a pizza
    expect(stop.get_by_role("textbox")).to_have_value("a pizza")
    expect(stop.locator(".guess")).to_have_attribute("alt", "a pizza, guessed from pure noise")


def test_guidance_goes_from_the_picture_without_words_to_the_burnt_one(visit: Callable[..., Page]):
    stop = opened(visit, "push")
    stop.page.keyboard.press("Tab")
    stop.page.keyboard.press("Home")
    assert source(stop, ".pushed") == source(stop, ".without")
    stop.page.keyboard.press("ArrowRight")
    stop.page.keyboard.press("ArrowRight")
    assert source(stop, ".pushed") == source(stop, ".with") != source(stop, ".without")
    stop.page.keyboard.press("End")
    expect(stop.locator("output")).to_have_text("25")
    expect(stop.locator(".effect")).to_have_text("The push is too strong: the colours burn.")


def test_other_words_change_the_picture_less_the_later_they_come(visit: Callable[..., Page]):
    stop = opened(visit, "change")
    keys, after, slider = stop.page.keyboard, stop.locator(".after"), stop.get_by_role("slider")
    reach(slider)
    keys.press("Home")
    expect(stop.locator("output")).to_have_text("1 of 20")
    first = after.get_attribute("src")
    keys.press("End")
    expect(stop.locator("output")).to_have_text("20 of 20")
    expect(after).not_to_have_attribute("src", first or "")
    reach(stop.get_by_role("textbox"))
    keys.press("Control+a")
    keys.type("a cat")
    keys.press("Enter")
    expect(stop).to_have_attribute("aria-busy", "false")
    expect(stop.locator(".strip img[src]")).to_have_count(8)
    expect(after).to_have_attribute("alt", "a rocket, on a blue background; from step 20: a cat")
    last = after.get_attribute("src")
    reach(slider, "Shift+Tab")
    keys.press("Home")
    expect(after).not_to_have_attribute("src", last or "")


def test_painting_into_the_numbers_changes_the_picture_and_undo_takes_it_back(visit: Callable[..., Page]):
    stop = opened(visit, "numbers")
    keys, picture, channel = stop.page.keyboard, stop.locator(".picture"), stop.get_by_role("application")
    number, undo = stop.locator(".number"), stop.get_by_role("button", name="Undo")
    clean = picture.get_attribute("src")
    reach(channel)
    expect(number).to_contain_text("channel 1 of 8, column 9, row 9")
    keys.press("ArrowRight")
    keys.press("ArrowUp")
    expect(number).to_contain_text("channel 1 of 8, column 10, row 8")
    expect(number).not_to_contain_text("-4.00")
    keys.press("Space")
    expect(number).to_have_text("channel 1 of 8, column 10, row 8: -4.00")
    expect(picture).not_to_have_attribute("src", clean or "")
    painted = picture.get_attribute("src")
    reach(stop.get_by_role("radio", name="Channel 1"))
    keys.press("ArrowRight")
    expect(number).to_contain_text("channel 2 of 8, column 10, row 8")
    reach(channel, "Shift+Tab")
    for key in ("Space", "ArrowDown", "Space", "ArrowDown", "Space"):  # faster than pictures come
        keys.press(key)
    expect(stop).to_have_attribute("aria-busy", "false")
    expect(picture).not_to_have_attribute("src", painted or "")
    reach(undo)
    for _ in range(3):
        keys.press("Enter")
    expect(picture).to_have_attribute("src", painted or "")  # the decoder draws the same numbers alike
    keys.press("Enter")
    expect(picture).to_have_attribute("src", clean or "")
    expect(undo).to_be_disabled()


def test_fresh_noise_from_a_step_gives_other_pictures_and_a_roll_others_again(visit: Callable[..., Page]):
    stop = opened(visit, "decided")
    keys, slider = stop.page.keyboard, stop.get_by_role("slider")
    futures, settled = stop.locator(".futures img"), stop.locator(".settled")
    expect(stop.locator("output")).to_have_text("2 of 20")
    expect(settled).to_have_text(re.compile(r"pose \d+colour \d+detail \d+"))
    before = pictures(futures)
    assert len(set(before)) == 8
    reach(slider)
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    expect(futures.first).not_to_have_attribute("src", before[0])  # from step 4, recorded too
    keys.press("End")
    expect(stop.locator("output")).to_have_text("20 of 20")
    expect(stop.locator(".agree")).to_have_text(re.compile("pose (99|100)"))
    assert not set(before) & set(last := pictures(futures))
    keys.press("Space")
    expect(stop).to_have_attribute("aria-busy", "true")
    expect(stop).to_have_attribute("aria-busy", "false")
    expect(stop.locator("output")).to_have_text("20 of 20")
    assert not set(last) & set(pictures(futures))


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
    box = looks.get_by_label("A word to look for")
    box.fill("fire")
    box.press("Enter")
    expect(looks.locator(".asked :checked + span")).to_have_text("fire")
    expect(looks.locator("figcaption").first).to_contain_text("“fire”")
    expect(looks).to_have_attribute("aria-busy", "false")


def test_a_word_is_crossed_out_and_put_back_by_the_delete_key(looks: Locator):
    keyboard, pictures = looks.page.keyboard, looks.locator("figure:visible img")
    keyboard.press("Tab")
    for _ in range(3):
        keyboard.press("ArrowRight")
    keyboard.press("Delete")
    expect(looks.locator(".crossed")).to_have_text("blue")
    expect(looks).to_have_attribute("aria-busy", "false")
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
    expect(guess.locator(".rival li").first).to_contain_text("a hidden name")
    guess.page.keyboard.press("Space")  # "Tell me"
    expect(guess.locator(".verdict")).to_contain_text("It is an owl.")
    expect(guess.locator(".rival li").first).to_contain_text("an owl")


def test_a_link_leads_to_its_riddle(visit: Callable[..., Page]):
    stop = opened(visit, "guess", "&riddle=3")
    expect(stop.locator("figcaption")).to_contain_text("riddle 3 of")
    expect(stop.locator(".link")).to_have_attribute("href", "?inside=10&riddle=3")


def test_the_end_card_has_the_run_all_formulas_and_a_sheet_to_print(visit: Callable[..., Page]):
    stop = opened(visit, "guess")
    page = stop.page
    page.add_init_script("window.print = () => (parent.printed = document.body.innerText)")
    stop.get_by_role("button", name="End the tour").press("Enter")
    expect(stop.locator(".formulas li")).to_have_count(len(STOPS))
    expect(stop).to_have_attribute("aria-busy", "false")
    expect(stop.locator("img")).to_have_attribute("src", re.compile("^data:image/webp"))
    stop.get_by_role("button", name="Print").press("Enter")
    page.wait_for_function("window.printed")
    assert page.evaluate("printed").count("?") >= 10
    stop.get_by_role("button", name="Another riddle").press("Enter")
    expect(stop.locator("figcaption")).to_contain_text("step 1 of")
