"""The Inside tab in a real browser: the noise lab follows its slider, a run can be looked at from all sides."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

PATIENCE = 120_000
expect.set_options(timeout=PATIENCE)


@pytest.fixture
def inside(page: Page) -> Page:
    """The page with the Inside tab open."""
    page.get_by_role("tab", name="Inside", exact=True).click()
    return page


def set_number(page: Page, elem_id: str, value: float) -> None:
    """Type into a slider's number field."""
    field = page.locator(f"#{elem_id} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def look_inside(page: Page, prompt: str, steps: int, guidance: float = 4) -> None:
    """Record a run and wait for its end."""
    page.get_by_role("tab", name="Inside a run").click()
    page.locator("#inside-prompt textarea, #inside-prompt input").first.fill(prompt)
    set_number(page, "inside-steps", steps)
    set_number(page, "inside-guidance", guidance)
    page.locator("#inside-look").click()
    expect(page.locator("#inside-run .scrubber output")).to_contain_text(f"Step {steps} of {steps}")


def test_the_noise_lab_follows_its_slider(inside: Page):
    lab = inside.locator("#inside-noise")
    expect(lab.locator(".pictures img")).to_have_count(4)
    expect(lab.locator(".facts")).to_contain_text("400")
    before = lab.locator(".pictures img").first.get_attribute("src")
    set_number(inside, "inside-t", 900)
    expect(lab.locator(".facts dd").first).to_have_text("900")
    assert lab.locator(".pictures img").first.get_attribute("src") != before
    expect(lab.locator('[data-chart="snr"] .readout')).to_contain_text("timestep t 900")


def test_the_curves_can_be_read_at_the_pointer(inside: Page):
    chart = inside.locator('#inside-noise [data-chart="alphas"]')
    box = chart.locator("svg").bounding_box()
    assert box is not None
    inside.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
    expect(chart.locator(".readout")).to_contain_text("timestep t 999")
    inside.mouse.move(5, 5)
    expect(chart.locator(".readout")).to_contain_text("timestep t 400")


def test_a_word_shows_where_it_went_at_every_step(inside: Page):
    look_inside(inside, "a cat next to a pizza", steps=4)
    view = inside.locator("#inside-run")
    chips = view.locator(".chip")
    expect(chips).to_have_text(["a", "cat", "next", "to", "a", "pizza"])
    expect(view.locator(".words figcaption")).to_contain_text("“cat” gets")
    chips.nth(5).hover()
    expect(view.locator(".words figcaption")).to_contain_text("“pizza” gets")
    of_all = view.locator(".words figcaption").inner_text()
    view.get_by_role("button", name="This step").click()
    chips.nth(5).hover()
    expect(view.locator(".words figcaption")).not_to_have_text(of_all)
    painted = "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
    assert view.locator(".words .frame canvas").evaluate(painted) > 10


def test_guidance_shows_three_guesses_and_the_slider_goes_back(inside: Page):
    look_inside(inside, "a red apple", steps=4)
    view = inside.locator("#inside-run")
    expect(view.locator(".pictures img")).to_have_count(3)
    last = view.locator(".pictures img").first.get_attribute("src")
    view.locator(".scrubber input").fill("1")
    expect(view.locator(".scrubber output")).to_contain_text("Step 1 of 4")
    assert view.locator(".pictures img").first.get_attribute("src") != last
    expect(view.locator('[data-chart="pull"] .readout')).to_contain_text("step 1")


def test_without_guidance_there_is_no_guess_without_words(inside: Page):
    look_inside(inside, "a red apple", steps=2, guidance=1)
    view = inside.locator("#inside-run")
    expect(view.locator(".pictures img")).to_have_count(2)
    expect(view.locator(".pictures")).to_contain_text("Not guided")
    expect(view.locator('[data-chart="pull"]')).to_be_hidden()


def test_the_match_of_picture_and_prompt_can_be_read_at_every_step(inside: Page):
    look_inside(inside, "a red apple", steps=3)
    match = inside.locator('#inside-run [data-chart="match"]')
    expect(match).to_be_visible()
    expect(match.locator(".readout")).to_contain_text(re.compile(r"step 3.*cosine -?0\.\d"))
    inside.locator("#inside-run .scrubber input").fill("1")
    expect(match.locator(".readout")).to_contain_text("step 1")


def test_words_are_never_read_as_html(inside: Page):
    look_inside(inside, "<img src=x onerror=document.title='bad'> & <b>cat</b>", steps=1)
    expect(inside.locator("#inside-run .chips")).to_contain_text("onerror")
    assert inside.locator("#inside-run .chips img, #inside-run .chips b").count() == 0
    assert inside.title() != "bad"


@pytest.mark.parametrize(
    ("section", "name"), [("Inside a run", "look"), ("Samplers side by side", "compare")], ids=["run", "samplers"]
)
def test_stop_while_waiting_leaves_the_line(visit: Callable[..., Page], section: str, name: str):
    first, page = visit(), visit()
    first.get_by_role("tab", name="Inside", exact=True).click()
    first.get_by_role("tab", name="Inside a run").click()
    set_number(first, "inside-steps", 150)
    first.locator("#inside-look").click()
    expect(first.locator("#inside-run figure").first).to_be_visible()
    page.get_by_role("tab", name="Inside", exact=True).click()
    page.get_by_role("tab", name=section).click()
    page.locator(f"#inside-{name}").click()
    view = page.locator("#inside-run" if name == "look" else "#inside-samplers")
    expect(view).to_contain_text("queue: 1/1")
    page.locator("#inside-stop" if name == "look" else "#inside-compare-stop").click()
    expect(view).not_to_contain_text("queue: 1/1")
    first.locator("#inside-stop").click()
    expect(view.locator(".hint")).to_be_visible()  # nothing has been drawn


def test_samplers_stand_side_by_side(inside: Page):
    inside.get_by_role("tab", name="Samplers side by side").click()
    set_number(inside, "inside-compare-steps", 3)
    inside.locator("#inside-compare").click()
    view = inside.locator("#inside-samplers")
    expect(view.locator(".strip")).to_have_count(4)
    expect(view.locator(".strip").last).to_contain_text(re.compile("3 evaluations"))
    expect(view.locator(".strip").first.locator("img")).to_have_count(3)
    readout = view.locator('[data-chart="guess"] .readout')
    for label in ("DDPM", "DDIM", "Euler a", "DPM++ 2M"):
        expect(readout).to_contain_text(label)
    levels = view.locator('[data-chart="levels"]')
    for label in ("The model's own", "Karras", "Exponential", "Beta", "Uniform"):
        expect(levels.locator(".readout")).to_contain_text(label)
    expect(levels.locator("polyline")).to_have_count(5)


def test_an_empty_choice_of_samplers_is_refused_in_words(inside: Page):
    inside.get_by_role("tab", name="Samplers side by side").click()
    for label in ("DDPM", "DDIM", "Euler a", "DPM++ 2M"):
        inside.locator("#inside-samplers-chosen").get_by_label(label, exact=True).uncheck()
    inside.locator("#inside-compare").click()
    expect(inside.get_by_text("samplers must name at least one")).to_be_visible()


def test_it_fits_a_phone(visit):
    page = visit(viewport={"width": 390, "height": 844})
    page.get_by_role("tab", name="Inside", exact=True).click()
    expect(page.locator("#inside-noise .pictures img")).to_have_count(4)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
