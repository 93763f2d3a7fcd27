"""The stops about a run's way, in a real browser and by its keys alone: moving the one thing changes the picture."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Locator, Page, expect

from ui.inside.stops import STOPS

NAMES = [stop.name for stop in STOPS]


def opened(visit: Callable[..., Page], name: str) -> Locator:
    """The stop of that name on a new page, with the keys at its heading."""
    page = visit(f"?inside={NAMES.index(name) + 1}")
    stop = page.locator(f'#inside-tour [data-stop="{name}"]')
    expect(stop).to_be_visible()
    stop.get_by_role("heading").focus()
    return stop


def reach(wanted: Locator, key: str = "Tab") -> None:
    """Press Tab until something has the focus."""
    for _ in range(20):
        if wanted.evaluate("one => one === document.activeElement"):
            return
        wanted.page.keyboard.press(key)
    raise AssertionError(f"{key} does not lead to {wanted}")


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
    keys.press("Space")
    expect(stop).to_have_attribute("aria-busy", "false")
    expect(picture).not_to_have_attribute("src", painted or "")
    reach(undo)
    keys.press("Enter")
    expect(picture).to_have_attribute("src", painted or "")  # the decoder draws the same numbers alike
    keys.press("Enter")
    expect(picture).to_have_attribute("src", clean or "")
    expect(undo).to_be_disabled()
