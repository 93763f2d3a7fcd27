"""The tour through the tab Inside, in a real browser: its stops, its keys, and the way of a visitor's own picture."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

from ui.inside.stops import STOPS

from .test_access import serious
from .visitor import Visitor, unfold

EVERY = range(1, len(STOPS) + 1)


def stop_in_view(page: Page) -> Locator:
    """The stop that is seen."""
    return page.locator("#inside-tour .stop:visible")


def opened(page: Page) -> Page:
    """The page at the first stop."""
    unfold(page, "tab", "Inside", "#inside-tour .stop:visible")
    return page


def test_the_arrows_go_through_all_stops_each_with_an_address(visit: Callable[..., Page]):
    page = opened(visit())
    for number, stop in enumerate(STOPS, 1):
        expect(stop_in_view(page)).to_have_attribute("data-stop", stop.name)
        expect(stop_in_view(page).get_by_role("heading")).to_have_text(stop.title)
        expect(page.locator("#inside-tour .map [data-lit]")).to_have_text(stop.part)
        assert page.url.endswith(f"?inside={number}")
        page.keyboard.press("ArrowRight")
    expect(stop_in_view(page)).to_have_attribute("data-stop", STOPS[-1].name)  # there is no stop behind the last
    page.keyboard.press("ArrowLeft")
    expect(stop_in_view(page)).to_have_attribute("data-stop", STOPS[-2].name)
    page.locator("#inside-tour .dots").get_by_label("Stop 1:").click()
    expect(stop_in_view(page)).to_have_attribute("data-stop", STOPS[0].name)


def test_an_address_leads_to_its_stop(visit: Callable[..., Page]):
    page = visit("?inside=4")
    expect(stop_in_view(page)).to_have_attribute("data-stop", STOPS[3].name)


def test_something_moves_before_it_is_touched_and_nothing_for_those_who_want_none(visit: Callable[..., Page]):
    slider = stop_in_view(opened(visit(reduced_motion="no-preference"))).get_by_role("slider")
    expect(slider).not_to_have_value("0")
    page = opened(visit())
    calm = stop_in_view(page).get_by_role("slider")
    expect(calm).to_have_value("0")
    calm.press("ArrowRight")  # the arrows move a slider, and Page Down goes on all the same
    expect(calm).to_have_value("1")
    calm.press("PageDown")
    expect(stop_in_view(page)).to_have_attribute("data-stop", STOPS[1].name)


def test_look_inside_shows_the_visitors_own_run_step_by_step(visit: Callable[..., Page]):
    page = visit()
    visitor = Visitor(page)
    visitor.ask("a red apple, noto style", steps=3, seed="5")
    visitor.generate()
    visitor.wait_until("finished")
    visitor.expect_result()
    page.click("#t2i-inside")
    stop = stop_in_view(page)
    expect(stop).to_have_attribute("data-stop", "step")
    expect(stop.locator("output")).to_contain_text("of 3")
    expect(stop.locator(".strip img")).to_have_count(6)
    expect(stop.locator(".guess")).to_have_attribute("alt", re.compile("^a red apple, noto style, guessed at step"))
    stop.get_by_role("slider").fill("3")
    before = stop.locator(".guess").get_attribute("src")
    stop.get_by_role("heading").focus()
    page.keyboard.press("Space")  # from the last step to the first
    expect(stop.locator("output")).to_have_text("1 of 3")
    assert stop.locator(".guess").get_attribute("src") != before


def test_the_p_key_presents_and_escape_ends_it(visit: Callable[..., Page]):
    page = opened(visit())
    tour = page.locator("#inside-tour .tour")
    page.keyboard.press("p")
    expect(tour).to_have_attribute("data-presents", "")
    box = tour.bounding_box()
    assert box is not None
    assert (box["width"], box["height"]) == (1280, 1000), "the whole window"
    page.keyboard.press("Escape")
    expect(tour).not_to_have_attribute("data-presents", "")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_is_in_the_way_at_any_stop(visit: Callable[..., Page], scheme: str):
    page = opened(visit(color_scheme=scheme))
    for number in EVERY:
        page.locator("#inside-tour .dots").get_by_label(f"Stop {number}:").click()
        assert serious(page) == [], STOPS[number - 1].name


@pytest.mark.parametrize("size", [(1366, 768), (390, 844)], ids=["laptop", "phone"])
def test_every_stop_fits_the_window(visit: Callable[..., Page], size: tuple[int, int]):
    width, height = size
    page = opened(visit(viewport={"width": width, "height": height}))
    for number in EVERY:
        page.locator("#inside-tour .dots").get_by_label(f"Stop {number}:").click()
        name = STOPS[number - 1].name
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        seen = page.evaluate(
            """() => {
                const stop = document.querySelector("#inside-tour .stop:not([hidden])");
                const parts = [...stop.querySelectorAll(".shot, .move")].map((one) => one.getBoundingClientRect());
                return [Math.max(...parts.map((one) => one.bottom)), Math.max(...parts.map((one) => one.width))];
            }"""
        )
        assert seen[0] <= height, (name, "one window without scrolling")
        assert seen[1] >= min(420, width - 60), (name, "one large picture")


@pytest.mark.parametrize("number", ["1.5", "0", "-1", "none"])
def test_an_address_of_no_stop_leads_to_the_first(visit: Callable[..., Page], number: str):
    expect(stop_in_view(visit(f"?inside={number}"))).to_have_attribute("data-stop", STOPS[0].name)
