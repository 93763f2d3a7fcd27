"""Readable and reachable for everyone: by eye, by finger, by keyboard and by ear, on a page that holds still."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect

from ui.stage.opening import EXAMPLES, PHOTO_EXAMPLES

from .visitor import Visitor, unfold

SHIFTS = """() => new Promise((tell) => {
  const named = ({value, sources}) => [value, ...sources.map(({node}) => node?.id || node?.className || "text")];
  const unasked = (list) => list.getEntries().filter((entry) => !entry.hadRecentInput);
  new PerformanceObserver((list) => tell(unasked(list).map(named))).observe({type: "layout-shift", buffered: true});
  setTimeout(() => tell([]), 2000); // without any shift the observer is silent
})"""
"""The shares of the window that moved, with the names of their elements (https://wicg.github.io/layout-instability/)."""
CUT = """() => [...document.querySelectorAll("input[type=number]")]
  .filter((box) => box.checkVisibility())
  .map((box) => [box.closest(".block").id, box.clientHeight, box.parentElement.clientHeight])
  .filter(([, box, seen]) => box < 42 || seen < box)"""


def serious(page: Page) -> list[str]:
    """What axe-core calls serious or critical, with the elements."""
    found = Axe().run(page).response["violations"]
    return [
        f"{violation['id']}: {[(node['html'][:160], node['failureSummary']) for node in violation['nodes']]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_is_in_the_way(visit: Callable[..., Page], scheme: str):
    page = visit(color_scheme=scheme)
    page.add_style_tag(content="* { transition: none !important; }")  # colours halfway are nobody's choice
    visitor = Visitor(page)
    visitor.ask("a cat", steps=2)
    visitor.generate()
    visitor.wait_until("finished")
    visitor.expect_result()
    assert serious(page) == []
    Visitor(page, "i2i")
    page.locator("#i2i-photo").wait_for()
    assert serious(page) == []


@pytest.mark.parametrize("size", [(1440, 900), (390, 844)])
def test_the_page_holds_still_while_it_loads(visit: Callable[..., Page], size: tuple[int, int]):
    page = visit(viewport={"width": size[0], "height": size[1]}, reduced_motion="no-preference")
    expect(page.locator("#model-note")).to_contain_text("takes about")
    expect(page.locator("#t2i-live .status")).to_contain_text("A recorded run")
    shifts = page.evaluate(SHIFTS)
    assert sum(share for share, *_ in shifts) < 0.05, shifts


def test_notes_on_the_prompt_leave_generate_where_it_is(page: Page):
    Visitor(page)
    expect(page.locator("#model-note")).to_contain_text("takes about")
    before = page.locator("#t2i-generate").bounding_box()
    page.fill("#t2i-prompt textarea", "a xylophonist zebra")
    expect(page.locator("#t2i-words")).to_contain_text("xylophonist")
    assert page.locator("#t2i-generate").bounding_box() == before


def test_number_boxes_are_whole_under_a_finger(visit: Callable[..., Page]):
    page = visit(viewport={"width": 820, "height": 1180}, is_mobile=True, has_touch=True)
    Visitor(page)
    assert page.evaluate(CUT) == []
    unfold(page, "tab", "Inside", "#laboratory")
    unfold(page, "button", "Laboratory: all numbers", "#inside-t input[type=number]")
    assert page.evaluate(CUT) == []
    unfold(page, "tab", "Run", "#inside-steps input[type=number]")
    assert page.evaluate(CUT) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_part_of_a_slider_up_to_its_thumb_stands_out(visit: Callable[..., Page], scheme: str):
    page = visit(color_scheme=scheme)
    Visitor(page)
    box = page.locator("#t2i-guidance input[type=range]").bounding_box()
    assert box is not None
    around = {**box, "y": box["y"] - 8, "height": box["height"] + 16}
    slider = Image.open(io.BytesIO(page.screenshot(clip=around))).convert("L")
    middle = slider.height // 2
    empty, filled, free = (slider.getpixel((x, y)) for x, y in ((6, 1), (6, middle), (slider.width - 6, middle)))
    assert abs(filled - empty) > 1.5 * abs(free - empty)


def test_cards_and_pictures_of_the_visit_are_named_by_their_prompts(page: Page):
    visitor = Visitor(page)
    for kind, prompt in (("t2i", EXAMPLES[1][0]), ("i2i", PHOTO_EXAMPLES[1][1])):
        Visitor(page, kind)
        cards = page.locator("#t2i-cards, #i2i-photos")
        expect(cards.get_by_role("button", name=prompt, exact=True)).to_have_count(1)
    page.get_by_role("tab", name="Text2Image").click()
    for prompt in ("a cat, noto style", "a dog, noto style"):
        visitor.ask(prompt, steps=1)
        visitor.generate()
        expect(page.locator("#history").get_by_role("button", name=prompt, exact=True)).to_have_count(1)
    expect(page.locator("#history").get_by_role("button", name="a cat, noto style", exact=True)).to_have_count(1)


def test_arrow_keys_go_from_tab_to_tab(page: Page):
    Visitor(page)
    page.get_by_role("tab", name="Text2Image").focus()
    for key, name in (("ArrowRight", "Image2Image"), ("End", "Inside"), ("ArrowRight", "Text2Image")):
        page.keyboard.press(key)
        tab = page.get_by_role("tab", name=name, exact=True)
        expect(tab).to_be_focused()
        expect(tab).to_have_attribute("aria-selected", "true")
