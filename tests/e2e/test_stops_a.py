"""The stops about noise, first guesses and guidance in a real browser: by keys alone, each has one thing to move."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Locator, Page, expect

from ui.inside.stops import STOPS


def opened(visit: Callable[..., Page], name: str) -> Locator:
    """The stop of that name, at its address, with the heading in focus."""
    number = 1 + [stop.name for stop in STOPS].index(name)
    stop = visit(f"?inside={number}").locator("#inside-tour .stop:visible")
    expect(stop).to_have_attribute("data-stop", name)
    stop.get_by_role("heading").focus()
    return stop


def source(stop: Locator, picture: str) -> str:
    """What an img element shows, once it shows something."""
    image = stop.locator(picture)
    image.and_(stop.page.locator("[src]")).wait_for()
    return image.get_attribute("src") or ""


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
